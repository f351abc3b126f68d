"""Gemma 4: E2B and E4B (embeddings per layer, shared keys and values), 31B and 12B (dense), 26B-A4B (experts).

Full layers have heads of another length, may use their keys as values, and rotate a quarter of each head in place: the
other pairs get a factor so large that they stand still (`rope_freqs`).

Source: llama.cpp 0.3.36 `conversion/gemma.py` `Gemma4Model`, `src/models/gemma4.cpp`; transformers 5.24
`configuration_gemma4.py`.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kvant.dtypes import F32
from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.gemma3 import GEMMA_NORMS
from kvant.formats.huggingface.architectures.gemma_layers import (
    PER_LAYER_NAMES,
    PER_LAYER_OUTSIDE,
    WINDOWED,
    check_sharing,
    has_keys,
    layer_kinds,
    per_layer_shapes,
)
from kvant.formats.huggingface.architectures.keys import EXPERTS, Key, Kind, booleans, integers
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, GLOBAL_NAMES, QK_NORMS, Rule
from kvant.formats.huggingface.config import MAX_HEAD_DIM, Config, shown
from kvant.metadata import Value, u32
from kvant.tensors import LazyTensor, array_tensor

STANDS_STILL = 1e30
"""Factor by which rotary frequencies of pairs that do not rotate are divided."""

_EXPERT_NORMS = {
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2", "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
}  # fmt: skip
_EXPERT_RULES = (
    Rule("ffn_gate_inp.scale", "router.scale"),
    Rule("ffn_down_exps.scale", "router.per_expert_scale"),
    Rule("ffn_gate_up_exps.weight", "experts.gate_up_proj"),
    Rule("ffn_down_exps.weight", "experts.down_proj"),
)
_ROTARY = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}


def kinds(config: Config) -> list[str]:
    """Return the kind of each layer; the last is a full one whatever is said, as in transformers."""
    return [*layer_kinds(config, 6)[:-1], "full_attention"]


def overrides(config: Config) -> Mapping[str, Any]:
    """Return what full layers have otherwise than windowed ones: length of a head, and heads of keys.

    transformers 5 writes it as `per_layer_config`, published models as entries of their own.

    Raises:
        UnsupportedModelError: `per_layer_config` is not the same for all full layers and only for them.
    """
    stated = config.get("per_layer_config")
    if not stated:
        own = config.flag("attention_k_eq_v") and config.get("num_global_key_value_heads")
        heads = {"num_key_value_heads": config.get("num_global_key_value_heads")} if own else {}
        return {"head_dim": config.get("global_head_dim", 512), **heads}
    full = {str(layer) for layer, kind in enumerate(kinds(config)) if kind != WINDOWED}
    each = list(stated.values()) if isinstance(stated, Mapping) else []
    if not each or set(stated) != full or any(one != each[0] for one in each) or not _is_override(each[0]):
        raise UnsupportedModelError(
            f"{config.path}: per_layer_config is {shown(stated)}, not one head_dim and num_key_value_heads for all "
            f"full layers, which is what llama.cpp's gemma4 has. Such a model cannot be stored as GGUF."
        )
    return dict(each[0])


def _is_override(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) <= {"head_dim", "num_key_value_heads"}


def of_kind(config: Config, kind: str, key: str) -> int:
    """Return `head_dim` or `num_key_value_heads` in layers of a kind."""
    own = {} if kind == WINDOWED else overrides(config)
    return replace(config, values={**config.values, **own}).integer(key, limit=MAX_HEAD_DIM)


def ffn_length(config: Config, layer: int) -> int:
    """Return the length of a layer's MLP; those that share keys and values may have one twice as wide."""
    double = config.flag("use_double_wide_mlp") and not has_keys(config, layer)
    return config.integer("intermediate_size") * (2 if double else 1)


def check(config: Config) -> None:
    """Refuse what llama.cpp's gemma4 would compute differently."""
    check_sharing(config, kinds(config))
    overrides(config)
    local = config.local_rope
    wrong = {
        "rope_type of sliding_attention": local["rope_type"] != "default",
        "partial_rotary_factor of sliding_attention": local.get("partial_rotary_factor", 1) != 1,
        "the factor of full_attention": config.rope.get("factor", 1) != 1,
        "use_bidirectional_attention": config.get("use_bidirectional_attention") == "all",
    }  # fmt: skip
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise UnsupportedModelError(
                f"{config.path}: {what} asks for what llama.cpp's gemma4 does not compute. Such a model cannot be "
                f"stored as GGUF."
            )


def required(config: Config, layer: int) -> Collection[str]:
    """Return the stems that a block must have."""
    keys = ("attn_k", "attn_k_norm") if has_keys(config, layer) else ()
    shares = config.flag("attention_k_eq_v") and kinds(config)[layer] != WINDOWED
    values = ("attn_v",) if keys and not shares else ()
    always = [stem for stem in (*BLOCK_NAMES, *GEMMA_NORMS, "attn_q_norm") if stem not in ("attn_k", "attn_v")]
    experts = [rule.ours.removesuffix(".weight") for rule in _EXPERT_RULES]
    return (
        *always, *keys, *values, *(PER_LAYER_NAMES if config.get("hidden_size_per_layer_input") else ()),
        *((*_EXPERT_NORMS, "ffn_gate_inp", *experts) if config.flag("enable_moe_block") else ()),
    )  # fmt: skip


