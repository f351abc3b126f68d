"""Tensors that are read row by row, whatever holds them: a mapped file, an array, a change of another tensor.

A tensor is a matrix of rows here: `n` is the length of its last axis, `n_rows` the product of the others.
Shapes are in NumPy order (GGUF's reversed dimensions are translated in formats/gguf).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kvant.dtypes import BlockType


class Tensor(Protocol):
    """A named tensor whose rows are read on demand.

    Attributes:
        name: Canonical name, e.g. `blk.0.attn_q.weight`.
        shape: Lengths of its axes; the last one runs along a row.
        block_type: How the rows are stored.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def block_type(self) -> BlockType: ...  # noqa: D102

    def read_bytes(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop as stored, uint8 [stop - start, row_bytes]; maybe a view not to be written."""
        ...


def row_length(tensor: Tensor) -> int:
    """Weights per row; 1 for a scalar."""
    return tensor.shape[-1] if tensor.shape else 1


def n_rows(tensor: Tensor) -> int:
    """Rows: the product of all axes but the last."""
    return math.prod(tensor.shape[:-1])


def n_weights(tensor: Tensor) -> int:
    """Weights in all."""
    return math.prod(tensor.shape)


def n_bytes(tensor: Tensor) -> int:
    """Bytes as stored."""
    return n_rows(tensor) * tensor.block_type.row_bytes(row_length(tensor))


@dataclass(frozen=True, slots=True, kw_only=True)
class LazyTensor:
    """A tensor whose rows come from a function.

    Attributes:
        read: `read(start, stop)` gives rows as stored, uint8 [stop - start, row_bytes].
    """

    name: str
    shape: tuple[int, ...]
    block_type: BlockType
    read: Callable[[int, int], np.ndarray]

    def read_bytes(self, start: int, stop: int) -> np.ndarray:
        """Return rows start..stop as stored."""
        return self.read(start, stop)


def array_tensor(name: str, values: np.ndarray, block_type: BlockType) -> LazyTensor:
    """A tensor held in memory, stored as it is; `values` of the NumPy type that block_type names (uint16 for BF16)."""
    length = values.shape[-1] if values.ndim else 1
    raw = np.ascontiguousarray(values).reshape(math.prod(values.shape[:-1]), length).view(np.uint8)
    return LazyTensor(name=name, shape=values.shape, block_type=block_type, read=lambda a, b: raw[a:b])
