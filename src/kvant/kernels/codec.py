"""Encode float32 rows into blocks and decode blocks into float32 rows, byte-identical to ggml.

The work is native (native/src), at the instruction-set level of `kvant.kernels.isa`; I-quants with codebooks are
encoded by libgguf. Rows are independent: how many threads share them does not change a byte.
"""

from functools import cache

import libgguf
import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType, Family, block_type
from kvant.errors import BlockShapeError, UnsupportedFormatError, ValueRangeError
from kvant.kernels import _ext, fallback, isa

_NOTHING = (False, False, False)


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
    """Decode blocks into rows of `n` weights, float32 [rows, n]."""
    source = block_type(kind)
    data = np.ascontiguousarray(data, np.uint8)
    if source == F32:
        return data.view(np.float32).reshape(-1, n)
    if _native().get(source.ggml_id, _NOTHING)[2]:
        data = data.reshape(-1, source.row_bytes(n))
        out = np.empty((data.shape[0], n), np.float32)
        _ext.decode(source.ggml_id, isa.level(), data, out, _threads(threads))
        return out
    if source == F16:
        return data.view(np.float16).astype(np.float32).reshape(-1, n)
    if source == BF16:
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(-1, n)
    return np.asarray(libgguf.dequantize_rows(data, libgguf.GGMLQuantizationType[source.name])).reshape(-1, n)


def transcode(
    data: np.ndarray, source: str | BlockType, kind: str | BlockType, n: int,
    *, importance: np.ndarray | None = None, threads: int = 0,
) -> np.ndarray:  # fmt: skip
    """Encode rows that are stored in another type: convert, check for NaN and infinity, encode, in one pass."""
    return encode(decode(data, source, n), kind, importance=importance, threads=threads)


def _rows(x: np.ndarray, target: BlockType) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim != 2:
        found = f"{x.dtype} [{', '.join(map(str, x.shape))}]" if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueRangeError(
            f"x: {found} is not float32 [rows, n]. Convert with x.astype(numpy.float32).reshape(-1, n)."
        )
    n = x.shape[1]
    if n == 0 or n % target.block_length:
        raise BlockShapeError(
            f"x: row length {n} is not a multiple of the {target} block length {target.block_length}. "
            "Use a type with a shorter block (Q8_0: 32) or keep F16."
        )
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