def shapes_in(config: Config, layer: int | None) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of a block's matrices that are not those of all blocks."""
    if layer is None:
        return per_layer_shapes(config, layer)
    kind, hidden = kinds(config)[layer], config.integer("hidden_size")
    head, ffn = of_kind(config, kind, "head_dim"), ffn_length(config, layer)
    queries, keys = config.integer("num_attention_heads") * head, of_kind(config, kind, "num_key_value_heads") * head
    return {
        **per_layer_shapes(config, layer),
        "attn_q": (queries, hidden), "attn_k": (keys, hidden), "attn_v": (keys, hidden),
        "attn_output": (hidden, queries), "attn_q_norm": (head,), "attn_k_norm": (head,),
        "ffn_gate": (ffn, hidden), "ffn_up": (ffn, hidden), "ffn_down": (hidden, ffn),
    }  # fmt: skip


def computed(config: Config) -> dict[str, Value]:
    """Return what depends on the kind of a layer."""
    layers = kinds(config)
    found = {"attention.sliding_window_pattern": booleans([kind == WINDOWED for kind in layers])}
    for suffix, kind in (("", "full_attention"), ("_swa", WINDOWED)):
        length = u32(of_kind(config, kind, "head_dim"))
        found |= {f"attention.{part}_length{suffix}": length for part in ("key", "value")}
        found[f"rope.dimension_count{suffix}"] = length
    if config.flag("use_double_wide_mlp"):
        found["feed_forward_length"] = integers([ffn_length(config, layer) for layer in range(config.n_layers)])
    if "num_key_value_heads" in overrides(config):
        found["attention.head_count_kv"] = integers([of_kind(config, kind, "num_key_value_heads") for kind in layers])
    return found


def frequencies(config: Config) -> list[LazyTensor]:
    """Return the factors of rotary frequencies in full layers: the last pairs of each head stand still."""
    length = of_kind(config, "full_attention", "head_dim")
    n_rotated = int(length * config.rotary_share / 2)
    factors = np.full(length // 2, STANDS_STILL, np.float32)
    factors[:n_rotated] = 1
    return [array_tensor("rope_freqs.weight", factors, F32)]


_ENTRIES = frozenset({
    "text_config", "vision_config", "audio_config", "hidden_activation", "sliding_window", "layer_types",
    "global_head_dim", "num_global_key_value_heads", "per_layer_config", "attention_k_eq_v", "use_double_wide_mlp",
    "enable_moe_block", "vocab_size_per_layer_input", "final_logit_softcapping", "use_bidirectional_attention",
    "cache_implementation", "boi_token_id", "eoi_token_id", "image_token_id", "video_token_id", "boa_token_id",
    "eoa_token_id", "eoa_token_index", "audio_token_id", "vision_soft_tokens_per_image",
})  # fmt: skip

GEMMA4 = Family(
    architecture="gemma4",
    classes=("Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"),
    model_type="gemma4_text",
    models="Gemma 4: E2B, E4B, 31B, 26B-A4B (text part)",
    activation="gelu_pytorch_tanh",
    rope_types=frozenset({"proportional"}),
    names={**BLOCK_NAMES, **GEMMA_NORMS, **QK_NORMS, **PER_LAYER_NAMES, **_EXPERT_NORMS, "ffn_gate_inp": "router.proj"},
    outside={**GLOBAL_NAMES, **PER_LAYER_OUTSIDE},
    rules=(Rule("layer_output_scale.weight", "layer_scalar"), *_EXPERT_RULES),
    required=required,
    shapes_in=shapes_in,
    experts=EXPERTS,
    keys=(
        Key("final_logit_softcapping", "final_logit_softcapping", Kind.NUMBER),
        Key("attention.sliding_window", "sliding_window"),
        Key("attention.shared_kv_layers", "num_kv_shared_layers", Kind.INTEGER),
        Key("embedding_length_per_layer_input", "hidden_size_per_layer_input", Kind.INTEGER),
        Key("expert_feed_forward_length", "expert_intermediate_size|moe_intermediate_size"),
    ),
    computed=computed,
    extra_tensors=frequencies,
    check=check,
    one_way="what its two kinds of layers differ in is not read back from metadata",
    entries=_ENTRIES,
    bias_flags={"attention_bias": ATTENTION_BIASES},
    engine_biases=frozenset(),
    defaults={
        "vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_parameters": _ROTARY, "sliding_window": 512, "hidden_size_per_layer_input": 256,
        "num_kv_shared_layers": 0, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
    },
)  # fmt: skip

GEMMA4UNIFIED = replace(
    GEMMA4,
    classes=("Gemma4UnifiedForConditionalGeneration", "Gemma4UnifiedForCausalLM"),
    model_type="gemma4_unified_text",
    models="Gemma 4 12B (text part)",
    skipped=("model.vision_embedder.", "vision_embedder."),
    defaults={
        **GEMMA4.defaults, "max_position_embeddings": 262144, "sliding_window": 1024, "hidden_size_per_layer_input": 0,
    },
)  # fmt: skip
