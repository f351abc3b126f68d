"""Granite's mixtures of experts (3.x) and Granite 4: Mamba 2 in most layers, or none of it; with experts, or dense.

Granite 4 has one class for all of these; without state-space layers llama.cpp knows it as Granite 3.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import EXPERT_STEMS, expert_shapes
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.granite import GRANITE, MULTIPLIERS, without_derived_head
from kvant.formats.huggingface.architectures.keys import Key, Kind, hyperparameters, integers, written
from kvant.formats.huggingface.architectures.llama import llama_computed
from kvant.formats.huggingface.architectures.mamba2 import (
    MAMBA_KEYS,
    MAMBA_NAMES,
    MAMBA_REQUIRED,
    MAMBA_RULES,
    MAMBA_SHAPES,
    MAMBA_TRANSFORMS,
)
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, MLP_NAMES, Rule
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import FIRST_HALF, ROTARY, SECOND_HALF
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, boolean, u32

EXPERTS = (
    Key("expert_count", "num_local_experts", Kind.INTEGER),
    Key("expert_used_count", "num_experts_per_tok", Kind.INTEGER),
)
SHARED_LENGTH = Key("expert_shared_feed_forward_length", "shared_intermediate_size", Kind.INTEGER)
ENDLESS = 1 << 20
"""Length of context that upstream states of models without positions."""

SHARED = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
STATE_SPACE = ("mamba", "linear_attention")
"""Names of the state-space layers, published and transformers 5's; `attention` became `full_attention`."""

EXPERT_RULES = (
    *(
        rule
        for fused in ("input_linear.weight", "experts.gate_up_proj")
        for rule in (
            Rule("ffn_gate_exps.weight", f"block_sparse_moe.{fused}", FIRST_HALF),
            Rule("ffn_up_exps.weight", f"block_sparse_moe.{fused}", SECOND_HALF),
        )
    ),
    Rule("ffn_down_exps.weight", "block_sparse_moe.output_linear.weight"),
    Rule("ffn_down_exps.weight", "block_sparse_moe.experts.down_proj"),
    Rule("ffn_gate_inp.weight", "block_sparse_moe.router.layer.weight"),
    Rule("ffn_gate_inp.weight", "block_sparse_moe.router.weight"),
    Rule("ffn_gate_shexp.weight", "shared_mlp.input_linear.weight", FIRST_HALF),
    Rule("ffn_up_shexp.weight", "shared_mlp.input_linear.weight", SECOND_HALF),
    Rule("ffn_down_shexp.weight", "shared_mlp.output_linear.weight"),
)
DENSE_RULES = (
    Rule("ffn_gate.weight", "dense_mlp.input_linear.weight", FIRST_HALF),
    Rule("ffn_up.weight", "dense_mlp.input_linear.weight", SECOND_HALF),
    Rule("ffn_down.weight", "dense_mlp.output_linear.weight"),
)
"""A model without experts has the shared one alone, which is an ordinary MLP then: `as_dense`."""

SHARED_SHAPES = {
    "ffn_gate_shexp": ("shared_intermediate_size", "hidden_size"),
    "ffn_up_shexp": ("shared_intermediate_size", "hidden_size"),
    "ffn_down_shexp": ("hidden_size", "shared_intermediate_size"),
    "ffn_gate": ("shared_intermediate_size", "hidden_size"),
    "ffn_up": ("shared_intermediate_size", "hidden_size"),
    "ffn_down": ("hidden_size", "shared_intermediate_size"),
}


def has_experts(config: Config) -> bool:
    """Whether there are experts beside the shared one."""
    return bool(config.get("num_local_experts") != 0)


def is_state_space(config: Config, layer: int) -> bool:
    """Whether a layer is one of Mamba 2."""
    kinds = config.items("layer_types") or config.items("layers_block_type") or []
    return layer < len(kinds) and kinds[layer] in STATE_SPACE


def as_dense(name: str, config: Config) -> str:
    """Return the name that the tables know a tensor by, for models with experts and without."""
    return name if has_experts(config) else name.replace(".shared_mlp.", ".dense_mlp.")


def required_moe(config: Config, _: int) -> tuple[str, ...]:
    """Return the stems of a layer of experts."""
    return (*ATTENTION_NAMES, *EXPERT_STEMS, *(SHARED if config.get("shared_intermediate_size") else ()))


def required(config: Config, layer: int) -> tuple[str, ...]:
    """Return the stems of a layer of Granite 4."""
    mixer = MAMBA_REQUIRED if is_state_space(config, layer) else tuple(ATTENTION_NAMES)[1:-1]
    rest = (*EXPERT_STEMS, *SHARED) if has_experts(config) else tuple(MLP_NAMES)
    return ("attn_norm", "ffn_norm", *mixer, *rest)


def metadata(config: Config, architecture: str) -> dict[str, Value]:
    """Return the hyperparameters of Granite with experts."""
    found = hyperparameters(without_derived_head(config), architecture, experts=EXPERTS)
    found |= {f"{architecture}.{key}": value for key, value in llama_computed(config).items()}
    found |= written(MULTIPLIERS, config, architecture)
    return found | (written((SHARED_LENGTH,), config, architecture) if config.get("shared_intermediate_size") else {})


