"""Gated DeltaNet of Qwen3-Next and Qwen3.5: its tensors, and the order of heads in which llama.cpp takes them.

Several value heads share a key head. transformers keeps those of one key head side by side ("grouped"); llama.cpp
repeats the key heads as a whole and so wants one value head of every key head, then the next of each ("tiled"). Rows
move whole, so every block type moves; only the projection behind the heads moves columns.

Source: llama.cpp 0.3.36 `conversion/qwen.py` (`_LinearAttentionVReorderBase`, `Qwen3NextModel.modify_tensors`),
transformers 5.24 `modeling_qwen3_next.py` (`fix_query_key_value_ordering`).
"""

import numpy as np

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.keys import Key
from kvant.formats.huggingface.architectures.names import Rule
from kvant.formats.huggingface.architectures.transforms import MINUS_EXP, SQUEEZED, Change, Transform
from kvant.formats.huggingface.config import Config, shown
from kvant.formats.huggingface.lazy import columns, gathered, renamed, selected
from kvant.tensors import LazyTensor, Tensor

LINEAR, FULL = "linear_attention", "full_attention"


def is_linear(config: Config, layer: int) -> bool:
    """Whether a layer is one of Gated DeltaNet; those of MTP are not.

    Raises:
        FormatError: `layer_types` has another length, or kinds that there are not.
    """
    kinds = config.items("layer_types")
    if layer >= config.n_layers:
        return False
    if kinds is None:
        return (layer + 1) % config.integer("full_attention_interval", 4) != 0
    if len(kinds) != config.n_layers or not set(kinds) <= {LINEAR, FULL}:
        raise FormatError(
            f"{config.path}: layer_types is {shown(kinds)}, not {LINEAR} or {FULL} for each of {config.n_layers} "
            f"layers. Correct it."
        )
    return bool(kinds[layer] == LINEAR)


def check_heads(config: Config) -> None:
    """Refuse heads that llama.cpp does not have: of two lengths, or that cannot be shared out."""
    keys, values = (config.integer(f"linear_num_{kind}_heads") for kind in ("key", "value"))
    if values % keys:
        raise FormatError(f"{config.path}: {values} value heads cannot share {keys} key heads evenly. Correct it.")
    key, value = (config.integer(f"linear_{kind}_head_dim") for kind in ("key", "value"))
    if key != value:
        raise UnsupportedModelError(
            f"{config.path}: linear_key_head_dim is {key} and linear_value_head_dim {value}, but llama.cpp has one "
            f"length for both. Such a model cannot be stored as GGUF."
        )


def tiled_order(config: Config, length: int, n_before: int = 0) -> np.ndarray:
    """Return the source of each row when value heads go from grouped to tiled, int64 [n_before + heads * length].

    Args:
        config: The configuration.
        length: Rows of a head.
        n_before: Rows before those of the values, which stay.
    """
    keys, values = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    heads = np.arange(values).reshape(keys, -1).T.reshape(-1, 1)
    rows = (heads * length + np.arange(length)).reshape(-1)
    return np.concatenate((np.arange(n_before), n_before + rows))


def _check_length(tensor: Tensor, axis: int, length: int, config: Config) -> None:
    """Compare a length with what the heads say, before anything of that length is made."""
    if tensor.shape[axis] != length:
        raise FormatError(
            f"{tensor.name}: shape {list(tensor.shape)} is not that of {length} rows or columns, as the heads in "
            f"{config.path} say. Check that it belongs to these weights."
        )


def _tiled(*, of_length: bool, behind_keys: bool = False, of: Change | None = None) -> Transform:
    """Rows of value heads, tiled.

    Args:
        of_length: A head has as many rows as it is long; else one.
        behind_keys: Queries and keys stand before them.
        of: What happens to the tensor before.
    """

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        whole = of(tensor, config) if of else renamed(tensor, tensor.name)
        before = (
            2 * config.integer("linear_num_key_heads") * config.integer("linear_key_head_dim") if behind_keys else 0
        )
        length = config.integer("linear_value_head_dim") if of_length else 1
        _check_length(whole, 0, before + config.integer("linear_num_value_heads") * length, config)
        return gathered(whole, tiled_order(config, length, before))

    return Transform(forward=forward, moves_rows=of is None)


