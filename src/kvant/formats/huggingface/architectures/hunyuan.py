"""Hunyuan, dense and as mixtures of experts: norms of queries and keys after the rotation, a base stretched by alpha.

Source: llama.cpp 0.3.36 `conversion/hunyuan.py`; transformers 5.24 `compute_ntk_alpha_rope_parameters`.
"""

import math
from collections.abc import Mapping
from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.experts import EXPERT_SHAPES, EXPERT_STEMS, MLP_EXPERTS
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.keys import Key, Kind
from kvant.formats.huggingface.architectures.names import (
    ATTENTION_BIASES,
    ATTENTION_NAMES,
    BLOCK_NAMES,
    MLP_BIASES,
)
from kvant.formats.huggingface.architectures.refusals import check_values
from kvant.formats.huggingface.architectures.rope import check_whole_rotation, config_theta
from kvant.formats.huggingface.config import Config, finite
from kvant.metadata import Value, f32, string, u32

CONTEXT = 1 << 18
"""Tokens that the stretched base is made for, whatever config.json says. Source: Hunyuan-A13B's report."""

_NORMS = {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"}
_ENTRIES = frozenset({
    "alpha", "anyres_pooling_size", "group_limited_greedy", "position_embedding_xdrope",
    "use_qk_norm", "eod_token_id", "org_vocab_size", "use_rotary_pos_emb", "use_cla", "cla_share_factor", "norm_type",
    "mlp_bias", "dense_list", "attention_head_dim", "im_start_id", "im_end_id", "im_newline_id", "image_token_id",
    "text_start_id", "text_end_id", "video_start_id", "video_end_id", "mask_init_id", "pad_id", "eod_id", "rope_type",
    "add_classification_head", "class_num", "pool_type", "num_media_embeds", "skip_cls_token", "sep_id",
})  # fmt: skip


def check(config: Config) -> None:
    """Refuse attention shared between layers, missing norms, and frequencies that depend on the text's length."""
    check_whole_rotation(config)
    check_values(
        config, str(config.get("model_type")), use_qk_norm=True, use_cla=False, position_embedding_xdrope=False
    )
    rope = config.rope
    if rope["rope_type"] == "dynamic" and not rope.get("alpha"):
        raise UnsupportedModelError(
            f"{config.path}: dynamic rotary scaling without alpha depends on the length of the text, which llama.cpp "
            f"does not compute. Such a model cannot be stored as GGUF."
        )


def stretched(config: Config) -> dict[str, Value]:
    """Return the stretched base and the context that it is made for; nothing of a plain rotation."""
    rope = Config(values=config.rope, path=config.path)
    if rope.get("rope_type") != "dynamic":
        return {}
    dim, alpha = config.head_dim, rope.number("alpha")
    base = config_theta(config) * alpha ** (dim / (dim - 2)) if alpha > 0 and dim > 2 else math.nan
    return {
        "rope.freq_base": f32(finite(base, "rope_theta stretched by alpha", config.path)),
        "rope.scaling.type": string("none"),
        "rope.scaling.factor": f32(1.0),
        "rope.scaling.original_context_length": u32(CONTEXT),
        "context_length": u32(CONTEXT),
    }


HUNYUAN = Family(
    architecture="hunyuan-dense",
    classes=("HunYuanDenseV1ForCausalLM",),
    model_type="hunyuan_v1_dense",
    models="Hunyuan 0.5B to 7B, Hunyuan-MT",
    rope_types=frozenset({"default", "dynamic"}),
    names={**BLOCK_NAMES, **_NORMS},
    required=(*BLOCK_NAMES, *_NORMS),
    check=check,
    computed=stretched,
    bias_flags={"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES},
    entries=_ENTRIES,
    defaults={
        "vocab_size": 290943, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
)  # fmt: skip

_SHARED = {
    "ffn_gate_inp": "mlp.gate.wg", "ffn_gate_shexp": "mlp.shared_mlp.gate_proj",
    "ffn_up_shexp": "mlp.shared_mlp.up_proj", "ffn_down_shexp": "mlp.shared_mlp.down_proj",
}  # fmt: skip
_BY_LAYER = ("moe_topk", "moe_intermediate_size", "num_shared_expert", "num_experts")


def _same_everywhere(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries that are lists by layer, of one value, as that value."""
    same = {
        key: raw[key][0]
        for key in _BY_LAYER
        if isinstance(raw.get(key), list) and raw[key] and all(value == raw[key][0] for value in raw[key])
    }
    return {**raw, **same}


def _shared_width(config: Config) -> dict[str, Value]:
    width = config.integer("intermediate_size")
    return {**stretched(config), "expert_shared_feed_forward_length": u32(width)}


HUNYUAN_MOE = Family(
    architecture="hunyuan-moe",
    classes=("HunYuanMoEV1ForCausalLM",),
    model_type="hunyuan_v1_moe",
    models="Hunyuan-A13B",
    rope_types=frozenset({"default", "dynamic"}),
    names={**ATTENTION_NAMES, **_NORMS, **_SHARED},
    rules=MLP_EXPERTS,
    spelled=_same_everywhere,
    required=(*ATTENTION_NAMES, *_NORMS, *_SHARED, *EXPERT_STEMS),
    shapes={
        **{stem: tuple(d.replace("moe_", "") for d in dims) for stem, dims in EXPERT_SHAPES.items()},
        "ffn_gate_shexp": ("intermediate_size", "hidden_size"), "ffn_up_shexp": ("intermediate_size", "hidden_size"),
        "ffn_down_shexp": ("hidden_size", "intermediate_size"),
    },
    check=check,
    computed=_shared_width,
    bias_flags={"attention_bias": ATTENTION_BIASES, "mlp_bias": MLP_BIASES},
    experts=(Key("expert_count", "num_experts"), Key("expert_used_count", "moe_topk")),
    keys=(
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("expert_shared_count", "num_shared_expert", Kind.INTEGER),
    ),
    entries=_ENTRIES | {
        "use_mixed_mlp_moe", "moe_drop_tokens", "moe_layer_num_skipped", "moe_random_routing_dropped_token",
        "capacity_factor", "norm_topk_prob", "routed_scaling_factor",
    },
    defaults={
        "vocab_size": 290943, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
)  # fmt: skip
