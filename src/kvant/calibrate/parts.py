"""The matrices of a model that take part in its computation, as the engine shows them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvant.errors import EngineError, UnsupportedModelError
from kvant.model import Model
from kvant.quant.roles import is_quantizable
from kvant.runtime.observer import LOOKUP
from kvant.runtime.process import EngineProcess
from kvant.tensors import n_rows, row_length

LISTENED_TOKENS = 8

KEYS_AND_VALUES = re.compile(r"blk\.(\d+)\.attn_(?:k|v|kv|qkv|kv_a_mqa|kv_b)\.weight")
"""Matrices whose products are attended to. An error in them does harm as often as their token is looked at, and of a
text's tokens the first gets most of that: Xiao et al., "Efficient Streaming Language Models with Attention Sinks"
(2023). With every token counted the same, SmolLM2 in the types of Q4_K_M has a KL divergence of .058, with theirs by
attention .035, under the gradients' own weights .036."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A matrix, or a stack of them, that takes part in a model's computation.

    Attributes:
        name: The tensor.
        role: How it takes part; see `kvant.runtime.observer`.
        columns: Length of its rows.
        rows: Rows of each matrix.
        stack: Matrices: experts, or heads.
        input: The first tensor with the same inputs.
        leader: The first of them whose inputs are weighed alike in second moments.
    """

    name: str
    role: str
    columns: int
    rows: int
    stack: int
    input: str
    leader: str

    @property
    def attention(self) -> int:
        """Number of the layer whose attention weighs its tokens; -1 for none."""
        found = KEYS_AND_VALUES.fullmatch(self.name)
        return int(found[1]) if found and self.stack == 1 else -1

    @property
    def moment_bytes(self) -> int:
        """Bytes of its second moments."""
        return self.stack * self.columns**2 * 4


def open_watched(engine: EngineProcess, base: Path, *, n_ctx: int, threads: int) -> None:
    """Open a model so that the engine shows what it multiplies, with weights as they are stored.

    Raises:
        EngineError: The engine cannot run the file.
    """
    engine.open(base, n_ctx=n_ctx, n_threads=threads, all_logits=True, repack=False, is_observed=True)


def take_part(engine: EngineProcess, model: Model, tokens: np.ndarray, *, every: bool = False) -> list[Part]:
    """Return the tensors of a model that take part, in the engine's order.

    Args:
        engine: A process with the model open, see `open_watched`.
        model: The model.
        tokens: A text, of which some tokens are run.
        every: Return what is not quantized, too: routers.

    Raises:
        EngineError: The engine shows a tensor otherwise than the model holds it.
        UnsupportedModelError: There is none.
    """
    firsts: dict[tuple[int, int], str] = {}
    leaders: dict[tuple[int, int, bool], str] = {}
    found: dict[tuple[str, str], Part] = {}
    for product in engine.listen(tokens[:LISTENED_TOKENS]):
        tensor = model.tensors.get(product.name)
        if tensor is None or (product.name, product.role) in found:
            continue
        if not (every or is_quantizable(tensor.name, tensor.shape, model.architecture)):
            continue
        if (product.columns, product.rows * product.stack) != (row_length(tensor), n_rows(tensor)):
            raise EngineError(
                f"{product.name}: llama.cpp shows {product.stack} matrices of {product.rows} rows of {product.columns} "
                f"weights, and the model holds {list(tensor.shape)}. Check the file with: kvant inspect"
            )
        is_lookup = product.role == LOOKUP
        same, weighed = (product.input, product.stack), KEYS_AND_VALUES.fullmatch(product.name) is not None
        found[product.name, product.role] = Part(
            name=product.name, role=product.role, columns=product.columns, rows=product.rows, stack=product.stack,
            input=product.name if is_lookup else firsts.setdefault(same, product.name),
            leader=product.name if is_lookup else leaders.setdefault((*same, weighed), product.name),
        )  # fmt: skip
    if not found:
        raise UnsupportedModelError(
            f"{model.path}: llama.cpp shows no product with a matrix of {model.architecture}, so there is nothing to "
            "measure. Pass --calibrate none."
        )
    return list(found.values())


def leaders_of(parts: Sequence[Part]) -> list[Part]:
    """Return the matrices whose second moments are summed: of those with the same inputs, weighed alike, the first."""
    return [part for part in parts if part.role != LOOKUP and part.leader == part.name]


def passes(parts: Sequence[Part], ram_bytes: int) -> Iterator[list[Part]]:
    """Cut matrices into groups whose second moments fit memory together, in order; one at least in each."""
    group: list[Part] = []
    for part in parts:
        if group and sum(p.moment_bytes for p in group) + part.moment_bytes > ram_bytes:
            yield group
            group = []
        group.append(part)
    if group:
        yield group
