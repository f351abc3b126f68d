"""Mamba 2 alone: state-space layers without attention, MLP and positions.

Source: llama.cpp 0.3.36 `conversion/mamba.py` `Mamba2Model`, `src/models/mamba2.cpp`; transformers 5.24 `Mamba2Config`.
"""

import dataclasses

from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import file_type
from kvant.formats.huggingface.architectures.mamba2 import MAMBA_RULES
from kvant.formats.huggingface.architectures.refusals import check_steps, check_values
from kvant.formats.huggingface.architectures.transforms import grouped
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, f32, u32

CONTEXT = 1 << 20
"""There is no limit in the model; upstream writes this."""

NAMES = {
    "attn_norm": "norm", "ssm_in": "mixer.in_proj", "ssm_norm": "mixer.norm", "ssm_out": "mixer.out_proj",
}  # fmt: skip
RULES = tuple(dataclasses.replace(rule, theirs=rule.theirs.replace("mamba.", "mixer.", 1)) for rule in MAMBA_RULES)


def inner(config: Config) -> int:
    """Return the width of the states: that of all heads."""
    return config.integer("expand") * config.integer("hidden_size")


def check(config: Config) -> None:
    """Refuse biases that llama.cpp does not add, and a convolution without one."""
    check_values(config, "mamba2", use_bias=False, use_conv_bias=True, norm_before_gate=False)
    check_steps(config, "mamba2")
    heads = config.get("num_heads")
    check_values(config, "mamba2", num_heads=inner(config) // config.integer("head_dim") if heads else None)


def metadata(config: Config) -> dict[str, Value]:
    """Return the hyperparameters; those of attention and MLP are 0, which the engine wants to be there."""
    found = {
        "context_length": u32(CONTEXT),
        "embedding_length": u32(config.integer("hidden_size")),
        "feed_forward_length": u32(0),
        "attention.head_count": u32(0),
        "block_count": u32(config.n_layers),
        "ssm.conv_kernel": u32(config.integer("conv_kernel")),
        "ssm.inner_size": u32(inner(config)),
        "ssm.state_size": u32(config.integer("state_size")),
        "ssm.time_step_rank": u32(inner(config) // config.integer("head_dim")),
        "ssm.group_count": u32(config.integer("n_groups")),
        "attention.layer_norm_rms_epsilon": f32(config.number("layer_norm_epsilon")),
    }
    return {f"mamba2.{key}": value for key, value in found.items()} | file_type()


MAMBA2 = Family(
    architecture="mamba2",
    classes=("Mamba2ForCausalLM",),
    model_type="mamba2",
    models="Mamba 2, Mamba-Codestral-7B",
    rope_types=frozenset(),
    block="backbone.layers",
    names=NAMES,
    outside={"token_embd": "backbone.embeddings", "output_norm": "backbone.norm_f", "output": "lm_head"},
    prefixes=("model.",),
    transforms={"ssm_norm": grouped("n_groups")},
    rules=RULES,
    required=(*NAMES, "ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d"),
    biased=("ssm_dt", "ssm_conv1d"),
    engine_biases=frozenset({"ssm_dt", "ssm_conv1d"}),
    shapes={"ssm_out": ("hidden_size", "expand*hidden_size")},
    counts=(),
    epsilons=(),
    check=check,
    own_metadata=metadata,
    entries=frozenset({
        "num_heads", "state_size", "expand", "conv_kernel", "n_groups", "use_bias", "use_conv_bias", "chunk_size",
        "layer_norm_epsilon", "residual_in_fp32", "time_step_rank", "time_step_min", "time_step_max",
        "time_step_floor", "time_step_limit", "rescale_prenorm_residual", "norm_before_gate", "rms_norm",
    }),
    one_way="decay rates are stored as what they are the logarithms of, which does not give the same bytes back",
    defaults={
        "vocab_size": 32768, "hidden_size": 4096, "num_hidden_layers": 64, "head_dim": 64, "state_size": 128,
        "expand": 2, "conv_kernel": 4, "n_groups": 8, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False,
        "num_attention_heads": 1,
    },
)  # fmt: skip
