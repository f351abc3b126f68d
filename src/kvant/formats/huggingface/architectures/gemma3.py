"""Gemma 3 (text): norms stored without their 1, four norms per block, windowed layers with their own rotary base."""

from typing import Any

from kvant.errors import UnsupportedModelError
from kvant.formats.huggingface.architectures.family import Family
from kvant.formats.huggingface.architectures.hyper import has, integer, number
from kvant.formats.huggingface.architectures.keys import config_entries
from kvant.formats.huggingface.architectures.names import ATTENTION_BIASES, BLOCK_NAMES, QK_NORMS
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.architectures.transforms import PLUS_ONE
from kvant.formats.huggingface.config import Config, shown
from kvant.metadata import Value, f32, u32
from kvant.model import Model

PATTERN = 6
"""llama.cpp's default: every sixth layer attends to everything, the others to a window."""

LAYERS_27B = 62
"""The one size whose queries are scaled by hidden size over heads instead of by head length."""

GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Norms of a block beside the first, from Gemma 2 on."""

_NORMS = {**QK_NORMS, **GEMMA_NORMS}


def pattern(config: Config) -> int:
    """Return after how many layers one attends to everything.

    Raises:
        UnsupportedModelError: `layer_types` has no such period.
    """
    period = config.integer("sliding_window_pattern", PATTERN)
    kinds = config.items("layer_types")
    if kinds is not None:
        full = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
        period = full[0] + 1 if full else max(PATTERN, len(kinds) + 1)
        if kinds != ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(len(kinds))]:
            raise UnsupportedModelError(
                f"{config.path}: layer_types is not full_attention after every {period - 1} windowed layers, which is "
                f"all that llama.cpp's gemma3 computes. Such a model cannot be stored as GGUF."
            )
    return period


def check(config: Config) -> None:
    """Refuse what llama.cpp's gemma3 would compute differently."""
    check_whole_rotation(config)
    local = config.local_rope
    if local["rope_type"] != "default" or local.get("partial_rotary_factor", 1.0) != 1:
        raise UnsupportedModelError(
            f"{config.path}: rope_parameters of sliding_attention are {shown(local)}, but llama.cpp's gemma3 rotates "
            f"windowed layers without scaling. Such a model cannot be stored as GGUF."
        )
    pattern(config)
    check_scale(config, "gemma3", LAYERS_27B)
    for key in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if config.get(key):
            raise UnsupportedModelError(
                f"{config.path}: {key} is {shown(config.get(key))}, which llama.cpp's gemma3 does not compute. "
                f"Such a model cannot be stored as GGUF."
            )


def check_scale(config: Config, architecture: str, layers_27b: int) -> None:
    """Refuse queries that are scaled otherwise than llama.cpp scales them: by head length, in one size by heads."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    expected = hidden // heads if config.n_layers == layers_27b else config.head_dim
    scalar = config.number("query_pre_attn_scalar")
    if scalar != expected:
        raise UnsupportedModelError(
            f"{config.path}: query_pre_attn_scalar is {scalar}, but llama.cpp's {architecture} scales by {expected} at "
            f"{config.n_layers} layers. Such a model cannot be stored as GGUF."
        )


def computed(config: Config) -> dict[str, Value]:
    """Return the window and what differs from llama.cpp's pattern."""
    found: dict[str, Value] = {}
    if config.get("final_logit_softcapping"):
        found["final_logit_softcapping"] = f32(config.number("final_logit_softcapping"))
    period = pattern(config)
    if period != 1:
        found["attention.sliding_window"] = u32(config.integer("sliding_window"))
    if period not in (1, PATTERN) and period <= config.n_layers:
        found["attention.sliding_window_pattern"] = u32(period)
    return found


def back(model: Model) -> dict[str, Any]:
    """Return the entries of config.json."""
    entries = config_entries(model)
    layers, hidden, heads = (entries[k] for k in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    entries["hidden_activation"] = GEMMA3.activation
    entries["head_dim"] = integer(model, "attention.key_length", 256)
    window = integer(model, "attention.sliding_window", 0, least=0)
    period = integer(model, "attention.sliding_window_pattern", PATTERN) if window else 1
    entries["sliding_window"] = window or 4096
    entries["sliding_window_pattern"] = period
    entries["layer_types"] = [
        "sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)
    ]
    entries["rope_local_base_freq"] = number(model, "rope.freq_base_swa", 10000.0)
    entries["query_pre_attn_scalar"] = hidden // heads if layers == LAYERS_27B else entries["head_dim"]
    if has(model, "final_logit_softcapping"):
        entries["final_logit_softcapping"] = number(model, "final_logit_softcapping", 0.0)
    return entries


GEMMA3 = Family(
    architecture="gemma3",
    classes=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    model_type="gemma3_text",
    models="Gemma 3 (text part)",
    since="0.1",
    activation="gelu_pytorch_tanh",
    rope_types=frozenset({"default", "linear"}),
    names={**BLOCK_NAMES, **_NORMS},
    required=(*BLOCK_NAMES, *_NORMS),
    transforms=dict.fromkeys(("attn_norm", "output_norm", *_NORMS), PLUS_ONE),
    check=check,
    entries=frozenset({
        "text_config", "hidden_activation", "rope_local_base_freq", "sliding_window", "sliding_window_pattern",
        "layer_types", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
        "use_bidirectional_attention", "cache_implementation", "vision_config", "boi_token_index", "eoi_token_index",
        "image_token_index", "mm_tokens_per_image", "image_token_id", "boi_token_id", "eoi_token_id",
    }),
    bias_flags={"attention_bias": ATTENTION_BIASES},
    computed=computed,
    config=back,
    defaults={
        "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "sliding_window": 4096,
        "query_pre_attn_scalar": 256, "tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh",
    },
)  # fmt: skip
