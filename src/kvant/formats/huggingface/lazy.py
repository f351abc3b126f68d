"""Tensors made from other tensors as they are read: reordered, shifted, widened, stacked. None is held whole."""

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from kvant.dtypes import F32, BlockType
from kvant.errors import FormatError
from kvant.kernels import decode
from kvant.tensors import LazyTensor, Tensor, n_rows, row_length

SHORTEST_RUN = 8
"""Rows that neighbour each other in the source, on average, from which on each run is read by itself."""


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


def computed(tensor: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> LazyTensor:
    """A function of every value, computed and stored in float32."""
    values = as_float32(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        floats = np.ascontiguousarray(values.read(start, stop)).view(np.float32)
        return np.ascontiguousarray(function(floats).astype(np.float32, copy=False)).view(np.uint8)

    return dataclasses.replace(values, read=read)


def shifted(tensor: Tensor, shift: float) -> LazyTensor:
    """Every value plus `shift`, computed and stored in float32."""
    return computed(tensor, lambda values: values + np.float32(shift))


def reshaped(tensor: Tensor, shape: tuple[int, ...]) -> LazyTensor:
    """The same values in another shape; where rows change their length, the tensor is read whole, so a small one.

    Raises:
        FormatError: The shape holds another number of values.
    """
    if math.prod(shape) != math.prod(tensor.shape):
        raise FormatError(f"{tensor.name}: shape {list(tensor.shape)} cannot become {list(shape)}. Check config.json.")
    if shape[-1:] == tensor.shape[-1:]:
        return dataclasses.replace(renamed(tensor, tensor.name), shape=shape)
    rows = math.prod(shape[:-1])

    def read(start: int, stop: int) -> np.ndarray:
        whole = np.ascontiguousarray(tensor.read_bytes(0, n_rows(tensor)))
        return whole.reshape(rows, -1)[start:stop]

    return LazyTensor(name=tensor.name, shape=shape, block_type=tensor.block_type, read=read)


def gathered(tensor: Tensor, order: np.ndarray) -> LazyTensor:
    """The rows of a matrix, or the items of a vector, in another order.

    Args:
        tensor: A matrix in any block type (rows move whole), or a vector of floats.
        order: Source of each row, int64 [rows]; nearby rows should have nearby sources, because the span between the
            first and last source of a request is what is read, unless they are few long runs.
    """
    return _taken(tensor, order, tensor.shape)


def selected(tensor: Tensor, order: np.ndarray) -> LazyTensor:
    """Some rows of each matrix of a stack, of a matrix, or some items of a vector, in an order; see `gathered`.

    Args:
        tensor: [..., rows, n] or [items].
        order: Source of each row within its matrix, int64 [m].

    Returns:
        A tensor of [..., m, n] or [m].
    """
    if len(tensor.shape) < 2:
        return _taken(tensor, order, (len(order),))
    *stack, rows, length = tensor.shape
    starts = np.arange(math.prod(stack))[:, None] * rows
    return _taken(tensor, (starts + order).reshape(-1), (*stack, len(order), length))


def _taken(tensor: Tensor, order: np.ndarray, shape: tuple[int, ...]) -> LazyTensor:
    if len(tensor.shape) == 1:
        item = tensor.block_type.block_bytes

        def read(start: int, stop: int) -> np.ndarray:
            items = np.ascontiguousarray(tensor.read_bytes(start, stop)).reshape(-1, item)
            return np.asarray(items[order]).reshape(stop - start, -1) if stop > start else items.reshape(0, 0)
    else:

        def read(start: int, stop: int) -> np.ndarray:
            wanted = order[start:stop]
            if not len(wanted):
                return tensor.read_bytes(0, 0)
            low, high = int(wanted.min()), int(wanted.max()) + 1
            runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)
            if high - low > 2 * len(wanted) and len(wanted) >= SHORTEST_RUN * len(runs):
                return np.concatenate([tensor.read_bytes(int(run[0]), int(run[-1]) + 1) for run in runs])
            return np.asarray(tensor.read_bytes(low, high)[wanted - low])

    return LazyTensor(name=tensor.name, shape=shape, block_type=tensor.block_type, read=read)


def columns(tensor: Tensor, order: np.ndarray) -> LazyTensor:
    """Some items of every row of a tensor of floats, in an order.

    Args:
        tensor: Floats, [..., n].
        order: Source of each item within its row, int64 [m].

    Returns:
        A tensor of [..., m].
    """
    unit = _unit(order, tensor.shape[-1])
    item, groups = tensor.block_type.block_bytes * unit, order[::unit] // unit

    def read(start: int, stop: int) -> np.ndarray:
        rows = np.ascontiguousarray(tensor.read_bytes(start, stop))
        return np.ascontiguousarray(rows.reshape(len(rows), -1, item)[:, groups]).reshape(len(rows), -1)

    shape = (*tensor.shape[:-1], len(order))
    return LazyTensor(name=tensor.name, shape=shape, block_type=tensor.block_type, read=read)


def _unit(order: np.ndarray, length: int) -> int:
    """Return the largest power of two by whose groups an order moves items of rows of a length."""
    unit = 1
    while len(order) % (2 * unit) == 0 and length % (2 * unit) == 0:
        groups = order.reshape(-1, 2 * unit)
        if not len(order) or (groups[:, 0] % (2 * unit)).any() or (np.diff(groups) != 1).any():
            break
        unit *= 2
    return unit


def transposed(tensor: Tensor) -> LazyTensor:
    """Each matrix of floats turned over: [..., n, m] to [..., m, n]. One matrix is held, the one read last."""
    *stack, rows, length = tensor.shape
    item = tensor.block_type.block_bytes
    held: list[tuple[int, np.ndarray]] = []

    def matrix(number: int) -> np.ndarray:
        for known, turned in held[-1:]:
            if known == number:
                return turned
        whole = np.ascontiguousarray(tensor.read_bytes(number * rows, (number + 1) * rows))
        turned = np.ascontiguousarray(whole.reshape(rows, length, item).swapaxes(0, 1)).reshape(length, rows * item)
        held[:] = [(number, turned)]
        return turned

    def read(start: int, stop: int) -> np.ndarray:
        parts = [
            matrix(number)[max(0, start - number * length) : stop - number * length]
            for number in range(start // length, -(-stop // length))
        ]
        return np.concatenate(parts) if parts else np.zeros((0, rows * item), np.uint8)

    return LazyTensor(name=tensor.name, shape=(*stack, length, rows), block_type=tensor.block_type, read=read)


def zeros(name: str, shape: tuple[int, ...], block_type: BlockType = F32) -> LazyTensor:
    """Nothing but zeros, of a plain float type."""
    length = (shape[-1] if shape else 1) * block_type.block_bytes
    return LazyTensor(
        name=name, shape=shape, block_type=block_type,
        read=lambda start, stop: np.zeros((stop - start, length), np.uint8),
    )  # fmt: skip


def padded(tensor: Tensor, rows: int) -> LazyTensor:
    """A matrix of floats with rows of zeros behind its own, up to so many; one that has as many stays as it is."""
    more = rows - tensor.shape[0]
    if more <= 0:
        return renamed(tensor, tensor.name)
    shape = (rows, *tensor.shape[1:])
    return joined(tensor.name, (tensor, zeros(tensor.name, (more, *shape[1:]), tensor.block_type)), shape)


def joined(name: str, tensors: Sequence[Tensor], shape: tuple[int, ...]) -> LazyTensor:
    """The rows of several tensors one after the other, of one type and row length, in a shape of as many rows."""
    ends = list(accumulate(map(n_rows, tensors)))

    def read(start: int, stop: int) -> np.ndarray:
        parts, at = [], start
        while at < stop:
            number = bisect_right(ends, at)
            first = ends[number] - n_rows(tensors[number])
            upto = min(stop, ends[number])
            parts.append(tensors[number].read_bytes(at - first, upto - first))
            at = upto
        if not parts:
            return tensors[0].read_bytes(0, 0)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return LazyTensor(name=name, shape=shape, block_type=tensors[0].block_type, read=read)


def stacked(name: str, tensors: Sequence[Tensor]) -> LazyTensor:
    """Several tensors of one shape and type as one with an axis more, [n, ...]; vectors become the rows of a matrix."""
    return joined(name, tensors, (len(tensors), *tensors[0].shape))


def rows_of(tensor: Tensor, start: int, stop: int, shape: tuple[int, ...]) -> LazyTensor:
    """Rows start..stop of a tensor, in a shape of as many rows."""
    return LazyTensor(
        name=tensor.name, shape=shape, block_type=tensor.block_type,
        read=lambda first, last: tensor.read_bytes(start + first, min(stop, start + last)),
    )  # fmt: skip
