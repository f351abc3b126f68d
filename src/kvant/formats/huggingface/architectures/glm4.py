"""GLM-4 (dense, norms after each part) and GLM-4.5 to 4.7 (experts behind leading dense layers, a block that guesses).

transformers rotates GLM-4's neighbouring pairs as llama.cpp does, so no row moves.
"""

from collections.abc import Collection
from typing import Any

from kvant.formats.huggingface.architectures.experts import (
    EXPERT_BIAS,
    EXPERT_SHAPES,
    EXPERT_STEMS,
    MLP_EXPERTS,
    SCORE_CORRECTION,
    SHARED_EXPERTS,
    SHARED_EXPERTS_SHAPES,
    SIGMOID,
    is_dense,
)
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import integer
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, ATTENTION_NAMES, MLP_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.nextn import NEXTN_ENDS, NEXTN_NAMES, NEXTN_SHAPES
from kvant.formats.huggingface.config import MAX_LAYERS, Config
from kvant.metadata import Value, u32
from kvant.model import Model

BIASES = ATTENTION_BIASES[:3]
"""What `attention_bias` asks for here; the output projection has none."""

GLM4_NAMES = {
    **{ours: theirs for ours, theirs in ATTENTION_NAMES.items() if ours != "ffn_norm"},
    "post_attention_norm": "post_self_attn_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_mlp_layernorm",
}
MOE_NAMES = {
    **{ours: theirs for ours, theirs in ATTENTION_NAMES.items() if ours != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
    **QK_NORMS,
    **MLP_NAMES,
    "ffn_gate_inp": "mlp.gate",
    **SHARED_EXPERTS,
    **NEXTN_NAMES,
    **NEXTN_ENDS,
}
GUESSING = "num_nextn_predict_layers"
"""Entry of how many blocks behind the others guess further tokens; they are kept."""


def rotated(config: Config) -> dict[str, Value]:
    """Return how many components of a head are rotated."""
    share = config.rotary_share
    return {"rope.dimension_count": u32(int(config.head_dim * share))}


def required(config: Config, layer: int) -> Collection[str]:
    """Return the stems of a layer; a block that guesses may be left out of a checkpoint, as transformers does."""
    if layer >= config.n_layers:
        return ()
    norms = QK_NORMS if config.flag("use_qk_norm") else {}
    attention = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "post_attention_norm", *norms)
    return (*attention, *(MLP_NAMES if is_dense(config, layer) else (*EXPERT_STEMS, EXPERT_BIAS, *SHARED_EXPERTS)))


def computed_moe(config: Config) -> dict[str, Value]:
    """Return the rotated share of a head, and how experts are scored."""
    return {**rotated(config), "expert_gating_func": u32(SIGMOID)}


def with_guessing(config: Config) -> int:
    """Return the number of blocks, those that guess further tokens included."""
    return min(config.n_layers + config.integer(GUESSING, 0, least=0), MAX_LAYERS)


GLM4 = Family(
    architecture="glm4",
    classes=("Glm4ForCausalLM",),
    model_type="glm4",
    models="GLM-4-9B and 32B (0414), GLM-Z1",
    names=GLM4_NAMES,
    required=tuple(GLM4_NAMES),
    bias_flags={"attention_bias": BIASES},
    computed=rotated,
    defaults={
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40,
        "num_attention_heads": 32, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 131072,
        "rms_norm_eps": 1.5625e-7, "attention_bias": True, "tie_word_embeddings": False, "partial_rotary_factor": 0.5,
    },
)  # fmt: skip


def _returned(model: Model) -> dict[str, Any]:
    """Return the layers without those that guess, and whether queries and keys are normed."""
    layers = integer(model, "block_count") - integer(model, "nextn_predict_layers", 0, least=0)
    return {"num_hidden_layers": layers, "use_qk_norm": "blk.0.attn_q_norm.weight" in model.tensors}


GLM4MOE = Family(
    architecture="glm4moe",
    classes=("Glm4MoeForCausalLM",),
    model_type="glm4_moe",
    models="GLM-4.5, GLM-4.5-Air, GLM-4.6, GLM-4.7",
    names=MOE_NAMES,
    rules=(*MLP_EXPERTS, SCORE_CORRECTION),
    required=required,
    shapes={**EXPERT_SHAPES, **SHARED_EXPERTS_SHAPES, **NEXTN_SHAPES},
    blocks=with_guessing,
    bias_flags={"attention_bias": BIASES},
    experts=EXPERTS,
    keys=(
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("expert_shared_count", "n_shared_experts", Kind.INTEGER),
        Key("leading_dense_block_count", "first_k_dense_replace", Kind.INTEGER),
        Key("expert_weights_scale", "routed_scaling_factor", Kind.NUMBER),
        Key("expert_weights_norm", "norm_topk_prob", Kind.FLAG),
        Key("nextn_predict_layers", GUESSING, Kind.INTEGER),
    ),
    computed=computed_moe,
    returned=_returned,
    entries=frozenset({"use_qk_norm", "num_mtp_layers"}),
    defaults={
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "num_hidden_layers": 46,
        "num_attention_heads": 96, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1408, "num_experts_per_tok": 8, "n_shared_experts": 1, "n_routed_experts": 128,
        "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "norm_topk_prob": True, "tie_word_embeddings": False, "partial_rotary_factor": 0.5,
    },
)  # fmt: skip
