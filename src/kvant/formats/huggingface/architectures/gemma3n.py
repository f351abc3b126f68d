"""Gemma 3n: four streams predicted and corrected by layer (AltUp), a low-rank bypass (LAuReL), embeddings per layer.

llama.cpp has the sizes of E2B and E4B as constants, and so refuses or computes others differently: 4 streams, a bypass
of rank 64, embeddings of 256, keys and values of their own up to layer 20, and sparse activations in the first ten.

Source: llama.cpp 0.3.36 `conversion/gemma.py` `Gemma3NModel`, `src/models/gemma3n.cpp`, `llama-hparams.h`; transformers
5.24 `configuration_gemma3n.py`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

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
    n_shared,
    per_layer_shapes,
)
from kvant.formats.huggingface.architectures.keys import Key, Kind, booleans, integers
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, GLOBAL_NAMES, QK_NORMS, Rule
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import PADDED
from kvant.formats.huggingface.config import Config, shown
from kvant.formats.huggingface.lazy import zeros
from kvant.metadata import Value, ValueType, array
from kvant.tensors import LazyTensor

LAYERS_WITH_KEYS, SPARSE_LAYERS, SPARSITY = 20, 10, 0.95
SPARSE_SCALE = 1.6448535919189453
"""Standard deviations below which 95 % of a normal distribution lie, as torch computes it in float32."""

_FIXED = {
    "altup_num_inputs": 4, "laurel_rank": 64, "hidden_size_per_layer_input": 256, "altup_active_idx": 0,
    "altup_correct_scale": True,
}  # fmt: skip
_PROJECTIONS = "_altup_projections"
_ABSENT = "_shared_keys_are_absent"
_STREAMS = {
    "altup_correct_coef": "altup.correction_coefs", "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router", "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left", "laurel_r": "laurel.linear_right", "laurel_post_norm": "laurel.post_laurel_norm",
}  # fmt: skip
_NAMES = {**BLOCK_NAMES, **GEMMA_NORMS, **QK_NORMS, **PER_LAYER_NAMES, **_STREAMS}


def check(config: Config) -> None:
    """Refuse what llama.cpp's gemma3n would compute differently."""
    check_whole_rotation(config)
    own = config.n_layers - n_shared(config)
    fixed = {
        **_FIXED, "num_kv_shared_layers": max(0, config.n_layers - LAYERS_WITH_KEYS),
        "activation_sparsity_pattern": [SPARSITY if n < SPARSE_LAYERS else 0.0 for n in range(config.n_layers)],
    }  # fmt: skip
    for key, wanted in fixed.items():
        if config.get(key) != wanted:
            raise UnsupportedModelError(
                f"{config.path}: {key} is {shown(config.get(key))}, but llama.cpp's gemma3n computes {shown(wanted)} "
                f"at {config.n_layers} layers. Such a model cannot be stored as GGUF."
            )
    if own < config.n_layers:
        check_sharing(config, layer_kinds(config, 5))
    if config.local_rope["rope_type"] != "default" or not config.get("final_logit_softcapping"):
        raise UnsupportedModelError(
            f"{config.path}: llama.cpp's gemma3n rotates windowed layers without scaling and caps its logits. A model "
            f"that does not cannot be stored as GGUF."
        )


def derived(config: Config) -> Mapping[str, Any]:
    """Return the one length of all MLPs, which may be said for each layer, and which layers are sparse.

    Raises:
        UnsupportedModelError: The lengths differ.
    """
    lengths = config.get("intermediate_size")
    lengths = lengths if isinstance(lengths, list) else [lengths]
    if any(length != lengths[0] for length in lengths) or not lengths:
        raise UnsupportedModelError(
            f"{config.path}: intermediate_size is {shown(lengths)}, but llama.cpp's gemma3n has one length for all "
            f"layers. Such a model cannot be stored as GGUF."
        )
    sparse = SPARSE_LAYERS if config.n_layers > SPARSE_LAYERS else 0
    default = [SPARSITY] * sparse + [0.0] * (config.n_layers - sparse)
    stated = config.get("activation_sparsity_pattern", default)
    every = [stated] * config.n_layers if isinstance(stated, float) else stated
    projections = _FIXED["altup_num_inputs"] - 1
    return {"intermediate_size": lengths[0], _PROJECTIONS: projections, "activation_sparsity_pattern": every}


