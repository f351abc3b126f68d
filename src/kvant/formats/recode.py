"""The same weights in another element or block type, converted as they are read."""

import dataclasses

import numpy as np

from kvant.dtypes import F16, BlockType
from kvant.errors import ValueRangeError
from kvant.kernels import decode, transcode
from kvant.tensors import LazyTensor, Tensor, row_length

_F16_MAGNITUDE = np.uint16(0x7FFF)
_F16_INFINITY = np.uint16(0x7C00)


def recoded(tensor: Tensor, target: BlockType, *, threads: int = 0) -> LazyTensor:
    """A tensor stored as `target`; a copy of its bytes where that is what it is already.

    Reading it raises ValueRangeError, with the tensor, row and column, for a weight that is NaN or infinite or that
    overflows F16.

    Args:
        tensor: Any tensor.
        target: A type whose block length divides the row length.
        threads: Threads over rows; 0 for one per core.
    """
    length = row_length(tensor)
    view = LazyTensor(name=tensor.name, shape=tensor.shape, block_type=tensor.block_type, read=tensor.read_bytes)
    if tensor.block_type == target:
        return view
    assert length % target.block_length == 0, (tensor.name, length, target.name)

    def read(start: int, stop: int) -> np.ndarray:
        rows = tensor.read_bytes(start, stop)
        try:
            encoded = transcode(rows, tensor.block_type, target, length, threads=threads)
        except ValueRangeError as error:
            floats = decode(rows, tensor.block_type, length)
            row, column, weight = _first(~np.isfinite(floats), floats)
            raise ValueRangeError(
                f"{tensor.name}: row {start + row}, column {column} is {weight}, not a finite weight. Download or "
                f"convert the source again."
            ) from error
        if target == F16:
            _check_overflow(tensor, rows, encoded, start)
        return encoded

    return dataclasses.replace(view, block_type=target, read=read)


def _check_overflow(tensor: Tensor, rows: np.ndarray, encoded: np.ndarray, start: int) -> None:
    magnitudes = np.ascontiguousarray(encoded).view(np.uint16) & _F16_MAGNITUDE
    if magnitudes.max(initial=0) < _F16_INFINITY:
        return
    row, column, weight = _first(magnitudes >= _F16_INFINITY, decode(rows, tensor.block_type, row_length(tensor)))
    raise ValueRangeError(
        f"{tensor.name}: row {start + row}, column {column} is {weight:g}, beyond the 65504 that F16 holds. Convert to "
        f"BF16 or F32."
    )


def _first(mask: np.ndarray, values: np.ndarray) -> tuple[int, int, float]:
    """Row, column and value of the first entry that a mask names."""
    row, column = (int(index) for index in np.argwhere(mask.reshape(values.shape))[0])
    return row, column, float(values[row, column])
