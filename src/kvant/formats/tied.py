"""Models whose output head is their embedding, and who store it all the same.

A head that equals the embedding is left out: engines take the embedding where there is none, and the file is smaller by
it. A head that differs is the model's own, whatever its configuration says: transformers does not tie either then
(`modeling_utils.py`, `tie_weights`).
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

from kvant.kernels import decode
from kvant.tensors import Tensor, n_rows, row_length

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
CHUNK_WEIGHTS = 1 << 22
SAMPLED_ROWS = 64

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


def head_once(tensors: Mapping[str, AnyTensor]) -> tuple[dict[str, AnyTensor], str]:
    """Return tensors without a head that equals the embedding, and a remark; all of them and "" where none does.

    Types of blocks must be the same, floats may differ: what counts is that every weight is equal.
    """
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None or not same_values(head, embedding):
        return dict(tensors), ""
    rest = {name: tensor for name, tensor in tensors.items() if name != HEAD}
    return rest, f"{HEAD} equals {EMBEDDING}, as in a tied model: it is written once."


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same weights; read in parts, and no further than to the first difference."""
    if one.shape != other.shape:
        return False
    kinds = (one.block_type, other.block_type)
    if kinds[0] != kinds[1] and any(kind.is_quantized for kind in kinds):
        return False
    length, rows = row_length(one), n_rows(one)
    step, first = max(1, CHUNK_WEIGHTS // max(1, length)), min(rows, 16)
    # Ends, and rows between: a head of its own differs there, and nothing more of it is read.
    spread = [(at, at + 1) for at in range(first, rows, max(1, rows // SAMPLED_ROWS))]
    starts = [(0, first), (rows - first, rows), *spread]
    starts += [(at, min(at + step, rows)) for at in range(first, rows, step)]
    return all(_same_rows(one, other, start, stop) for start, stop in starts)


def _same_rows(one: Tensor, other: Tensor, start: int, stop: int) -> bool:
    found = [tensor.read_bytes(start, stop) for tensor in (one, other)]
    if one.block_type != other.block_type:
        length = row_length(one)
        found = [decode(rows, t.block_type, length) for rows, t in zip(found, (one, other), strict=True)]
    return np.array_equal(found[0], found[1])
