"""The same weights in another element or block type, converted as they are read."""

import dataclasses

import numpy as np

from kvant.dtypes import F16, BlockType
from kvant.errors import ValueRangeError
from kvant.kernels import decode, transcode
from kvant.tensors import LazyTensor, Tensor, row_length

_F16_EXPONENT = np.uint16(0x7C00)


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
            raise ValueRangeError(f"{tensor.name}, rows from {start}: {error}") from error
        if target == F16:
            _check_overflow(tensor, rows, encoded, start)
        return encoded

    return dataclasses.replace(view, block_type=target, read=read)


def _check_overflow(tensor: Tensor, rows: np.ndarray, encoded: np.ndarray, start: int) -> None:
    halves = np.ascontiguousarray(encoded).view(np.uint16).reshape(len(encoded), -1)
    infinite = (halves & _F16_EXPONENT) == _F16_EXPONENT
    if infinite.any():
        row, column = (int(index) for index in np.argwhere(infinite)[0])
        weight = decode(rows[row : row + 1], tensor.block_type, row_length(tensor))[0, column]
        raise ValueRangeError(
            f"{tensor.name}: row {start + row}, column {column} is {weight:g}, beyond the 65504 that F16 holds. "
            f"Convert to BF16 or F32."
        )