def _tiled_columns(tensor: Tensor, config: Config) -> LazyTensor:
    length = config.integer("linear_value_head_dim")
    _check_length(tensor, -1, config.integer("linear_num_value_heads") * length, config)
    return columns(tensor, tiled_order(config, length))


def _unmixed(*, gate: bool) -> Transform:
    """Rows of queries, keys and values, or of the gate, out of one matrix that has all four of a key head together."""

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        keys, values = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
        key, value = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
        rows = values // keys * value
        _check_length(tensor, 0, keys * (2 * key + 2 * rows), config)
        ends = np.cumsum((0, key, key, rows, rows))
        parts = (3,) if gate else (0, 1, 2)
        starts = np.arange(keys).reshape(-1, 1) * ends[-1]
        order = [(starts + np.arange(ends[part], ends[part + 1])).reshape(-1) for part in parts]
        return selected(tensor, np.concatenate(order))

    return Transform(forward=forward, moves_rows=True)


DELTA_NAMES = {
    "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z", "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a", "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}  # fmt: skip
"""Tensors of Qwen3.5's linear attention, whose heads are tiled by `DELTA_TILED`."""

DELTA_TILED = {
    "attn_qkv": _tiled(of_length=True, behind_keys=True), "attn_gate": _tiled(of_length=True),
    "ssm_beta": _tiled(of_length=False), "ssm_alpha": _tiled(of_length=False),
    "ssm_conv1d": _tiled(of_length=True, behind_keys=True, of=SQUEEZED.forward),
    "ssm_out": Transform(forward=_tiled_columns),
}  # fmt: skip
DELTA_RULES = (
    Rule("ssm_a", "linear_attn.A_log", _tiled(of_length=False, of=MINUS_EXP.forward)),
    Rule("ssm_dt.bias", "linear_attn.dt_bias", _tiled(of_length=False)),
)
NEXT_NAMES = {
    "ssm_ba": "linear_attn.in_proj_ba", "ssm_conv1d": "linear_attn.conv1d", "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}  # fmt: skip
"""Tensors of Qwen3-Next's, whose heads stay grouped."""

NEXT_RULES = (
    Rule("attn_qkv.weight", "linear_attn.in_proj_qkvz.weight", _unmixed(gate=False)),
    Rule("attn_gate.weight", "linear_attn.in_proj_qkvz.weight", _unmixed(gate=True)),
    Rule("ssm_a", "linear_attn.A_log", MINUS_EXP),
    Rule("ssm_dt.bias", "linear_attn.dt_bias"),
)
_VALUES = "linear_num_value_heads*linear_value_head_dim"
DELTA_SHAPES = {
    "attn_qkv": ("?", "hidden_size"), "attn_gate": (_VALUES, "hidden_size"),
    "ssm_beta": ("linear_num_value_heads", "hidden_size"), "ssm_alpha": ("linear_num_value_heads", "hidden_size"),
    "ssm_ba": ("2*linear_num_value_heads", "hidden_size"), "ssm_conv1d": ("?", "linear_conv_kernel_dim"),
    "ssm_norm": ("linear_value_head_dim",), "ssm_out": ("hidden_size", _VALUES), "ssm_a": ("linear_num_value_heads",),
}  # fmt: skip
DELTA_KEYS = (
    Key("ssm.conv_kernel", "linear_conv_kernel_dim"),
    Key("ssm.state_size", "linear_key_head_dim"),
    Key("ssm.group_count", "linear_num_key_heads"),
    Key("ssm.time_step_rank", "linear_num_value_heads"),
)
