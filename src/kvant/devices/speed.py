"""Predict tokens per second of generation from the bytes a token touches.

    seconds per token = max(bytes / bandwidth of memory, sum over types of bytes / (cores * rate of the type))

Every weight that takes part is read once per token: not the rows of an embedding that are not looked up, nor the
experts that the router leaves out (`active.py`). A few cores cannot keep
up with memory when they also have to decode blocks, hence the second term. An estimate to rule variants out by; what
was measured replaces it.
"""

import math
from collections.abc import Mapping

from kvant.devices.active import read_share
from kvant.devices.cache import Hyperparameters
from kvant.devices.memory import OUTPUT
from kvant.dtypes import BlockType, Family

# Bytes of weights that one AVX2 core multiplies per second, by how they are coded. Measured with xllamacpp
# 2026.10.11549 on one core of an x86-64 server while generating with SmolLM2-135M; codebook types are from memory-bound
# table look-ups and vary most.
CORE_BYTES_S: Mapping[Family, float] = {
    Family.FLOAT: 10e9, Family.INTEGER: 10e9, Family.LEGACY: 5.5e9, Family.K_QUANT: 4.3e9, Family.IQ4: 5.2e9,
    Family.CODEBOOK: 1.8e9, Family.TERNARY: 3.0e9, Family.MICROSCALED: 4.0e9, Family.BINARY: 2.0e9,
}  # fmt: skip


def bytes_per_token(
    types: Mapping[str, BlockType], shapes: Mapping[str, tuple[int, ...]], model: Hyperparameters
) -> dict[Family, int]:
    """Bytes that generating one token reads, by the family of their block type."""
    is_tied = OUTPUT not in types
    touched: dict[Family, float] = {}
    for name, kind in types.items():
        shape = shapes[name] or (1,)
        size = math.prod(shape[:-1]) * kind.row_bytes(shape[-1])
        share = read_share(name, shape, model, is_tied=is_tied)
        touched[kind.family] = touched.get(kind.family, 0) + size * share
    return {family: round(size) for family, size in touched.items()}


def predict_speed(touched: Mapping[Family, int], *, bandwidth_bytes_s: float, cores: int, core_scale: float) -> float:
    """Predict generation speed, tokens per second.

    Args:
        touched: Bytes per token by family, from `bytes_per_token`.
        bandwidth_bytes_s: Read bandwidth of memory.
        cores: Cores that work.
        core_scale: Speed of one core as a share of the AVX2 core of the table.

    Returns:
        Tokens per second at a short context.
    """
    from_memory = sum(touched.values()) / bandwidth_bytes_s
    from_cores = sum(size / CORE_BYTES_S[family] for family, size in touched.items()) / (cores * core_scale)
    return 1 / max(from_memory, from_cores, 1e-9)


def weight_seconds(kind: BlockType, *, bandwidth_bytes_s: float, cores: int, core_scale: float) -> float:
    """Predict the seconds per generated token that one weight takes: the larger of both bounds.

    Summed over weights it is at least what `predict_speed` gives, since that takes the larger of two sums.
    """
    size = kind.block_bytes / kind.block_length
    return max(size / bandwidth_bytes_s, size / (CORE_BYTES_S[kind.family] * cores * core_scale))
