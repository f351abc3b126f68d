"""Encode float32 rows into blocks and decode blocks into float32 rows, byte-identical to ggml."""

import numpy as np
import libgguf

from kvant.dtypes import BF16, F16, F32, BlockType, block_type


def encode(
    x: np.ndarray, kind: str | BlockType, *, importance: np.ndarray | None = None, threads: int = 0
) -> np.ndarray:
    """Encode rows of weights.

    Args:
        x: Weights, float32 [rows, n].
        kind: Block type or its name.
        importance: Weight of each input channel in the error, float32 [n].
        threads: Threads over rows; 0 for one per core.

    Returns:
        Blocks, uint8 [rows, bytes_per_row].
    """
    target = block_type(kind)
    x = np.ascontiguousarray(x, np.float32)
    if target == F32:
        return x.view(np.uint8)
    return np.asarray(libgguf.quantize_rows(x, libgguf.GGMLQuantizationType[target.name], imatrix=importance))


def decode(data: np.ndarray, kind: str | BlockType, n: int, *, threads: int = 0) -> np.ndarray:
    """Decode blocks into rows of `n` weights, float32 [rows, n]."""
    source = block_type(kind)
    data = np.ascontiguousarray(data, np.uint8)
    if source == F32:
        return data.view(np.float32).reshape(-1, n)
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
