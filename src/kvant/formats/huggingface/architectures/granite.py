"""Granite 3: Llama's layout, with four multipliers."""

from typing import Any

from kvant.formats.huggingface.architectures.base import (
    ATTENTION_BIASES,
    LLAMA_FLAGS,
    MLP_BIASES,
    ROTARY,
    Family,
    config_entries,
)
from kvant.formats.huggingface.architectures.hyper import number
from kvant.formats.huggingface.architectures.llama import llama_metadata
from kvant.formats.huggingface.architectures.rope import check_whole_rotation
from kvant.formats.huggingface.config import Config
from kvant.metadata import Value, f32
from kvant.model import Model

MULTIPLIERS: tuple[tuple[str, str], ...] = (
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("residual_scale", "residual_multiplier"),
    ("logit_scale", "logits_scaling"),
)
"""GGUF key, config.json key."""


def metadata(config: Config) -> dict[str, Value]:
    """Return Llama's hyperparameters, without a head length that llama.cpp derives itself, and the multipliers."""
    derived = config.integer("hidden_size") // config.integer("num_attention_heads")
    left_out = {"head_dim"} if config.head_dim == derived else set()
    plain = Config(values={k: v for k, v in config.values.items() if k not in left_out}, path=config.path)
    scales = {f"granite.{ours}": f32(config.number(theirs)) for ours, theirs in MULTIPLIERS}
    return {**llama_metadata(plain, "granite"), **scales}


def back(model: Model) -> dict[str, Any]:
    """Return the entries of config.json."""
    scales = {theirs: number(model, ours, 1.0) for ours, theirs in MULTIPLIERS}
    return {**config_entries(model), **scales}


GRANITE = Family(
    architecture="granite",
    classes=("GraniteForCausalLM",),
    model_type="granite",
    transforms=ROTARY,
    check=check_whole_rotation,
    entries=frozenset(theirs for _, theirs in MULTIPLIERS),
    bias_flags=LLAMA_FLAGS,
    engine_biases=frozenset((*ATTENTION_BIASES, *MLP_BIASES)),
    metadata=metadata,
    config=back,
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        **{theirs: 1.0 for _, theirs in MULTIPLIERS},
    },
)  # fmt: skip
