"""What kernels are given, checked before native code sees it: arrays, lengths and numbers of threads.

Every array that comes back is of the type its function names, contiguous, aligned, in this machine's byte order and
without a mask, whatever view it was taken from. What is not is an error of ours; nothing is converted in silence.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import SupportsIndex

import numpy as np
from numpy.typing import DTypeLike

from kvant.devices.limits import cores
from kvant.dtypes import BlockType
from kvant.errors import BlockShapeError, LimitError, ValueRangeError

MAX_ROW_LENGTH = 1 << 40
"""Weights of a row: what native code counts with stays far from 64 bits."""

MAX_THREADS = 1 << 10
"""Threads of one call; a larger number means this one."""

_LARGEST_COUNT = (1 << 63) - 1


def array(name: str, x: np.ndarray, dtype: DTypeLike, *shape: str | int, what: str = "") -> np.ndarray:
    """Return an array that native code can read: itself if it is one, else a copy.

    Args:
        name: What errors call it.
        x: The array.
        dtype: Type of its elements.
        *shape: A number for every length that must be so, a word for every other.
        what: What errors say it should be, instead of type and shape.

    Raises:
        ValueRangeError: It is no array, or of another type or shape.
        LimitError: A copy of it does not fit into memory.
    """
    wanted = np.dtype(dtype)
    fits = isinstance(x, np.ndarray) and x.dtype == wanted and x.ndim == len(shape) and not hasattr(x, "mask")
    if not fits or any(isinstance(length, int) and length != n for length, n in zip(shape, x.shape, strict=True)):
        what = what or f"{wanted.name} [{', '.join(map(str, shape))}]"
        raise ValueRangeError(
            f"{name}: {found(x)} is not {what}. Convert it with astype(numpy.{wanted.name}), and reshape it."
        )
    with _enough_memory(name, x.shape, wanted):
        return np.require(np.asarray(x), requirements=["C", "A"])


def finite(name: str, x: np.ndarray) -> np.ndarray:
    """Return `x`.

    Raises:
        ValueRangeError: It holds NaN or infinity.
    """
    if not np.isfinite(x).all():
        raise ValueRangeError(f"{name}: holds NaN or infinity. Check the source model, or measure it again.")
    return x


def empty(name: str, shape: Sequence[int], dtype: DTypeLike) -> np.ndarray:
    """Return a new array.

    Raises:
        LimitError: It does not fit into memory.
    """
    with _enough_memory(name, shape, np.dtype(dtype)):
        return np.empty(shape, dtype)


def count(name: str, value: SupportsIndex, *, least: int = 0, most: int = _LARGEST_COUNT) -> int:
    """Return a whole number.

    Raises:
        ValueRangeError: It is none, or outside its range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueRangeError(f"{name}: {value!r} is not a whole number. Give an int.") from None
    if not least <= number <= most:
        raise ValueRangeError(f"{name}: {number} is not {least} to {most}. Give a number in that range.")
    return number


def threads(value: SupportsIndex) -> int:
    """Return a number of threads; for 0 it is one for each core that this process may use.

    Raises:
        ValueRangeError: It is negative or no whole number.
    """
    number = count("threads", value, least=-_LARGEST_COUNT)
    if number < 0:
        raise ValueRangeError(f"threads: {number} is negative. Give a count, or 0 for one per core.")
    return min(number or cores(), MAX_THREADS)


def row_length(name: str, n: SupportsIndex, kind: BlockType) -> int:
    """Return the length of rows of a block type.

    Raises:
        BlockShapeError: It is not a positive multiple of the block length, or above `MAX_ROW_LENGTH`.
        ValueRangeError: It is no whole number.
    """
    n = count(name, n, least=-_LARGEST_COUNT - 1, most=1 << 127)
    if n > MAX_ROW_LENGTH:
        raise BlockShapeError(
            f"{name}: row length {n} is above the limit of {MAX_ROW_LENGTH}. Reshape to shorter rows."
        )
    if n <= 0 or n % kind.block_length:
        raise BlockShapeError(
            f"{name}: row length {n} is not a multiple of the {kind} block length {kind.block_length}. "
            "Use a type with a shorter block (Q8_0: 32) or keep F16."
        )
    return n


def found(x: object) -> str:
    """Say what was given: type and shape of an array, or the type of anything else."""
    return f"{x.dtype} [{', '.join(map(str, x.shape))}]" if isinstance(x, np.ndarray) else type(x).__name__


@contextmanager
def _enough_memory(name: str, shape: Sequence[int], dtype: np.dtype) -> Iterator[None]:
    try:
        yield
    except (MemoryError, ValueError):  # ValueError: more bytes than there are addresses
        raise LimitError(
            f"{name}: {' x '.join(map(str, shape))} values of {dtype.name} do not fit into memory. Pass fewer rows."
        ) from None
