"""The same weights in another element or block type, converted as they are read."""

import dataclasses

import numpy as np

from kvant.dtypes import BlockType
from kvant.errors import ValueRangeError
from kvant.kernels import decode, encode, transcode
from kvant.tensors import LazyTensor, Tensor, row_length


def recoded(tensor: Tensor, target: BlockType, *, threads: int = 0) -> LazyTensor:
    """A tensor stored as `target`; a copy of its bytes where that is what it is already.

    Reading it raises ValueRangeError, with the tensor, row and column, for a weight that is NaN or infinite or too
    large for the type.

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
            return transcode(rows, tensor.block_type, target, length, threads=threads)
        except ValueRangeError as error:
            raise _refused(tensor, decode(rows, tensor.block_type, length), target, start) from error

    return dataclasses.replace(view, block_type=target, read=read)


def _refused(tensor: Tensor, floats: np.ndarray, target: BlockType, start: int) -> ValueRangeError:
    """Return the error for the first weight of rows from `start` on that cannot be stored as `target`."""
    bad = ~np.isfinite(floats)
    if bad.any():
        row, column, weight = _first(bad, floats)
        return ValueRangeError(
            f"{tensor.name}: row {start + row}, column {column} is {weight}, not a finite weight. Download or "
            f"convert the source again."
        )
    length = floats.shape[1]
    row, column, weight = _first(~np.isfinite(decode(encode(floats, target), target, length)), floats)
    return ValueRangeError(
        f"{tensor.name}: row {start + row}, column {column} is {weight:g}, beyond what {target} holds (65504 for F16). "
        f"Convert to BF16 or F32."
    )


def _first(mask: np.ndarray, values: np.ndarray) -> tuple[int, int, float]:
    """Row, column and value of the first entry that a mask names."""
    row, column = (int(index) for index in np.argwhere(mask.reshape(values.shape))[0])
    return row, column, float(values[row, column])
