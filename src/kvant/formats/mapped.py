"""Files mapped into memory, and tensors that are views of them.

A file that another program shortens while it is mapped ends this one with a signal, as every program that maps files:
replace model files by renaming, as kvant does, and not in place.
"""

import mmap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import FormatError, UnsupportedFormatError
from kvant.formats.lookalikes import HEAD_BYTES, pointer
from kvant.tensors import LazyTensor


def map_file(path: Path, *, least_bytes: int, suffix: str) -> np.ndarray:
    """Map a file for reading.

    Args:
        path: The file.
        least_bytes: Fewer bytes than this cannot be a file of its format.
        suffix: Of the names that such files have, for the message.

    Returns:
        The whole file, uint8 [file length], not writeable.

    Raises:
        FormatError: It is no regular file, or too short.
    """
    if not path.is_file():
        raise FormatError(f"{path}: is not a file. Give the path of a {suffix} file.")
    with path.open("rb") as file:
        length = file.seek(0, 2)
        file.seek(0)
        note = pointer(file.read(HEAD_BYTES)) if length else None
        if note:
            raise UnsupportedFormatError(f"{path}: {note}")
        if length < least_bytes:
            raise FormatError(f"{path}: {length} bytes are too few for a {suffix} file. Download or convert it again.")
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)


def mapped_tensor(
    data: np.ndarray, name: str, shape: tuple[int, ...], block_type: BlockType, offset: int
) -> LazyTensor:
    """A tensor whose rows are views of a mapped file, from byte `offset` on; its bytes are known to be there."""
    row_bytes = block_type.row_bytes(shape[-1] if shape else 1)
    return LazyTensor(name=name, shape=shape, block_type=block_type, read=_rows(data, offset, row_bytes))


def _rows(data: np.ndarray, offset: int, row_bytes: int) -> Callable[[int, int], np.ndarray]:
    """A function that gives rows start..stop as a view, uint8 [stop - start, row_bytes]."""

    def read(start: int, stop: int) -> np.ndarray:
        return data[offset + start * row_bytes : offset + stop * row_bytes].reshape(stop - start, row_bytes)

    return read
