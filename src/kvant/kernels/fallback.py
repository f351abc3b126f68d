"""I-quants with codebooks: encoded by libgguf, a build of ggml's own encoders, until native ones exist."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import ModuleType

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import MissingDependencyError, ValueRangeError

# Source: ggml.c `ggml_quantize_requires_imatrix`.
NEEDS_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})

LARGEST_WEIGHT = 2.0**25
"""No codebook type holds more: IQ3_XXS has 15.5 / 2 times its largest level, 62, times a scale of 65504: 3.15e7."""

BALANCED = (2.0**-40, 2.0**40)
"""Bounds of the largest importance as libgguf gets it."""

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


def first_refused(x: np.ndarray) -> int:
    """Index of the first weight that is not finite or beyond every codebook, or -1.

    ggml's search for a neighbour finds none where its sums overflow, and reads and writes at index -1.
    """
    if not x.size or (x.max() <= LARGEST_WEIGHT and x.min() >= -LARGEST_WEIGHT):
        return -1
    return int(np.flatnonzero(~(np.abs(x) <= LARGEST_WEIGHT))[0])


def encode(x: np.ndarray, target: BlockType, importance: np.ndarray | None, threads: int) -> np.ndarray:
    """Encode rows by libgguf, float32 [rows, n] -> uint8 [rows, bytes per row].

    Nothing in `x` may be refused by `first_refused`: libgguf would end the process.

    Raises:
        MissingDependencyError: libgguf is not installed.
        ValueRangeError: The type needs importance and there is none.
    """
    if target.name in NEEDS_IMPORTANCE and importance is None:
        raise ValueRangeError(
            f"importance: none given, and {target} is encoded only with it. Collect an importance matrix, or use IQ2_S."
        )
    importance = None if importance is None else _balanced(importance)
    library = _libgguf()
    kind = library.GGMLQuantizationType[target.name]
    out = np.empty((x.shape[0], target.row_bytes(x.shape[1])), np.uint8)

    def piece(rows: slice) -> None:
        out[rows] = np.asarray(library.quantize_rows(x[rows], kind, imatrix=importance)).view(np.uint8)

    if not len(x):
        return out
    with _TABLES:
        if target.name not in _BUILT:
            piece(slice(0, 1))
            _BUILT.add(target.name)
    step = max(1, -(-len(x) // threads))
    pieces = [slice(start, start + step) for start in range(0, len(x), step)]
    if len(pieces) == 1:
        piece(pieces[0])
        return out
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(piece, pieces))
    return out


def _balanced(importance: np.ndarray) -> np.ndarray:
    """Bring the largest importance near 1 where it is so large or small that sums of squares would leave float32.

    Encoders compare errors, so that only ratios count; powers of four change no bit of these, nor of their roots.
    """
    largest = float(importance.max())
    if largest == 0 or BALANCED[0] <= largest <= BALANCED[1]:
        return importance
    return np.asarray(np.ldexp(importance, -2 * (math.frexp(largest)[1] // 2)))
