"""I-quants with codebooks: encoded by libgguf, a build of ggml's own encoders, until native ones exist."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import MissingDependencyError, ValueRangeError

# Source: ggml.c `ggml_quantize_requires_imatrix`.
NEEDS_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})

# libgguf builds a type's codebook tables when it is first encoded, and two threads doing so at once crash.
_TABLES = threading.Lock()
_BUILT: set[str] = set()


@cache
def _libgguf() -> ModuleType:
    try:
        import libgguf
    except ImportError as error:
        raise MissingDependencyError(
            "libgguf: not installed, and I-quants with codebooks are encoded by it. Install it with "
            "`pip install libgguf` (no wheels for Linux on ARM), or use IQ4_XS or Q2_K."
        ) from error
    return libgguf  # type: ignore[no-any-return]


def encode(x: np.ndarray, target: BlockType, importance: np.ndarray | None, threads: int) -> np.ndarray:
    """Encode rows by libgguf, float32 [rows, n] -> uint8 [rows, bytes per row].

    Raises:
        MissingDependencyError: libgguf is not installed.
        ValueRangeError: The type needs importance and there is none.
    """
    if target.name in NEEDS_IMPORTANCE and importance is None:
        raise ValueRangeError(
            f"importance: none given, and {target} is encoded only with it. Collect an importance matrix, or use IQ2_S."
        )
    library = _libgguf()
    kind = library.GGMLQuantizationType[target.name]
    out = np.empty((x.shape[0], target.row_bytes(x.shape[1])), np.uint8)

    def piece(rows: slice) -> None:
        out[rows] = np.asarray(library.quantize_rows(x[rows], kind, imatrix=importance)).view(np.uint8)

    n_threads = threads or os.cpu_count() or 1
    if not len(x):
        return out
    with _TABLES:
        if target.name not in _BUILT:
            piece(slice(0, 1))
            _BUILT.add(target.name)
    step = max(1, -(-len(x) // n_threads))
    pieces = [slice(start, start + step) for start in range(0, len(x), step)]
    if len(pieces) == 1:
        piece(pieces[0])
        return out
    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(piece, pieces))
    return out