def seen(config: Config, names: Collection[str]) -> Mapping[str, Any]:
    """Return whether layers that share keys and values lack those of their own, as transformers 5 saves them."""
    first = config.n_layers - n_shared(config)
    return {_ABSENT: not any(f"layers.{first}.self_attn.k_proj.weight" in name for name in names)}


def unused_keys(config: Config) -> list[LazyTensor]:
    """Return zeros for keys and values that the engine asks for and never reads, where the checkpoint has none."""
    hidden, rows = config.integer("hidden_size"), config.integer("num_key_value_heads") * config.head_dim
    shapes = {"attn_k": (rows, hidden), "attn_v": (rows, hidden), "attn_k_norm": (config.head_dim,)}
    layers = [n for n in range(config.n_layers) if not has_keys(config, n)] if config.flag(_ABSENT) else []
    return [zeros(f"blk.{n}.{stem}.weight", shape) for n in layers for stem, shape in shapes.items()]


def computed(config: Config) -> dict[str, Value]:
    """Return what is said of each layer."""
    windowed = [kind == WINDOWED for kind in layer_kinds(config, 5)]
    scales = [SPARSE_SCALE if share else -np.inf for share in config.get("activation_sparsity_pattern")]
    return {
        "feed_forward_length": integers([config.integer("intermediate_size")] * config.n_layers),
        "activation_sparsity_scale": array(ValueType.FLOAT32, np.asarray(scales, np.float32)),
        "attention.sliding_window_pattern": booleans(windowed),
    }


_PROJECTION_RULES = (
    Rule("altup_proj.weight", "model.altup_projections.{}.weight", count=_PROJECTIONS),
    Rule("altup_unembd_proj.weight", "model.altup_unembed_projections.{}.weight", count=_PROJECTIONS),
)
_ENTRIES = frozenset({
    "text_config", "vision_config", "audio_config", "hidden_activation", "layer_types", "rope_local_base_freq",
    "laurel_rank", "altup_coef_clip", "altup_correct_scale", "activation_sparsity_pattern",
    "vocab_size_per_layer_input", "cache_implementation", "image_token_id", "audio_token_id", "boi_token_id",
    "eoi_token_id", "boa_token_id", "eoa_token_id", "eoa_token_index", "vision_soft_tokens_per_image",
    "audio_soft_tokens_per_image", "query_pre_attn_scalar",
})  # fmt: skip

GEMMA3N = Family(
    architecture="gemma3n",
    classes=("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    model_type="gemma3n_text",
    models="Gemma 3n: E2B, E4B (text part)",
    activation="gelu_pytorch_tanh",
    rope_types=frozenset({"default", "linear"}),
    names=_NAMES,
    outside={**GLOBAL_NAMES, **PER_LAYER_OUTSIDE},
    rules=(Rule("altup_correct_scale.weight", "altup.correct_output_scale"),),
    outside_rules=_PROJECTION_RULES,
    transforms={"token_embd": PADDED, "per_layer_token_embd": PADDED},
    required=(*_NAMES, "altup_correct_scale"),
    shapes_in=per_layer_shapes,
    keys=(
        Key("final_logit_softcapping", "final_logit_softcapping", Kind.NUMBER),
        Key("attention.sliding_window", "sliding_window"),
        Key("attention.shared_kv_layers", "num_kv_shared_layers", Kind.INTEGER),
        Key("embedding_length_per_layer_input", "hidden_size_per_layer_input"),
        Key("altup.active_idx", "altup_active_idx", Kind.INTEGER),
        Key("altup.num_inputs", "altup_num_inputs"),
    ),
    computed=computed,
    derived=derived,
    seen=seen,
    extra_tensors=unused_keys,
    check=check,
    one_way="its embeddings are filled with rows that the original does not have",
    entries=_ENTRIES,
    bias_flags={"attention_bias": ATTENTION_BIASES},
    engine_biases=frozenset(),
    defaults={
        "vocab_size": 262400, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 35,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 512,
        "final_logit_softcapping": 30.0, "num_kv_shared_layers": 15, "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh", **_FIXED,
    },
)  # fmt: skip
