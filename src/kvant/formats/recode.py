"""The same weights in another element or block type, converted as they are read."""

import numpy as np

from kvant.dtypes import F32, BlockType
from kvant.errors import ValueRangeError
from kvant.kernels import transcode
from kvant.kernels.codec import check_finite
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
    assert length % target.block_length == 0, (tensor.name, length, target.name)

    def read(start: int, stop: int) -> np.ndarray:
        rows = tensor.read_bytes(start, stop)
        try:
            if tensor.block_type == target:
                check_finite(rows, target, length, first_row=start)
                return rows
            return transcode(rows, tensor.block_type, target, length, threads=threads, first_row=start)
        except ValueRangeError as error:
            raise ValueRangeError(f"{tensor.name}: {error}") from error

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=target, read=read)


def narrowed(tensor: Tensor) -> LazyTensor:
    """A tensor of F64 as F32, which is what engines compute with; reading it refuses what F32 cannot hold."""

    def read(start: int, stop: int) -> np.ndarray:
        wide = np.ascontiguousarray(tensor.read_bytes(start, stop)).view("<f8")
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float32)
        lost = np.isinf(narrow) & np.isfinite(wide)
        if lost.any():
            row, column = np.argwhere(lost)[0]
            raise ValueRangeError(
                f"{tensor.name}: row {start + row}, column {column} is {wide[row, column]:g}, beyond what F32 holds. "
                f"Train or convert the source again."
            )
        return narrow.view(np.uint8)

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=F32, read=read)
