"""LFM2 and LFM2.5: short convolutions in most layers, attention in the others; dense, or with experts."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import (
    EXPERT_BIAS,
    EXPERT_SHAPES,
    EXPERT_STEMS,
    NUMBERED,
    SIGMOID,
    expert_rules,
)
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import integer
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind, config_entries, integers
from kvant.formats.huggingface.architectures.names import Rule
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.transforms import SQUEEZED
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, u32
from kvant.model import Model

NORMS = {"attn_norm": "operator_norm", "ffn_norm": "ffn_norm"}
CONVOLUTION = {
    "shortconv.conv": "conv.conv", "shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj"
}  # fmt: skip
ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj", "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
}  # fmt: skip
MLP = {"ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2"}
ROUTER = {"ffn_gate_inp": "feed_forward.gate"}
SHAPES = {
    "token_embd_norm": ("hidden_size",), "shortconv.conv": ("hidden_size", "conv_L_cache"),
    "shortconv.in_proj": ("3*hidden_size", "hidden_size"), "shortconv.out_proj": ("hidden_size", "hidden_size"),
}  # fmt: skip
ENTRIES = frozenset({
    "conv_L_cache",
    "layer_types", "full_attn_idxs", "conv_bias", "tie_embedding", "block_ff_dim", "block_auto_adjust_ff_dim",
    "block_ffn_dim_multiplier", "block_multiple_of", "num_dense_layers", "use_expert_bias", "norm_topk_prob",
    "routed_scaling_factor", "use_pos_enc", "num_heads", "theta", "block_dim", "block_norm_eps", "block_use_swiglu",
    "block_use_xavier_init", "block_mlp_init_scale", "block_out_init_scale", "conv_dim", "conv_dim_out",
    "conv_use_xavier_init",
})  # fmt: skip
"""Entries that are read, and from `use_pos_enc` on those of the first release that transformers passes over."""

FIXED = {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0}
"""How llama.cpp's lfm2moe weighs experts, by entries of config.json."""

DEFAULTS = {
    "vocab_size": 65536, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 128000, "norm_eps": 1e-5, "rope_theta": 1000000.0, "conv_L_cache": 3,
    "tie_word_embeddings": True,
}  # fmt: skip


