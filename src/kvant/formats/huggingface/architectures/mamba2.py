"""The mixer of Mamba 2: state-space layers between those of attention, or alone.

Source: llama.cpp 0.3.36 `conversion/mamba.py` `Mamba2Model`, transformers 5.24 `modeling_granitemoehybrid`.
"""

from kvant.formats.huggingface.architectures.keys import Key
from kvant.formats.huggingface.architectures.names import Rule
from kvant.formats.huggingface.architectures.transforms import COLUMN, MINUS_EXP, SQUEEZED, Transform, grouped

MAMBA_NAMES = {
    "ssm_in": "mamba.in_proj", "ssm_norm": "mamba.norm", "ssm_out": "mamba.out_proj"
}  # fmt: skip
MAMBA_RULES = (
    Rule("ssm_a", "mamba.A_log", Transform(forward=lambda t, c: COLUMN.forward(MINUS_EXP.forward(t, c), c))),
    Rule("ssm_d", "mamba.D", COLUMN),
    Rule("ssm_conv1d.weight", "mamba.conv1d.weight", SQUEEZED),
    Rule("ssm_conv1d.bias", "mamba.conv1d.bias"),
    Rule("ssm_dt.bias", "mamba.dt_bias"),
)
MAMBA_TRANSFORMS = {"ssm_norm": grouped("mamba_n_groups")}
MAMBA_REQUIRED = (*MAMBA_NAMES, "ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d")

MAMBA_SHAPES = {
    "ssm_in": ("?", "hidden_size"), "ssm_norm": ("mamba_n_groups", "?"),
    "ssm_out": ("hidden_size", "mamba_expand*hidden_size"), "ssm_a": ("mamba_n_heads", "1"),
    "ssm_d": ("mamba_n_heads", "1"), "ssm_conv1d": ("?", "mamba_d_conv"),
}  # fmt: skip

MAMBA_KEYS = (
    Key("ssm.conv_kernel", "mamba_d_conv"),
    Key("ssm.state_size", "mamba_d_state"),
    Key("ssm.group_count", "mamba_n_groups"),
    Key("ssm.time_step_rank", "mamba_n_heads"),
)
