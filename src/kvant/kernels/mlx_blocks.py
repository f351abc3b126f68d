"""GGUF's blocks as MLX rows of exactly the same values, and back.

    Q4_0  d (q - 8)      affine, 4 bits: scale d, bias -8 d      Q4_1  d q + m      affine, 4 bits: scale d, bias m
    Q5_0  d (q - 16)     affine, 5 bits: scale d, bias -16 d     Q5_1  d q + m      affine, 5 bits: scale d, bias m
    Q8_0  d (q - 128)    affine, 8 bits: scale d, bias -128 d    MXFP4 2^(e - 127) fp4      mxfp4, the same bytes

All in groups of 32 with float16 scales. Back, a group may be 32, 64 or 128 weights long, and codes may be narrower than
the block's; scales of other types must be float16 numbers. K-quants multiply two scales, which float16 cannot hold.
"""

import numpy as np

from kvant.dtypes import BlockType, block_type
from kvant.errors import FormatError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import arguments, packing
from kvant.kernels.codec import decode
from kvant.kernels.mlx import MICROSCALED, Grouping, Quantized, check, pack, unpack
from kvant.kernels.reference import bits

SAME_VALUES = {
    **{f"Q{n}_{i}": Grouping(mode="affine", bits=n, group_size=32) for n in (4, 5) for i in (0, 1)},
    "Q8_0": Grouping(mode="affine", bits=8, group_size=32),
    "MXFP4": MICROSCALED["mxfp4"],
}
"""What MLX stores the values of a block type as."""

_MIDDLE = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
"""The code that stands for zero, in types without a minimum."""


def from_blocks(data: np.ndarray, kind: BlockType) -> Quantized:
    """Return the rows that hold the values of blocks; affine scales and biases are F16.

    Args:
        data: Blocks, uint8 [rows, bytes per row].
        kind: A type of `SAME_VALUES`.

    Raises:
        FormatError: A row is no whole number of blocks.
        UnsupportedFormatError: MLX has nothing of the type's values.
        ValueRangeError: Not uint8 rows, or a bias would be beyond float16.
    """
    grouping = _same_values(kind)
    data = arguments.array("data", data, np.uint8, "rows", "bytes")
    if data.shape[1] % kind.block_bytes:
        raise FormatError(f"data: rows of {data.shape[1]} bytes are no whole {kind} blocks. Pass the tensor's rows.")
    rows, groups, blocks = len(data), data.shape[1] // kind.block_bytes, data.reshape(-1, kind.block_bytes)
    n = groups * kind.block_length
    if grouping.mode != "affine":
        words = pack(bits.nibbles(blocks[:, 1:]).reshape(rows, n), grouping.bits)
        return Quantized(words=words, scales=np.ascontiguousarray(blocks[:, :1]).reshape(rows, groups), biases=None)
    d, middle = blocks[:, :2], _MIDDLE.get(kind.name)
    if middle is None:
        offset = blocks[:, 2:4]
    else:
        offset = bits.to_half(bits.half(d) * np.float32(-middle))
        if not np.isfinite(bits.half(offset)).all():
            raise ValueRangeError(f"a scale times {middle} is beyond float16. Decode it: convert with -t F32.")
    return Quantized(
        words=pack(_codes(blocks, grouping.bits, 4 if middle is None else 2).reshape(rows, n), grouping.bits),
        scales=np.ascontiguousarray(d).reshape(rows, 2 * groups),
        biases=np.ascontiguousarray(offset).reshape(rows, 2 * groups),
    )


def block_holding(scales: np.ndarray, biases: np.ndarray | None, grouping: Grouping) -> BlockType | None:
    """Return the smallest block type that holds rows exactly; None if there is none.

    Args:
        scales: Affine scales, float32 [rows, groups]; of other modes unused.
        biases: Affine biases likewise.
        grouping: How the rows are quantized.
    """
    if grouping.mode == "mxfp4":
        return block_type("MXFP4")
    if grouping.mode != "affine" or biases is None or not (_is_half(scales) and _is_half(biases)):
        return None
    if grouping.bits == 8:
        return block_type("Q8_0") if np.array_equal(biases, -128 * scales) else None
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        fits = grouping.bits <= SAME_VALUES[name].bits
        if fits and (name not in _MIDDLE or np.array_equal(biases, -_MIDDLE[name] * scales)):
            return block_type(name)
    return None


def to_blocks(found: Quantized, grouping: Grouping, scale_type: BlockType, kind: BlockType) -> np.ndarray:
    """Return the blocks that hold the values of rows, uint8 [rows, bytes per row].

    Args:
        found: The rows.
        grouping: How they are quantized.
        scale_type: Type of affine scales and biases.
        kind: What `block_holding` gave for them.

    Raises:
        BlockShapeError, FormatError, UnsupportedFormatError, ValueRangeError: These do not fit one another.
    """
    codes = unpack(found.words, grouping.bits)
    check(grouping, codes.shape[1])
    _same_values(kind)
    groups, repeats = codes.shape[1] // grouping.group_size, grouping.group_size // kind.block_length
    if grouping.mode != "affine":
        nibbles = bits.pack_nibbles(codes.reshape(-1, kind.block_length))
        scales = arguments.array("scales", found.scales, np.uint8, len(codes), groups)
        return np.concatenate([scales.reshape(-1, 1), nibbles], axis=-1).reshape(len(codes), groups * kind.block_bytes)
    width = groups * scale_type.block_bytes
    parts = (
        arguments.array(name, part, np.uint8, len(codes), width)  # type: ignore[arg-type]
        for name, part in (("scales", found.scales), ("biases", found.biases))
    )
    halves = (
        decode(part, scale_type, groups, threads=1).astype(np.float16).view("<u2").repeat(repeats, axis=1)
        for part in parts
    )
    d, dmin = halves
    return packing.pack(packing.Parts(codes=codes, d=d, dmin=dmin, scales=np.empty(0), minimums=np.empty(0)), kind)


def _same_values(kind: BlockType) -> Grouping:
    if kind.name not in SAME_VALUES:
        raise UnsupportedFormatError(f"{kind}: MLX has nothing of its values. Use one of {', '.join(SAME_VALUES)}.")
    return SAME_VALUES[kind.name]


def _codes(blocks: np.ndarray, n_bits: int, at: int) -> np.ndarray:
    """Codes of legacy blocks, counted from the lowest, uint8 [blocks, 32]; `at` is where they start."""
    if n_bits == 8:
        return np.asarray(blocks[:, at:] ^ np.uint8(128))
    if n_bits == 4:
        return bits.nibbles(blocks[:, at:])
    return np.asarray(bits.nibbles(blocks[:, at + 4 :]) | bits.bits_of(blocks[:, at : at + 4]) << 4)


def _is_half(values: np.ndarray) -> bool:
    """Tell whether float16 holds every value exactly."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))
