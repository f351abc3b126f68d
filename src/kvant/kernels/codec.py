"""Encode float32 rows into blocks and decode blocks into float32 rows, byte-identical to ggml.

The work is native (native/src), at the instruction-set level of `kvant.kernels.isa`; I-quants with codebooks are
encoded by libgguf. Rows are independent: how many threads share them does not change a byte.
"""

from functools import cache

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType, Family, block_type
from kvant.errors import BlockShapeError, FormatError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, fallback, isa

_NOTHING = (False, False, False)

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

    NaN and infinity give the bytes that ggml gives; `transcode` refuses them instead.

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
        MissingDependencyError: The type is encoded by libgguf, which is not installed.
        UnsupportedFormatError: The type cannot be encoded.
        ValueRangeError: An array of another type or shape, importance that does not fit, or none where it is needed.
    """
    target = block_type(kind)
    x = _rows(x, target)
    importance = _importance(importance, x.shape[1])
    if target == F32:
        return x.view(np.uint8)
    if _native().get(target.ggml_id, _NOTHING)[importance is not None]:
        out = np.empty((x.shape[0], target.row_bytes(x.shape[1])), np.uint8)
        _ext.encode(target.ggml_id, isa.level(), x, importance, out, _threads(threads))
        return out
    if target.family == Family.INTEGER or target.name == "F64":
        raise UnsupportedFormatError(f"encode: {target} is not a type for weights. Use F16, BF16 or a quantized type.")
    return fallback.encode(x, target, importance, _threads(threads))


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
        BlockShapeError: n is not a multiple of the block length.
        FormatError: The data are not whole rows of the type.
        UnsupportedFormatError: The type holds integers or float64, not weights.
    """
    source = block_type(kind)
    if not _native().get(source.ggml_id, _NOTHING)[2]:
        raise UnsupportedFormatError(f"decode: {source} holds no encoded weights. View its bytes with NumPy instead.")
    data = _row_bytes(data, source, n)
    out = np.empty((data.shape[0], n), np.float32)
    _ext.decode(source.ggml_id, isa.level(), data, out, _threads(threads))
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
        MissingDependencyError, UnsupportedFormatError: As for `encode`.
    """
    origin, target = block_type(source), block_type(kind)
    data = _row_bytes(data, origin, n)
    if origin == target:
        return data.copy()
    _check_length("row", n, target)
    importance = _importance(importance, n)
    decodes = _native().get(origin.ggml_id, _NOTHING)[2]
    if not (decodes and _native().get(target.ggml_id, _NOTHING)[importance is not None]):
        x = decode(data, origin, n, threads=threads)
        finite = np.isfinite(x)
        if not finite.all():
            raise _refused(x, int(np.flatnonzero(~finite.ravel())[0]), target, first_row=first_row)
        return encode(x, target, importance=importance, threads=threads)
    out = np.empty((data.shape[0], target.row_bytes(n)), np.uint8)
    level = isa.level()
    bad = _ext.transcode(origin.ggml_id, target.ggml_id, level, data, importance, out, n, _threads(threads))
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
    if kind not in _EXPONENTS or not data.size:
        return
    word, ones = _EXPONENTS[kind]
    bits = np.ascontiguousarray(data).view(word)
    bad = np.flatnonzero((bits & ones) == ones)
    if len(bad):
        row = int(bad[0]) // n
        raise _refused(decode(data[row : row + 1], kind, n), int(bad[0]) - row * n, kind, first_row=first_row + row)


def _row_bytes(data: np.ndarray, source: BlockType, n: int) -> np.ndarray:
    """`data` as uint8 [rows, bytes per row]."""
    _check_length("row", n, source)
    data = np.ascontiguousarray(data)
    if data.dtype != np.uint8 or data.size % source.row_bytes(n):
        raise FormatError(
            f"data: {data.size} values of {data.dtype} are not whole rows of {source.row_bytes(n)} bytes "
            f"({n} weights of {source}). Pass the tensor's bytes as uint8."
        )
    return data.reshape(-1, source.row_bytes(n))


def _refused(x: np.ndarray, at: int, target: BlockType, *, first_row: int = 0) -> ValueRangeError:
    """Return the error for weight number `at` of float32 rows [rows, n]."""
    row, column = divmod(at, x.shape[1])
    if np.isfinite(x[row, column]):  # a block is refused by its first weight: the largest is the one in the way
        start = column // target.block_length * target.block_length
        column = start + int(np.abs(x[row, start : start + target.block_length]).argmax())
    where, weight = f"row {first_row + row}, column {column}", x[row, column]
    if np.isfinite(weight):
        return ValueRangeError(f"{where}: {weight:g} is too large for {target} here. Use F32, or BF16 up to 3.38e38.")
    return ValueRangeError(
        f"{where}: {weight} is not a finite weight. "
        "Download or convert the source again, or keep this tensor in the type it has."
    )


def _check_length(subject: str, n: int, kind: BlockType) -> None:
    if n <= 0 or n % kind.block_length:
        raise BlockShapeError(
            f"{subject}: row length {n} is not a multiple of the {kind} block length {kind.block_length}. "
            "Use a type with a shorter block (Q8_0: 32) or keep F16."
        )


def _rows(x: np.ndarray, target: BlockType) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2:
        found = f"{x.dtype} [{', '.join(map(str, x.shape))}]" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueRangeError(
            f"x: {found} is not float32 [rows, n]. Convert with x.astype(numpy.float32).reshape(-1, n)."
        )
    _check_length("x", x.shape[1], target)
    return np.ascontiguousarray(x)


def _importance(importance: np.ndarray | None, n: int) -> np.ndarray | None:
    if importance is None:
        return None
    if importance.shape != (n,) or importance.dtype != np.float32:
        found = f"{importance.dtype} [{', '.join(map(str, importance.shape))}]"
        raise ValueRangeError(f"importance: {found} is not float32 [{n}]. Give one weight per column of x.")
    if not np.isfinite(importance).all() or (importance < 0).any():
        at = int(np.flatnonzero(~(np.isfinite(importance) & (importance >= 0)))[0])
        raise ValueRangeError(
            f"importance: column {at} is {importance[at]}, not a finite number >= 0. Collect the matrix again."
        )
    return np.ascontiguousarray(importance)


def _threads(threads: int) -> int:
    if threads < 0:
        raise ValueRangeError(f"threads: {threads} is negative. Give a count, or 0 for one per core.")
    return threads
