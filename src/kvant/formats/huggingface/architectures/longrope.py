"""Rotary factors for short and long contexts (LongRoPE), as tensors: Phi-3, Phi-3.5, Phi-4-mini."""

import math
from typing import Any

import numpy as np

from kvant.dtypes import F32
from kvant.errors import FormatError
from kvant.formats.huggingface.architectures.hyper import integer, number, shortest
from kvant.formats.huggingface.architectures.keys import config_entries, file_type
from kvant.formats.huggingface.architectures.rope import config_theta
from kvant.formats.huggingface.config import ORIGINAL_LENGTH, Config
from kvant.kernels import decode
from kvant.metadata import Value, f32, u32
from kvant.model import Model
from kvant.tensors import LazyTensor, array_tensor, row_length

LONG = frozenset({"longrope", "su", "yarn"})
"""Names of its rotary scaling; by the last two transformers means the first here."""

FLOAT32_ERROR = 1e-6
"""Relative; what a factor loses on its way through metadata."""

FACTORS = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
"""Tensors that hold the divisors of the rotary frequencies, and their names in config.json."""


def rotary_dims(config: Config) -> int:
    """Return how many components of a head are rotated."""
    share = config.rotary_share
    return int(share * config.integer("hidden_size")) // config.integer("num_attention_heads")


def is_long(config: Config) -> bool:
    """Whether the rotary frequencies have divisors; transformers passes over those of another `rope_type`."""
    return config.rope["rope_type"] in LONG


def phi3_metadata(config: Config) -> dict[str, Value]:
    """Return the hyperparameters; a window of 0 says that there is none."""
    original = config.integer(ORIGINAL_LENGTH)
    found: dict[str, Value] = {}
    if is_long(config):
        found["phi3.rope.scaling.attn_factor"] = f32(attention_factor(config, original))
    return {
        **found,
        "phi3.context_length": u32(config.integer("max_position_embeddings")),
        "phi3.rope.scaling.original_context_length": u32(original),
        "phi3.embedding_length": u32(config.integer("hidden_size")),
        "phi3.feed_forward_length": u32(config.integer("intermediate_size")),
        "phi3.block_count": u32(config.n_layers),
        "phi3.attention.head_count": u32(config.integer("num_attention_heads")),
        "phi3.attention.head_count_kv": u32(config.integer("num_key_value_heads")),
        "phi3.attention.layer_norm_rms_epsilon": f32(config.number("rms_norm_eps")),
        "phi3.rope.dimension_count": u32(rotary_dims(config)),
        "phi3.rope.freq_base": f32(config_theta(config)),
        **file_type(),
        "phi3.attention.sliding_window": u32(config.integer("sliding_window") if config.get("sliding_window") else 0),
    }


def attention_factor(config: Config, original: int) -> float:
    """Return by how much the long context lengthens queries and keys: sqrt(1 + log(scale) / log(original length)).

    The scale is how much longer the context became; a model may state it, or the result.
    """
    rope = Config(values=config.rope, path=config.path)
    if rope.get("attention_factor") is not None:
        return rope.number("attention_factor")
    scale = rope.number("factor", config.integer("max_position_embeddings") / original)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 and original > 1 else 1.0


def long_factors(config: Config) -> list[LazyTensor]:
    """Return the rotary factors of models with a long context.

    Raises:
        FormatError: The lists are absent, of another length than half the rotated components, or not numbers.
    """
    if not is_long(config):
        return []
    wanted, found = rotary_dims(config) // 2, []
    for name, key in FACTORS.items():
        values = config.rope.get(key)
        if (
            not isinstance(values, list)
            or len(values) != wanted
            or not all(isinstance(v, (int, float)) for v in values)
        ):
            raise FormatError(f"{config.path}: {key} is not a list of {wanted} numbers. Correct it.")
        found.append(array_tensor(name, np.array(values, np.float32), F32))
    return found


def phi3_entries(model: Model) -> dict[str, Any]:
    """Return the entries of config.json."""
    entries = config_entries(model)
    head_dim = max(1, entries["hidden_size"] // entries["num_attention_heads"])
    length = entries["max_position_embeddings"]
    entries[ORIGINAL_LENGTH] = integer(model, "rope.scaling.original_context_length", length)
    entries["partial_rotary_factor"] = integer(model, "rope.dimension_count", head_dim) / head_dim
    entries["sliding_window"] = integer(model, "attention.sliding_window", 0, least=0) or None
    if all(name in model.tensors for name in FACTORS):
        entries["rope_scaling"] = {"type": "longrope"}
        derived = attention_factor(Config(values=entries, path=model.path), entries[ORIGINAL_LENGTH])
        stated = number(model, "rope.scaling.attn_factor", derived)
        if abs(stated - derived) > FLOAT32_ERROR * derived:
            entries["rope_scaling"]["attention_factor"] = stated
        for name, key in FACTORS.items():
            tensor = model.tensors[name]
            values = decode(tensor.read_bytes(0, 1), tensor.block_type, row_length(tensor))[0]
            entries["rope_scaling"][key] = [shortest(value) for value in values]
    return entries