def hybrid_metadata(config: Config, architecture: str) -> dict[str, Value]:
    """Return the hyperparameters of Granite 4: those of its mixers, and a key-value head only where it attends."""
    heads, layers = config.integer("num_key_value_heads"), range(config.n_layers)
    hybrid = any(is_state_space(config, layer) for layer in layers)
    found = {
        **metadata(config, architecture),
        **written(MAMBA_KEYS, config, architecture),
        f"{architecture}.ssm.inner_size": u32(config.integer("mamba_expand") * config.integer("hidden_size")),
        f"{architecture}.attention.head_count_kv": integers(
            0 if is_state_space(config, layer) else heads for layer in layers
        ),
        f"{architecture}.rope.scaling.finetuned": boolean(not hybrid),
    }
    return found | ({f"{architecture}.context_length": u32(ENDLESS)} if hybrid else {})


def check_hybrid(config: Config) -> None:
    """Refuse what llama.cpp's granitehybrid does not load or computes differently."""
    check_whole_rotation(config)
    kinds = config.items("layer_types") or config.items("layers_block_type") or []
    if len(kinds) != config.n_layers or not set(kinds) <= {*STATE_SPACE, "attention", "full_attention"}:
        raise FormatError(
            f"{config.path}: layer_types is {shown(kinds)}, not mamba or attention for each of {config.n_layers} "
            f"layers. Correct it."
        )
    hybrid = bool(set(kinds) & set(STATE_SPACE))
    rotates = config.get("position_embedding_type") == "rope"
    limit = config.get("time_step_limit")
    reasons = {
        "mamba_expand": hybrid and config.integer("mamba_expand") != 2,
        "mamba_conv_bias": hybrid and not config.flag("mamba_conv_bias"),
        "position_embedding_type": rotates == hybrid,
        "time_step_limit": hybrid and limit not in (None, [0.0, math.inf]),
        "shared_intermediate_size": not has_experts(config)
        and config.integer("shared_intermediate_size") != config.integer("intermediate_size"),
    }
    for key in (key for key, differs in reasons.items() if differs):
        raise UnsupportedModelError(
            f"{config.path}: {key} is {shown(config.get(key))}, which llama.cpp's granitehybrid does not compute: it "
            f"expands by 2, convolves with a bias, rotates in models without state-space layers only, limits no time "
            f"step, and dense models have one MLP. Such a model cannot be stored as GGUF."
        )


def without_state_space(raw: Mapping[str, Any], _: Path) -> Family | None:
    """Return the family of a Granite 4 that attends in every layer: Granite's, or that with experts."""
    kinds = raw.get("layer_types") or raw.get("layers_block_type")
    if not isinstance(kinds, list) or any(kind in STATE_SPACE for kind in kinds):
        return None
    name = "granitemoe" if raw.get("num_experts_per_tok", 2) else "granite"
    return dataclasses.replace(
        GRANITEHYBRID, architecture=name, own_metadata=partial(hybrid_metadata, architecture=name)
    )


GRANITEMOE = dataclasses.replace(
    GRANITE,
    architecture="granitemoe",
    classes=("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
    model_type="granitemoe",
    models="Granite 3.0 and 3.1 1B-A400M and 3B-A800M",
    since="0.2",
    names=ATTENTION_NAMES,
    rules=EXPERT_RULES,
    required=required_moe,
    shapes={**expert_shapes("intermediate_size"), **SHARED_SHAPES},
    bias_flags={"attention_bias": ATTENTION_BIASES},
    engine_biases=frozenset(ATTENTION_BIASES),
    experts=EXPERTS,
    keys=(*MULTIPLIERS, SHARED_LENGTH),
    own_metadata=partial(metadata, architecture="granitemoe"),
    one_way="gate and up projections of all experts are one matrix there, which is not put together again",
    defaults={
        **GRANITE.defaults, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
)  # fmt: skip

GRANITEHYBRID = dataclasses.replace(
    GRANITEMOE,
    architecture="granitehybrid",
    one_way="decay rates are stored as what they are the logarithms of, which does not give the same bytes back",
    classes=("GraniteMoeHybridForCausalLM",),
    model_type="granitemoehybrid",
    models="Granite 4.0: Nano, Micro, Tiny, Small",
    names={**ATTENTION_NAMES, **MAMBA_NAMES},
    rules=(*EXPERT_RULES, *DENSE_RULES, *MAMBA_RULES),
    transforms={**ROTARY, **MAMBA_TRANSFORMS},
    shapes={**GRANITEMOE.shapes, **MAMBA_SHAPES},
    renamed=as_dense,
    required=required,
    check=check_hybrid,
    instead=without_state_space,
    bias_flags={
        "attention_bias": ATTENTION_BIASES, "mamba_conv_bias": ("ssm_conv1d",), "mamba_proj_bias": ("ssm_in", "ssm_out")
    },
    engine_biases=frozenset((*ATTENTION_BIASES, "ssm_conv1d")),
    keys=(*MULTIPLIERS, SHARED_LENGTH, *MAMBA_KEYS),
    own_metadata=partial(hybrid_metadata, architecture="granitehybrid"),
    entries=frozenset({
        "layer_types", "layers_block_type", "position_embedding_type", "time_step_limit", "mamba_d_head",
        "mamba_expand", "mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "normalization_function",
    }),
    defaults={
        **GRANITEMOE.defaults, "shared_intermediate_size": 1024, "mamba_n_heads": 128, "mamba_n_groups": 1,
        "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_conv_bias": True,
    },
)  # fmt: skip
