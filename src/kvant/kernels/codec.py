"""Encode float32 rows into blocks and decode blocks into float32 rows, byte-identical to ggml.

The work is native (native/src), at the instruction-set level of `kvant.kernels.isa`. Rows are independent: how many
threads share them does not change a byte.
"""

from functools import cache

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType, Family, block_type
from kvant.errors import FormatError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, arguments, isa, limits

_NOTHING = (False, False, False)
_LARGEST_HALF = 65504

_EXPONENTS = {F32: (np.uint32, 0x7F800000), F16: (np.uint16, 0x7C00), BF16: (np.uint16, 0x7F80)}
"""The bits that are all ones in NaN and infinity."""


@cache
def _native() -> dict[int, tuple[bool, bool, bool]]:
    """What is native: {ggml id: (encodes, encodes with importance, decodes)}."""
    return {ggml_id: (plain, plain or weighted, decodes) for _, ggml_id, _, _, plain, weighted, decodes in _ext.types()}


def encode(
    x: np.ndarray, kind: str | BlockType, *, importance: np.ndarray | None = None, threads: int = 0
) -> np.ndarray:
    """Encode rows of weights, byte-identical to ggml.

    NaN and infinity give the bytes that ggml gives; `transcode` refuses them instead. Codebook types refuse them, and
    weights beyond all their codes, here too: ggml's encoders have no answer for these and end the process.

    Args:
        x: Weights, float32 [rows, n]; n a multiple of the type's block length.
        kind: Block type or its name.
        importance: Weight of each input channel in the error, float32 [n], finite and not negative. Types that search
            for no scale (Q8_0, MXFP4, the ternary ones) ignore it, as ggml does.
        threads: Threads over rows; 0 for one per core.

    Returns:
        Blocks, uint8 [rows, bytes_per_row].

    Raises:
        BlockShapeError: n is not a multiple of the block length.
        LimitError: Memory cannot hold the arrays.
        UnsupportedFormatError: The type cannot be encoded.
        ValueRangeError: An array of another type or shape, importance that does not fit, or none where it is needed; a
            codebook type and a weight that is not finite or too large for it.
    """
    target, n_threads = block_type(kind), arguments.threads(threads)
    x = arguments.array("x", x, np.float32, "rows", "n")
    n = arguments.row_length("x", x.shape[1], target)
    importance = _importance(importance, n, target)
    if target == F32:
        return x.view(np.uint8)
    codebook = target.family == Family.CODEBOOK
    if codebook and (at := limits.first_refused(x)) >= 0:
        raise _refused(x, at, target)
    out = arguments.empty("blocks", (len(x), target.row_bytes(n)), np.uint8)
    _ext.encode(target.ggml_id, isa.level(), x, importance, out, n_threads)
    if codebook and max(x.max(initial=0), -x.min(initial=0)) > _LARGEST_HALF:  # its scale may be infinite
        finite = np.isfinite(decode(out, target, n, threads=n_threads))
        if not finite.all():
            raise _refused(x, int(np.flatnonzero(~finite)[0]), target)
    return out


def decode(data: np.ndarray, kind: str | BlockType, n: int, *, threads: int = 0) -> np.ndarray:
    """Decode blocks into rows of weights, to ggml's bits.

    Args:
        data: Blocks, uint8, whole rows of `n` weights.
        kind: Block type or its name.
        n: Weights per row; a multiple of the type's block length.
        threads: Threads over rows; 0 for one per core.

    Returns:
        Weights, float32 [rows, n].

    Raises:
        BlockShapeError: n is not a multiple of the block length, or beyond all rows.
        FormatError: The data are not whole rows of the type.
        LimitError: Memory cannot hold the weights.
        UnsupportedFormatError: The type holds integers or float64, not weights.
        ValueRangeError: n or threads is not a whole number in its range.
    """
    source, n_threads = block_type(kind), arguments.threads(threads)
    _check_decodes(source)
    n = arguments.row_length("row", n, source)
    data = _row_bytes(data, source, n)
    out = arguments.empty("weights", (len(data), n), np.float32)
    _ext.decode(source.ggml_id, isa.level(), data, out, n_threads)
    return out


