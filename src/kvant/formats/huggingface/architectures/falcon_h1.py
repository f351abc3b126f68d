"""Falcon-H1: attention and a state-space layer side by side in every block, with multipliers that go into the weights.

llama.cpp knows none of the multipliers, so that each matrix is stored as what it has when it is used.

Source: llama.cpp 0.3.36 `conversion/falcon_h1.py`, `src/models/falcon-h1.cpp`; transformers 5.24 `modeling_falcon_h1`.
"""

import dataclasses

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import file_type
from kvant.formats.huggingface.architectures.mamba2 import MAMBA_RULES
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, MLP_BIASES, Rule
from kvant.formats.huggingface.architectures.refusals import check_steps, check_tied, check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation, config_theta
from kvant.formats.huggingface.architectures.transforms import Transform, grouped
from kvant.formats.huggingface.config import Config, shown
from kvant.formats.huggingface.lazy import as_float32, computed
from kvant.metadata import Value, f32, u32
from kvant.tensors import LazyTensor, Tensor

_LISTS = {"mlp_multipliers": 2, "ssm_multipliers": 5}
_MULTIPLIERS = (
    "attention_in_multiplier", "attention_out_multiplier", "key_multiplier", "ssm_in_multiplier", "ssm_out_multiplier",
    "lm_head_multiplier", "embedding_multiplier",
)  # fmt: skip


def multipliers(config: Config, key: str) -> list[float]:
    """Return an entry that is a list of multipliers; ones if it is not there.

    Raises:
        FormatError: It has another length.
    """
    found = config.items(key) or [1.0] * _LISTS[key]
    if len(found) != _LISTS[key]:
        raise FormatError(f"{config.path}: {key} is {shown(found)}, not {_LISTS[key]} numbers. Correct it.")
    return [Config(values={key: value}, path=config.path).number(key) for value in found]


def times(*keys: str) -> Transform:
    """Every value times multipliers of config.json, in turn, in float32; `mlp_multipliers:0` is in a list."""

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        factors = []
        for key in keys:
            name, _, place = key.partition(":")
            factors.append(multipliers(config, name)[int(place)] if place else config.number(name))

        def multiplied(values: np.ndarray) -> np.ndarray:
            for factor in factors:
                values = values * np.float32(factor)
            return values

        return computed(tensor, multiplied)

    return Transform(forward=forward)


def _state_input(tensor: Tensor, config: Config) -> LazyTensor:
    """The projection into gate, states, both sides of the states, and steps: each part has its multiplier."""
    width = config.integer("mamba_d_ssm")
    sides = config.integer("mamba_n_groups") * config.integer("mamba_d_state")
    steps = tensor.shape[0] - 2 * width - 2 * sides
    if steps < 1:
        raise FormatError(f"{tensor.name}: {tensor.shape[0]} rows are too few for {config.path}. Check mamba_d_ssm.")
    parts = np.asarray(multipliers(config, "ssm_multipliers"), np.float32)
    factors = np.repeat(parts, (width, width, sides, sides, steps))
    first, values = np.float32(config.number("ssm_in_multiplier")), as_float32(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        floats = np.ascontiguousarray(values.read(start, stop)).view(np.float32)
        return np.ascontiguousarray(floats * first * factors[start:stop, None]).view(np.uint8)

    return dataclasses.replace(values, read=read)


def check(config: Config) -> None:
    """Refuse what llama.cpp's falcon-h1 would compute differently."""
    check_whole_rotation(config)
    check_tied(config, "falcon-h1", wanted=False)
    check_values(config, "falcon-h1", mamba_proj_bias=False, projectors_bias=False, mamba_conv_bias=True)
    check_steps(config, "falcon-h1")
    if config.flag("mamba_rms_norm"):
        check_values(config, "falcon-h1", mamba_norm_before_gate=False)


def metadata(config: Config) -> dict[str, Value]:
    """Return the hyperparameters of both parts of a block."""
    inner = config.integer("mamba_d_ssm")
    found = {
        "context_length": u32(config.integer("max_position_embeddings")),
        "embedding_length": u32(config.integer("hidden_size")),
        "feed_forward_length": u32(config.integer("intermediate_size")),
        "attention.head_count": u32(config.integer("num_attention_heads")),
        "attention.head_count_kv": u32(config.integer("num_key_value_heads")),
        "attention.key_length": u32(config.head_dim),
        "attention.value_length": u32(config.head_dim),
        "block_count": u32(config.n_layers),
        "ssm.conv_kernel": u32(config.integer("mamba_d_conv")),
        "ssm.inner_size": u32(inner),
        "ssm.state_size": u32(config.integer("mamba_d_state")),
        "ssm.time_step_rank": u32(config.integer("mamba_n_heads")),
        "ssm.group_count": u32(config.integer("mamba_n_groups")),
        "attention.layer_norm_rms_epsilon": f32(config.number("rms_norm_eps")),
        "vocab_size": u32(config.integer("vocab_size")),
        "rope.freq_base": f32(config_theta(config)),
    }
    return {f"falcon-h1.{key}": value for key, value in found.items()} | file_type()


NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ssm_in": "mamba.in_proj",
    "ssm_out": "mamba.out_proj", "ssm_norm": "mamba.norm", "ffn_gate": "feed_forward.gate_proj",
    "ffn_up": "feed_forward.up_proj", "ffn_down": "feed_forward.down_proj",
}  # fmt: skip


