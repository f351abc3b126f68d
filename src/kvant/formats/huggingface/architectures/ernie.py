"""ERNIE 4.5, dense and as mixtures of experts: rotary pairs are neighbours already, so nothing is reordered."""

import dataclasses

from kvant.formats.huggingface.architectures.experts import EXPERT_SHAPES, EXPERT_STEMS, MLP_EXPERTS
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import Key, Kind
from kvant.formats.huggingface.architectures.names import (
    ATTENTION_BIASES,
    ATTENTION_NAMES,
    BLOCK_NAMES,
    MLP_BIASES,
    MLP_NAMES,
    Rule,
)
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import AS_FLOAT32
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, u32

ERNIE4_5 = Family(
    architecture="ernie4_5",
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    model_type="ernie4_5",
    models="ERNIE 4.5 0.3B",
    check=check_whole_rotation,
    bias_flags={"use_bias": (*ATTENTION_BIASES, *MLP_BIASES)},
    entries=frozenset({"use_bias", "use_rmsnorm"}),
    defaults={
        "vocab_size": 103424, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "num_key_value_heads": 2,
        "head_dim": 128, "rope_theta": 500000.0, "tie_word_embeddings": True,
    },
)  # fmt: skip

SHARED = {
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}


def check(config: Config) -> None:
    """Refuse dense layers after the first ones of experts: llama.cpp has those before them only."""
    check_whole_rotation(config)
    check_values(config, "ernie4_5-moe", moe_layer_interval=1, moe_use_aux_free=True, moe_gate="topk")
    last = config.get("moe_layer_end_index", -1)
    if last != -1:
        check_values(config, "ernie4_5-moe", moe_layer_end_index=config.n_layers - 1)


def _stems(config: Config, layer: int) -> tuple[str, ...]:
    if layer < config.integer("moe_layer_start_index", 1, least=0):
        return tuple(BLOCK_NAMES)
    return (*ATTENTION_NAMES, *EXPERT_STEMS, *(SHARED if _n_shared(config) else ()))


def _n_shared(config: Config) -> int:
    return config.integer("moe_num_shared_experts", 0, least=0)


def _computed(config: Config) -> dict[str, Value]:
    """Return the width of the shared experts together."""
    shared, width = _n_shared(config), config.integer("moe_intermediate_size")
    return {"expert_shared_feed_forward_length": u32(width * shared)} if shared else {}


ERNIE4_5_MOE = dataclasses.replace(
    ERNIE4_5,
    architecture="ernie4_5-moe",
    classes=("Ernie4_5_MoeForCausalLM",),
    model_type="ernie4_5_moe",
    models="ERNIE 4.5 21B-A3B, 300B-A47B",
    check=check,
    names={**ATTENTION_NAMES, **MLP_NAMES, "ffn_gate_inp": "mlp.gate", **SHARED},
    rules=(
        *MLP_EXPERTS,
        Rule("exp_probs_b.bias", "mlp.moe_statics.e_score_correction_bias", AS_FLOAT32),
        Rule("exp_probs_b.bias", "mlp.gate.moe_statics.e_score_correction_bias", AS_FLOAT32),
    ),
    required=_stems,
    skipped=("model.mtp_",),
    shapes=EXPERT_SHAPES,
    experts=(Key("expert_count", "moe_num_experts"), Key("expert_used_count", "moe_k")),
    keys=(
        Key("interleave_moe_layer_step", "moe_layer_interval"),
        Key("leading_dense_block_count", "moe_layer_start_index", Kind.INTEGER),
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("expert_shared_count", "moe_num_shared_experts", Kind.INTEGER),
    ),
    computed=_computed,
    entries=frozenset({
        "use_bias", "use_rmsnorm", "moe_gate", "moe_layer_end_index", "moe_use_aux_free", "moe_norm_min",
        "moe_capacity",
    }),
    defaults={
        **{key: value for key, value in ERNIE4_5.defaults.items() if key != "head_dim"},
        "num_key_value_heads": 4, "intermediate_size": 12288, "moe_intermediate_size": 1536, "moe_k": 6,
        "moe_num_experts": 64, "moe_num_shared_experts": 2, "moe_layer_start_index": 1, "moe_layer_interval": 1,
    },
)  # fmt: skip
