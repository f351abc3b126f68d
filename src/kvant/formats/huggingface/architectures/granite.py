"""Granite 3: Llama's layout, with four multipliers."""

from typing import Any

from kvant.formats.huggingface.architectures.base import ROTARY, Family, config_entries, number
from kvant.formats.huggingface.architectures.llama import llama_metadata
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
    """Return Llama's hyperparameters without a head length, which llama.cpp derives here, and the multipliers."""
    plain = Config(values={k: v for k, v in config.values.items() if k != "head_dim"}, path=config.path)
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
    metadata=metadata,
    config=back,
    defaults={
        "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        **{theirs: 1.0 for _, theirs in MULTIPLIERS},
    },
)  # fmt: skip