def _stems(config: Config, _: int) -> tuple[str, ...]:
    norms = () if config.flag("mamba_rms_norm") else ("ssm_norm",)
    bare = ("ssm_a", "ssm_d", "ssm_dt.bias", "ssm_conv1d", "ssm_conv1d.bias", "ffn_norm")
    return (*(stem for stem in NAMES if stem not in norms), *bare)


FALCON_H1 = Family(
    architecture="falcon-h1",
    classes=("FalconH1ForCausalLM",),
    model_type="falcon_h1",
    models="Falcon-H1 0.5B to 34B",
    rope_types=frozenset({"default"}),
    names=NAMES,
    outside={"token_embd": "model.embed_tokens", "output_norm": "model.final_layernorm", "output": "lm_head"},
    rules=(*MAMBA_RULES, Rule("ffn_norm", "pre_ff_layernorm.weight")),
    transforms={
        "attn_q": times("attention_in_multiplier"), "attn_k": times("key_multiplier", "attention_in_multiplier"),
        "attn_v": times("attention_in_multiplier"), "attn_output": times("attention_out_multiplier"),
        "ssm_in": Transform(forward=_state_input), "ssm_out": times("ssm_out_multiplier"),
        "ssm_norm": grouped("mamba_n_groups"), "ffn_gate": times("mlp_multipliers:0"),
        "ffn_down": times("mlp_multipliers:1"), "output": times("lm_head_multiplier"),
        "token_embd": times("embedding_multiplier"),
    },
    required=_stems,
    shapes={"ssm_out": ("hidden_size", "mamba_d_ssm"), "ssm_norm": ("mamba_n_groups", "?")},
    biased=("ssm_dt", "ssm_conv1d"),
    bias_flags={"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES},
    engine_biases=frozenset({"ssm_dt", "ssm_conv1d"}),
    check=check,
    own_metadata=metadata,
    entries=frozenset({
        *_MULTIPLIERS, *_LISTS, "mamba_d_ssm", "mamba_n_heads", "mamba_d_head", "mamba_n_groups", "mamba_d_state",
        "mamba_d_conv", "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "mamba_rms_norm",
        "mamba_norm_before_gate", "mamba_use_mlp", "mlp_expansion_factor", "projectors_bias",
        "num_logits_to_keep", "time_step_limit",
        "time_step_floor", "time_step_max", "time_step_min", "time_step_rank", "attn_layer_indices",
    }),
    one_way="its multipliers are worked into the weights",
    defaults={
        "vocab_size": 128000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "num_key_value_heads": 8,
        "mamba_d_ssm": 1024, "mamba_n_heads": 128, "mamba_n_groups": 1, "mamba_d_state": 256, "mamba_d_conv": 4,
        "tie_word_embeddings": False, **dict.fromkeys(_MULTIPLIERS, 1.0),
    },
)  # fmt: skip