def transcode(
    data: np.ndarray, source: str | BlockType, kind: str | BlockType, n: int,
    *, importance: np.ndarray | None = None, threads: int = 0, first_row: int = 0,
) -> np.ndarray:  # fmt: skip
    """Encode rows that are stored in another type: decode, check for NaN and infinity, encode, tile by tile.

    The bytes are those of `encode(decode(data, source, n), kind)`. Rows of the same type are copied unchecked.

    Args:
        data: Blocks of the source type, uint8, whole rows of `n` weights.
        source: Block type of the data or its name.
        kind: Block type to encode or its name.
        n: Weights per row; a multiple of both types' block lengths.
        importance: Weight of each input channel in the error, float32 [n]; see `encode`.
        threads: Threads over rows; 0 for one per core.
        first_row: Number that messages give to the first row.

    Returns:
        Blocks, uint8 [rows, bytes_per_row].

    Raises:
        BlockShapeError: n is not a multiple of a block length.
        FormatError: The data are not whole rows of the source type.
        ValueRangeError: A weight is NaN, infinite, or too large for the type; the message names it, or the
            largest of its block.
        UnsupportedFormatError: As for `encode` and `decode`.
    """
    origin, target, n_threads = block_type(source), block_type(kind), arguments.threads(threads)
    n = arguments.row_length("row", n, origin)
    data = _row_bytes(data, origin, n)
    if origin == target:
        return data.copy()
    arguments.row_length("row", n, target)
    _check_decodes(origin)
    importance = _importance(importance, n, target)
    out = arguments.empty("blocks", (len(data), target.row_bytes(n)), np.uint8)
    limit = {"largest": limits.LARGEST_WEIGHT} if target.family == Family.CODEBOOK else {}
    bad = _ext.transcode(origin.ggml_id, target.ggml_id, isa.level(), data, importance, out, n, n_threads, **limit)
    if bad >= 0:
        row = bad // n
        raise _refused(decode(data[row : row + 1], origin, n), bad - row * n, target, first_row=first_row + row)
    return out


def check_finite(data: np.ndarray, kind: BlockType, n: int, *, first_row: int = 0) -> None:
    """Check rows of F32, F16 or BF16 that are copied without being decoded; rows of other types pass.

    Args:
        data: Rows as stored, uint8 [rows, bytes per row].
        kind: Their type.
        n: Weights per row.
        first_row: Number that the message gives to the first row.

    Raises:
        ValueRangeError: A weight is NaN or infinite.
    """
    if kind not in _EXPONENTS:
        return
    word, ones = _EXPONENTS[kind]
    data = _row_bytes(data, kind, arguments.row_length("row", n, kind))
    bits = data.view(word)
    bad = np.flatnonzero((bits & ones) == ones)
    if len(bad):
        row = int(bad[0]) // n
        raise _refused(decode(data[row : row + 1], kind, n), int(bad[0]) - row * n, kind, first_row=first_row + row)


def _check_decodes(source: BlockType) -> None:
    if not _native().get(source.ggml_id, _NOTHING)[2]:
        raise UnsupportedFormatError(f"decode: {source} holds no encoded weights. View its bytes with NumPy instead.")


def _row_bytes(data: np.ndarray, source: BlockType, n: int) -> np.ndarray:
    """`data` as uint8 [rows, bytes per row]."""
    row_bytes = source.row_bytes(n)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.size % row_bytes:
        what = f"{data.size} values of {data.dtype}" if isinstance(data, np.ndarray) else type(data).__name__
        raise FormatError(
            f"data: {what} are not whole rows of {row_bytes} bytes ({n} weights of {source}). "
            "Pass the tensor's bytes as uint8."
        )
    data = arguments.array("data", data, np.uint8, *("any" for _ in data.shape))
    return data.reshape(data.size // row_bytes, row_bytes)


def _refused(x: np.ndarray, at: int, target: BlockType, *, first_row: int = 0) -> ValueRangeError:
    """Return the error for weight number `at` of float32 rows [rows, n]."""
    row, column = divmod(at, x.shape[1])
    if np.isfinite(x[row, column]):  # a block is refused by its first weight: the largest is the one in the way
        start = column // target.block_length * target.block_length
        column = start + int(np.abs(x[row, start : start + target.block_length]).argmax())
    where, weight = f"row {first_row + row}, column {column}", x[row, column]
    if np.isfinite(weight):
        return ValueRangeError(f"{where}: {weight:g} is too large for {target} here. Use F32, or BF16 up to 3.38e38.")
    return ValueRangeError(f"{where}: {weight} is not a finite weight. Download or convert the source again.")


def _importance(importance: np.ndarray | None, n: int, target: BlockType) -> np.ndarray | None:
    """`importance` as the encoder of `target` takes it, where there is one."""
    plain, weighted, _ = _native().get(target.ggml_id, _NOTHING)
    if not weighted:
        raise UnsupportedFormatError(f"encode: {target} is not a type for weights. Use F16, BF16 or a quantized type.")
    if importance is None:
        if plain:
            return None
        raise ValueRangeError(
            f"importance: none given, and {target} is encoded only with it. Collect an importance matrix, or use IQ2_S."
        )
    importance = arguments.array("importance", importance, np.float32, n)
    if not np.isfinite(importance).all() or (importance < 0).any():
        at = int(np.flatnonzero(~(np.isfinite(importance) & (importance >= 0)))[0])
        raise ValueRangeError(
            f"importance: column {at} is {importance[at]}, not a finite number >= 0. Collect the matrix again."
        )
    return limits.balanced(importance) if target.family == Family.CODEBOOK else importance
