"""The float16 scales of blocks, apart from everything they multiply: weight = Σ scale * basis.

Decoding is linear in them: with one scale at 1 and the others at 0 a block decodes to that scale's basis, which holds
codes, integer sub-scales and signs. So scales can be fitted to anything that is differentiable in the weights while the
codes, and with them the file's size, stay.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import UnsupportedFormatError
from kvant.kernels.codec import decode

LARGEST = 65504.0
"""Largest finite float16."""

# Byte of a block at which each float16 scale begins: d, then m or dmin. Source: ggml-common.h `block_*`.
OFFSETS: Mapping[str, tuple[int, ...]] = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ3_S": (0,), "IQ3_XXS": (0,), "IQ2_S": (0,), "IQ2_XS": (0,), "IQ2_XXS": (0,), "IQ1_S": (0,),
}  # fmt: skip


def read_scales(blocks: np.ndarray, kind: BlockType) -> tuple[np.ndarray, ...]:
    """Return the scales of blocks, one array per scale of the type.

    Args:
        blocks: Whole rows, uint8 [rows, bytes per row].
        kind: Their type, one of `OFFSETS`.

    Returns:
        Float32 [rows, blocks per row] each.

    Raises:
        UnsupportedFormatError: The type's blocks have no float16 scale.
    """
    split = _split(blocks, kind)
    return tuple(
        np.ascontiguousarray(split[..., at : at + 2]).view("<f2")[..., 0].astype(np.float32) for at in _offsets(kind)
    )


def with_scales(blocks: np.ndarray, kind: BlockType, scales: Sequence[np.ndarray]) -> np.ndarray:
    """Return blocks with other scales, rounded to the nearest finite float16; everything else stays.

    Args:
        blocks: Whole rows, uint8 [rows, bytes per row].
        kind: Their type.
        scales: As `read_scales` returns them.

    Raises:
        UnsupportedFormatError: The type's blocks have no float16 scale.
    """
    changed = _split(blocks, kind).copy()
    for at, scale in zip(_offsets(kind), scales, strict=True):
        halves = np.clip(scale, -LARGEST, LARGEST).astype("<f2")
        changed[..., at : at + 2] = halves[..., None].view(np.uint8)
    return changed.reshape(blocks.shape)


def bases(blocks: np.ndarray, kind: BlockType, n: int, *, threads: int = 0) -> tuple[np.ndarray, ...]:
    """Return what each scale multiplies, float32 [rows, n] each.

    Args:
        blocks: Whole rows, uint8 [rows, bytes per row].
        kind: Their type.
        n: Weights per row.
        threads: Threads over rows; 0 for one per core.

    Raises:
        UnsupportedFormatError: The type's blocks have no float16 scale.
    """
    count, shape = len(_offsets(kind)), (len(blocks), n // kind.block_length)
    one_at_a_time = ([np.full(shape, i == j, np.float32) for j in range(count)] for i in range(count))
    return tuple(decode(with_scales(blocks, kind, unit), kind, n, threads=threads) for unit in one_at_a_time)


def _offsets(kind: BlockType) -> tuple[int, ...]:
    if kind.name not in OFFSETS:
        raise UnsupportedFormatError(
            f"scales: blocks of {kind} have no float16 scale. Those of {', '.join(OFFSETS)} have."
        )
    return OFFSETS[kind.name]


def _split(blocks: np.ndarray, kind: BlockType) -> np.ndarray:
    """Blocks apart, uint8 [rows, blocks, block bytes]."""
    return blocks.reshape(len(blocks), -1, kind.block_bytes)
