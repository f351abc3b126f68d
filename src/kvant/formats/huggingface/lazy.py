"""Tensors made from other tensors as they are read: reordered, shifted, widened. None is held."""

import dataclasses

import numpy as np

from kvant.dtypes import F32
from kvant.kernels import decode
from kvant.tensors import LazyTensor, Tensor, row_length


def renamed(tensor: Tensor, name: str) -> LazyTensor:
    """The same tensor under another name."""
    return LazyTensor(name=name, shape=tensor.shape, block_type=tensor.block_type, read=tensor.read_bytes)


def as_float32(tensor: Tensor) -> LazyTensor:
    """The same values stored as F32."""
    if tensor.block_type == F32:
        return renamed(tensor, tensor.name)
    length = row_length(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        return decode(tensor.read_bytes(start, stop), tensor.block_type, length).view(np.uint8)

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=F32, read=read)


def shifted(tensor: Tensor, shift: float) -> LazyTensor:
    """Every value plus `shift`, computed and stored in float32."""
    values = as_float32(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        floats = np.ascontiguousarray(values.read(start, stop)).view(np.float32)
        return (floats + np.float32(shift)).view(np.uint8)

    return dataclasses.replace(values, read=read)


def gathered(tensor: Tensor, order: np.ndarray) -> LazyTensor:
    """The rows of a matrix, or the items of a vector, in another order.

    Args:
        tensor: A matrix in any block type (rows move whole), or a vector of floats.
        order: Source of each row, int64 [rows]; nearby rows should have nearby sources, because the span between the
            first and last source of a request is what is read.
    """
    if len(tensor.shape) == 1:
        item = tensor.block_type.block_bytes

        def read(start: int, stop: int) -> np.ndarray:
            items = np.ascontiguousarray(tensor.read_bytes(start, stop)).reshape(-1, item)
            return np.asarray(items[order]).reshape(stop - start, -1) if stop > start else items.reshape(0, 0)
    else:

        def read(start: int, stop: int) -> np.ndarray:
            wanted = order[start:stop]
            if not len(wanted):
                return tensor.read_bytes(start, stop)
            low = int(wanted.min())
            return np.asarray(tensor.read_bytes(low, int(wanted.max()) + 1)[wanted - low])

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=tensor.block_type, read=read)
