"""ggml's own encoders and decoders, through the C functions that the pinned engine exports."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import xllamacpp

from kvant.dtypes import BlockType

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _TypeTraits(ctypes.Structure):
    """ggml.h `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def engine() -> ctypes.CDLL:
    """The engine's shared object with the signatures of what is called here and in benchmarks."""
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    return library


def ggml_encode(x: np.ndarray, target: BlockType, importance: np.ndarray | None = None) -> np.ndarray:
    """Encode float32 [rows, n] by `ggml_quantize_chunk`."""
    x = np.ascontiguousarray(x, np.float32)
    rows, n = x.shape
    out = np.zeros((rows, target.row_bytes(n)), np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = engine().ggml_quantize_chunk(target.ggml_id, x.ctypes.data, out.ctypes.data, 0, rows, n, weights)
    assert written == out.nbytes
    return out


def ggml_decode(data: np.ndarray, source: BlockType, n: int) -> np.ndarray:
    """Decode uint8 [rows, row bytes] by the type's `to_float`."""
    data = np.ascontiguousarray(data)
    traits = engine().ggml_get_type_traits(source.ggml_id).contents
    assert (traits.type_name.decode().upper(), traits.blck_size, traits.type_size) == (
        source.name, source.block_length, source.block_bytes,
    )  # fmt: skip
    out = np.empty((data.size // source.row_bytes(n), n), np.float32)
    traits.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
