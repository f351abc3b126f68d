"""What may happen to a tensor between transformers' layout and llama.cpp's: the vocabulary of the families' tables.

Every change is lazy and works on ranges of rows, so its memory does not grow with the tensor; `TRANSPOSED` alone holds
one matrix of a stack. A change that has a `back` is undone when a model is written for transformers; the others go one
way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from kvant.errors import FormatError
from kvant.formats.huggingface.config import Config
from kvant.formats.huggingface.lazy import (
    as_float32,
    columns,
    computed,
    gathered,
    padded,
    renamed,
    reshaped,
    selected,
    shifted,
    transposed,
)
from kvant.tensors import LazyTensor, Tensor

Change = Callable[[Tensor, Config], LazyTensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """How a tensor's values change between transformers' layout and the canonical one.

    Attributes:
        forward: From transformers' layout.
        back: To transformers' layout; the inverse. None where one tensor became several, or several one.
        moves_rows: Whole rows are moved or left out, nothing else: true of the rows of an adapter's B, too.
    """

    forward: Change
    back: Change | None = None
    moves_rows: bool = False


def interleave_order(n_heads: int, n_rows: int) -> np.ndarray:
    """Return the source row of each row when rotary pairs move from halves of a head to neighbours, int64 [n_rows].

    transformers rotates component i of a head with i + d/2; llama.cpp's "normal" rotation pairs 2i with 2i + 1, so
    row (head, i, half) takes its values from row (head, half, i).
    """
    return np.arange(n_rows).reshape(n_heads, 2, n_rows // n_heads // 2).swapaxes(1, 2).reshape(-1)


def _rotary(heads_key: str) -> Transform:
    def order(tensor: Tensor, config: Config) -> np.ndarray:
        heads, rows = config.integer(heads_key), tensor.shape[0]
        if rows % (2 * heads):
            raise FormatError(
                f"{tensor.name}: {rows} rows are not {heads} heads of even length. Check {heads_key} in {config.path}."
            )
        return interleave_order(heads, rows)

    return Transform(
        forward=lambda tensor, config: gathered(tensor, order(tensor, config)),
        back=lambda tensor, config: gathered(tensor, np.argsort(order(tensor, config))),
        moves_rows=True,
    )


ROTARY: Mapping[str, Transform] = MappingProxyType(
    {"attn_q": _rotary("num_attention_heads"), "attn_k": _rotary("num_key_value_heads")}
)
"""Query and key rows of the architectures that llama.cpp rotates in neighbouring pairs."""

PLUS_ONE = Transform(forward=lambda tensor, _: shifted(tensor, 1.0), back=lambda tensor, _: shifted(tensor, -1.0))
"""Norm weights that transformers stores without the 1 that it adds to them."""

AS_FLOAT32 = Transform(forward=lambda tensor, _: as_float32(tensor), back=lambda tensor, _: as_float32(tensor))
"""Small matrices that the engine multiplies with in float32, as it does with vectors."""

MINUS_EXP = Transform(
    forward=lambda tensor, _: computed(tensor, lambda values: -np.exp(values.astype(np.float64))),
    back=lambda tensor, _: computed(tensor, lambda values: np.log(-values.astype(np.float64))),
)
"""Decay rates, which transformers stores as the logarithm of their negative; rounded once, so alike on every machine.

Upstream's are torch's, which differ in the last bit of one value in a hundred.
"""

SQUEEZED = Transform(
    forward=lambda tensor, _: reshaped(tensor, (tensor.shape[0], tensor.shape[-1])),
    back=lambda tensor, _: reshaped(tensor, (tensor.shape[0], 1, tensor.shape[-1])),
)
"""Kernels of a convolution by channel: [channels, 1, width] without the axis in the middle."""

COLUMN = Transform(
    forward=lambda tensor, _: reshaped(tensor, (tensor.shape[0], 1)),
    back=lambda tensor, _: reshaped(tensor, (tensor.shape[0],)),
)
"""A value per head as a matrix of one column."""


def _turned(tensor: Tensor, _: Config) -> LazyTensor:
    return transposed(tensor) if len(tensor.shape) > 1 else renamed(tensor, tensor.name)


TRANSPOSED = Transform(forward=_turned, back=_turned)
"""Matrices, or a stack of them, that transformers stores with inputs along the rows: [..., in, out]; not vectors."""


def inputs_along_columns(entry: str) -> Transform:
    """Matrices with as many columns as an entry of config.json says; turned over where the rows are as many."""

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        fits = tensor.shape[-1] == config.integer(entry)
        return renamed(tensor, tensor.name) if fits else transposed(tensor)

    return Transform(forward=forward)


PADDED = Transform(forward=lambda tensor, config: padded(tensor, config.integer("vocab_size")))
"""Embeddings that have no rows for the last tokens, those of pictures and sounds: zeros, as upstream writes."""


def grouped(n_groups: str) -> Transform:
    """A vector as a matrix of as many rows as an entry of config.json says."""
    return Transform(
        forward=lambda tensor, config: reshaped(
            tensor, (config.integer(n_groups), tensor.shape[0] // config.integer(n_groups))
        ),
        back=lambda tensor, _: reshaped(tensor, (tensor.shape[0] * tensor.shape[1],)),
    )


def share(part: int, n_parts: int, *, of: Change | None = None) -> Transform:
    """One of several equal shares of the rows of each matrix: the gate's or the up projection's of both in one.

    Args:
        part: Which share, from 0.
        n_parts: How many there are.
        of: What happens to the tensor before.
    """

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        whole = of(tensor, config) if of else tensor
        rows = _matrix_rows(whole, n_parts, config)
        return selected(whole, np.arange(part * rows // n_parts, (part + 1) * rows // n_parts))

    return Transform(forward=forward, moves_rows=of is None)


def every(part: int, n_parts: int, *, of: Change | None = None) -> Transform:
    """Every n-th row of each matrix from `part` on, or every n-th item of each row of biases; see `share`."""

    def forward(tensor: Tensor, config: Config) -> LazyTensor:
        whole = of(tensor, config) if of else tensor
        return selected(whole, np.arange(part, _matrix_rows(whole, n_parts, config), n_parts))

    return Transform(forward=forward, moves_rows=of is None)


def every_column(part: int, n_parts: int) -> Transform:
    """Every n-th item of each row from `part` on: biases of both projections in one."""
    return Transform(forward=lambda tensor, _: columns(tensor, np.arange(part, tensor.shape[-1], n_parts)))


def _matrix_rows(tensor: Tensor, n_parts: int, config: Config) -> int:
    """Return the rows of each matrix of a stack, or the items of a vector.

    Raises:
        FormatError: They cannot be shared out evenly.
    """
    rows = tensor.shape[-2] if len(tensor.shape) > 1 else tensor.shape[0]
    if rows % n_parts:
        raise FormatError(f"{tensor.name}: {rows} rows are not {n_parts} even shares. Check {config.path}.")
    return rows


FIRST_HALF, SECOND_HALF = share(0, 2), share(1, 2)
"""The gate's and the up projection's rows of both in one: [..., 2 n, m] to [..., n, m]."""
