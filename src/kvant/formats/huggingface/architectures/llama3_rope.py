"""Llama 3's rotary scaling: divisors of the frequencies as a tensor, computed from config.json and recognised again."""

from typing import Any

import numpy as np

from kvant.dtypes import F32
from kvant.errors import FormatError, UnsupportedModelError
from kvant.formats.huggingface.architectures.keys import config_entries
from kvant.formats.huggingface.architectures.rope import config_theta
from kvant.formats.huggingface.config import ORIGINAL_LENGTH, Config
from kvant.kernels import decode
from kvant.model import Model
from kvant.tensors import LazyTensor, array_tensor, row_length

LLAMA3_SETTINGS = tuple(
    {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1 << power}
    for power in range(8, 18)
)
"""What `rope_freqs.weight` can come from; other settings with the same ratios give the same factors."""

MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6
"""Range of Llama 3's rotary factors; published ones are 1 to 32."""


def rotary_factors(config: Config) -> np.ndarray:
    """Compute Llama 3's divisors of the rotary frequencies, float32 [head_dim / 2].

    Wavelengths below `original / high_freq_factor` tokens keep their frequency, those above
    `original / low_freq_factor` are stretched by `factor`, and between them the inverse divisor is interpolated.

    Source: transformers `modeling_rope_utils._compute_llama3_parameters`; float32 steps as torch takes them, which
    divides a number by a tensor through the reciprocal. Parity in tests/parity/test_upstream_converter.py.
    """
    rope = Config(values=config.rope, path=config.path)
    factor = rope.number("factor", 8.0)
    low, high = rope.number("low_freq_factor", 1.0), rope.number("high_freq_factor", 4.0)
    length = rope.integer(ORIGINAL_LENGTH, config.get("max_position_embeddings"))
    if not MIN_FACTOR <= low < high <= MAX_FACTOR or not MIN_FACTOR <= factor <= MAX_FACTOR:
        raise FormatError(
            f"{config.path}: rope factors {low}, {high} and {factor} are not low < high, and all from {MIN_FACTOR:g} "
            f"to {MAX_FACTOR:g}. Correct them."
        )
    one, exponents = np.float32(1), np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(np.float64(config_theta(config)), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = one / (one / powers) * np.float32(2 * np.pi)
    with np.errstate(all="ignore"):  # outside the middle the interpolation is not used
        smooth = (one / wavelengths * np.float32(length) - np.float32(low)) / np.float32(high - low)
        middle = one / ((one - smooth) / np.float32(factor) + smooth)
    divisors = np.where(wavelengths > length / low, np.float32(factor), middle)
    return np.where(wavelengths < length / high, one, divisors).astype(np.float32)


def llama3_factors(config: Config) -> list[LazyTensor]:
    """Return `rope_freqs.weight` of Llama 3.x; nothing for the others."""
    if config.rope["rope_type"] != "llama3":
        return []
    return [array_tensor("rope_freqs.weight", rotary_factors(config), F32)]


def llama3_entries(model: Model) -> dict[str, Any]:
    """Return the entries of config.json, with Llama 3's rotary scaling recovered from its factors."""
    entries = config_entries(model)
    factors = model.tensors.get("rope_freqs.weight")
    if factors is None:
        return entries
    length = row_length(factors)
    wanted = decode(factors.read_bytes(0, 1), factors.block_type, length)[0]
    for setting in LLAMA3_SETTINGS:
        scaling = {"rope_type": "llama3", "factor": float(wanted.max()), **setting}
        config = Config(values={**entries, "rope_scaling": scaling}, path=model.path)
        if 2 * length == config.head_dim and np.allclose(rotary_factors(config), wanted, rtol=1e-5):
            return {**entries, "rope_scaling": scaling}
    raise UnsupportedModelError(
        f"rope_freqs.weight of {model.path}: its factors are none that Llama 3's rope_scaling gives with "
        f"low_freq_factor 1 and high_freq_factor 4. Convert from the original Hugging Face directory instead."
    )