def derived(config: Config) -> Mapping[str, Any]:
    """Return the kinds of layers, the length of the MLP as it is adjusted, and whether the head is tied.

    Source: transformers 5.24 `Lfm2Config`, `Lfm2MLP`.
    """
    layers = range(config.n_layers)
    attention = config.items("full_attn_idxs")
    kinds = ["full_attention" if attention is None or layer in attention else "conv" for layer in layers]
    found = {"layer_types": config.get("layer_types", kinds)}
    found["tie_word_embeddings"] = config.get("tie_embedding", config.get("tie_word_embeddings"))
    if config.flag("block_auto_adjust_ff_dim"):
        multiple = config.integer("block_multiple_of", 256)
        length = 2 * config.integer("block_ff_dim", config.integer("intermediate_size")) // 3
        length = int(config.number("block_ffn_dim_multiplier", 1.0) * length)
        return found | {"intermediate_size": -(-length // multiple) * multiple}
    return found | {"intermediate_size": config.get("block_ff_dim", config.get("intermediate_size"))}


def is_convolution(config: Config, layer: int) -> bool:
    """Whether a layer convolves instead of attending."""
    kinds = config.items("layer_types") or []
    return layer < len(kinds) and kinds[layer] == "conv"


def required(config: Config, layer: int) -> tuple[str, ...]:
    """Return the stems of a layer: of one kind or the other, dense or of experts."""
    dense = "num_experts" not in config.values or layer < _leading(config)
    mixer = CONVOLUTION if is_convolution(config, layer) else ATTENTION
    return (*NORMS, *mixer, *(MLP if dense else (*EXPERT_STEMS, EXPERT_BIAS)))


def _leading(config: Config) -> int:
    return config.integer("num_dense_layers", 0, least=0)


def check(config: Config) -> None:
    """Refuse layers that llama.cpp does not have, and experts that it weighs otherwise."""
    kinds = config.items("layer_types") or []
    if len(kinds) != config.n_layers or not set(kinds) <= {"conv", "full_attention"}:
        raise FormatError(
            f"{config.path}: layer_types is {shown(kinds)}, not conv or full_attention for each of {config.n_layers} "
            f"layers. Correct it."
        )
    if config.integer("conv_L_cache") < 2:
        raise UnsupportedModelError(
            f"{config.path}: conv_L_cache is 1, but llama.cpp convolves over 2 tokens or more. Such a model cannot be "
            f"stored as GGUF."
        )
    if "num_experts" in config.values:
        check_values(config, "lfm2moe", **FIXED)


def computed(config: Config) -> dict[str, Value]:
    """Return the key-value heads of each layer, none of those that convolve, and the rest."""
    heads = config.integer("num_key_value_heads")
    found = {
        "attention.head_count_kv": integers(
            0 if is_convolution(config, layer) else heads for layer in range(config.n_layers)
        ),
        "vocab_size": u32(config.integer("vocab_size")),
        "shortconv.l_cache": u32(config.integer("conv_L_cache")),
    }
    return found | ({"expert_gating_func": u32(SIGMOID)} if "num_experts" in config.values else {})


def _back(model: Model) -> dict[str, Any]:
    """Return the entries of config.json: layers without heads of keys are those that convolve."""
    heads = np.ravel(np.asarray(model.get(f"{model.architecture}.attention.head_count_kv", 0))).tolist()
    shared = {**model.metadata, f"{model.architecture}.attention.head_count_kv": u32(max(heads))}
    family = LFM2MOE if model.architecture == LFM2MOE.architecture else LFM2
    entries = config_entries(
        dataclasses.replace(model, metadata=shared), (*family.experts, *family.keys), epsilons=family.epsilons,
        names=family.defaults,
    )  # fmt: skip
    more = dict(FIXED) if family is LFM2MOE else {"block_auto_adjust_ff_dim": False}
    kinds = ["full_attention" if count else "conv" for count in heads]
    return {**entries, **more, "layer_types": kinds, "conv_L_cache": integer(model, "shortconv.l_cache")}


def _family(architecture: str, **others: Any) -> Family:
    return Family(
        architecture=architecture,
        outside={"token_embd": "model.embed_tokens", "token_embd_norm": "model.embedding_norm", "output": "lm_head"},
        ends=("token_embd", "token_embd_norm"),
        transforms={"shortconv.conv": SQUEEZED},
        required=required,
        derived=derived,
        check=check,
        bias_flags={"conv_bias": tuple(CONVOLUTION)},
        engine_biases=frozenset(),
        epsilons=(Key("attention.layer_norm_rms_epsilon", "norm_eps", Kind.NUMBER),),
        computed=computed,
        config=_back,
        entries=ENTRIES,
        **others,
    )


LFM2 = _family(
    "lfm2",
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    model_type="lfm2",
    models="LFM2 and LFM2.5, dense",
    names={**NORMS, **CONVOLUTION, **ATTENTION, **MLP},
    shapes=SHAPES,
    defaults={**DEFAULTS, "hidden_size": 2560, "intermediate_size": 12288, "block_auto_adjust_ff_dim": True},
)

LFM2MOE = _family(
    "lfm2moe",
    classes=("Lfm2MoeForCausalLM",),
    model_type="lfm2_moe",
    models="LFM2-8B-A1B, LFM2-24B-A2B",
    names={**NORMS, **CONVOLUTION, **ATTENTION, **MLP, **ROUTER},
    rules=(*expert_rules("feed_forward.experts", NUMBERED), Rule(EXPERT_BIAS, "feed_forward.expert_bias")),
    shapes={**SHAPES, **EXPERT_SHAPES},
    experts=EXPERTS,
    keys=(
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("leading_dense_block_count", "num_dense_layers", Kind.INTEGER),
    ),
    defaults={
        **DEFAULTS, "hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792, "num_experts": 32,
        "num_experts_per_tok": 4, "num_dense_layers": 2,
    },
)  # fmt: skip
