"""Which block type holds a tensor's weights as they are, block by block, and the tensor in that type.

A tensor is looked at twice: a sample of its blocks says which type may hold it, and then all of them are proven. It is
carried over if every block is, or misses by no more than the last place of the type that its weights were stored in;
else the smallest float that holds them stands in.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from kvant.devices.limits import cores
from kvant.dtypes import BF16, BLOCK_TYPES, F16, F32, BlockType, block_type
from kvant.kernels import decode, encode, transcode
from kvant.kernels.grids import AFFINE, SEARCHED, SYMMETRIC, GridBlocks, fit_grid, rounded
from kvant.model import Grid, Model
from kvant.quant.plan import KEEP, POOR_WITHOUT_IMPORTANCE
from kvant.quant.roles import is_matrix
from kvant.tensors import LazyTensor, Tensor, n_rows, n_weights, row_length

Steps = Callable[[int, int], np.ndarray]
"""Gives the steps of the grid that rows start..stop lie on, float32 [stop - start, groups]."""

STEPPED = tuple(sorted((*SYMMETRIC, *AFFINE), key=lambda name: BLOCK_TYPES[name].bpw))
"""Types for grids whose step is known, the smallest first."""

CHUNK_WEIGHTS = 1 << 16
SAMPLED_BLOCKS = 1024
SAMPLED_PLACES = 8
MIN_BLOCKS = 32  # that hold more than zeros: fewer prove no grid
MAX_LEVELS = 16  # of what is searched for; genuine weights of a block hardly ever repeat
MIN_LEVELS = 3
LOOKED_AT = 6  # matrices that stand for all


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in the smallest type that holds it.

    Attributes:
        tensor: The tensor.
        grid: How well its type was proven to hold it.
        missed: The block type that came nearest, where none holds it.
    """

    tensor: LazyTensor
    grid: Grid
    missed: Grid | None = None


def sample(
    tensor: Tensor, *, steps: Steps | None = None, packed: Tensor | None = None, searches: bool = True
) -> Grid | None:
    """Tell from some blocks which block type holds a tensor, or comes nearest; None if none holds a single block.

    Args:
        tensor: Weights of F32, F16 or BF16.
        steps: Steps of its grid, where they are known.
        packed: Its codes in a block type, where there are such.
        searches: Look for an even grid where neither is known.
    """
    best: Grid | None = None
    for found in _sampled(tensor, steps, packed, searches=searches):
        if found.holds:
            return found
        best = found if found.n_exact and (best is None or found.share > best.share) else best
    return best


def hold(tensor: Tensor, *, steps: Steps | None = None, packed: Tensor | None = None, searches: bool = True) -> Held:
    """Return a tensor in the smallest type that holds its weights, every block of which is proven.

    Args:
        tensor: Weights of F32, F16 or BF16; where it is decoded from something else, F32.
        steps: As for `sample`, and so are the others.
        packed: Its codes in a block type.
        searches: Look for an even grid where neither is known.
    """
    missed: list[Grid] = []
    for likely in _sampled(tensor, steps, packed, searches=searches):
        if likely.holds:
            kind = block_type(likely.kind)
            likely = _proven(tensor, kind, steps, packed, _spans(tensor))
            if likely.holds:
                return Held(_as_blocks(tensor, kind, steps, packed), likely)
        missed.append(likely)
    return replace(_as_float(tensor), missed=max(missed, key=lambda grid: grid.share, default=None))


def hold_floats(model: Model, *, only: Callable[[str], bool] = lambda _: True) -> dict[str, Held]:
    """Return those matrices of floats of a model that a block type holds: what was trained onto a grid, or decoded.

    Args:
        model: The model; what its file holds quantized is passed over.
        only: Says which tensors to look at.
    """
    found = {}
    for name in float_matrices(model):
        tensor = model.tensors[name]
        likely = sample(tensor) if only(name) else None
        if likely is not None and likely.holds:
            held = hold(tensor)
            if block_type(held.grid.kind).is_quantized:
                found[name] = held
    return found


def kept_tensors(model: Model) -> dict[str, Tensor]:
    """Return the tensors of a model that are carried over, not quantized, in the types that hold their values."""
    found = {name: tensor for name, how in model.stored.items() if (tensor := how.blocks()) is not None}
    if model.is_base:
        found |= {name: held.tensor for name, held in hold_floats(model).items()}
    return found


def kept_as(model: Model, name: str, kind: BlockType) -> Tensor:
    """Return a tensor of a model in the type that was found to hold it, as `kept_tensors` does."""
    tensor = model.tensors[name]
    if name in model.stored:
        found = model.stored[name].blocks()
        return tensor if found is None or found.block_type != kind else found
    return _as_blocks(tensor, kind, None, None) if kind.is_quantized and kind != tensor.block_type else tensor


def may_keep(model: Model) -> bool:
    """Tell from samples whether there is something that `kept_tensors` would carry over."""
    if model.stored:
        return True
    return model.is_base and any(_holds(model.tensors[name]) for name in float_matrices(model))


def loss_again(model: Model, types: Mapping[str, str]) -> str:
    """Say what a plan loses that rounds weights to another grid than the one they lie on; empty if it does not.

    Args:
        model: The model.
        types: Type of each tensor by the plan.
    """
    if not model.is_base:
        return ""
    again = [name for name in types if name in model.tensors and _is_rounded_again(model, name, types[name])]
    floats = [n for n in float_matrices(model) if block_type(types.get(n, "F32")).is_quantized]
    again += [name for name in floats[:: max(1, len(floats) // LOOKED_AT)] if _holds(model.tensors[name])]
    if not again:
        return ""
    looked_at = again[:: max(1, len(again) // LOOKED_AT)]
    errors = [_relative_error(model.tensors[name], block_type(types[name])) for name in looked_at]
    name = again[0]
    found = sample(model.tensors[name]) if name not in model.stored else None
    kind = model.stored[name].kind if name in model.stored else found.kind if found else model.tensors[name].block_type
    return (
        f"{name} and others lie on a grid already ({kind}); as {types[name]} they are rounded once more, which moves "
        f"weights by {math.sqrt(sum(e * e for e in errors) / len(errors)):.1%} (rms of a sample). -t {KEEP} rounds "
        f"nothing."
    )


def _is_rounded_again(model: Model, name: str, kind: str) -> bool:
    """Whether a tensor that is quantized in its file becomes another block type."""
    is_stored = name in model.stored or model.tensors[name].block_type.is_quantized
    return is_stored and block_type(kind).is_quantized and kind != model.tensors[name].block_type.name


def _relative_error(tensor: Tensor, kind: BlockType) -> float:
    x = np.concatenate([_rows(tensor, *span) for span in _places(tensor)])
    ones = np.ones(x.shape[1], np.float32) if kind.name in POOR_WITHOUT_IMPORTANCE else None
    restored = decode(encode(x, kind, importance=ones), kind, x.shape[1])
    return float(np.linalg.norm(restored - x) / max(float(np.linalg.norm(x)), 1e-30))


def _holds(tensor: Tensor) -> bool:
    found = sample(tensor)
    return found is not None and found.holds


def float_matrices(model: Model) -> Iterator[str]:
    """Names of the matrices that may lie on a grid unsaid: floats in rows of whole blocks."""
    for name, tensor in model.tensors.items():
        fits = tensor.block_type in (F32, F16, BF16) and row_length(tensor) % 32 == 0 and is_matrix(tensor.shape)
        if fits and name not in model.stored and not name.endswith("_norm.weight"):
            yield name


def grid_of(model: Model, name: str) -> Grid | None:
    """Tell from a sample which block type holds a tensor of a model; None if none does or it is in blocks already."""
    if name in model.stored:
        return model.stored[name].grid(proven=False)
    return sample(model.tensors[name]) if name in set(float_matrices(model)) else None


def _sampled(tensor: Tensor, steps: Steps | None, packed: Tensor | None, *, searches: bool) -> Iterator[Grid]:
    """What the sampled blocks say of each type that may hold them, the smallest first."""
    spans = _places(tensor)
    if packed is not None:
        yield replace(_proven(tensor, packed.block_type, None, packed, spans), is_sampled=True)
        return
    if not spans or row_length(tensor) % 32 or not (steps or (searches and _may_be_grid(tensor, spans))):
        return
    for kind in STEPPED if steps else SEARCHED:
        yield replace(_proven(tensor, block_type(kind), steps, None, spans), is_sampled=True)


def _may_be_grid(tensor: Tensor, spans: Sequence[tuple[int, int]]) -> bool:
    """Whether sampled blocks hold so few different values that four bits could code them."""
    rows = np.concatenate([_rows(tensor, *span) for span in spans])
    blocks = np.sort(rows.reshape(-1, 32), axis=1)
    levels = 1 + (blocks[:, 1:] != blocks[:, :-1]).sum(axis=1)
    telling = levels[levels >= MIN_LEVELS]
    return len(telling) >= MIN_BLOCKS and float(np.mean(telling <= MAX_LEVELS)) > 0.9


def _proven(
    tensor: Tensor, kind: BlockType, steps: Steps | None, packed: Tensor | None, spans: Sequence[tuple[int, int]]
) -> Grid:
    """Encode ranges of rows, decode them and compare."""

    def look(span: tuple[int, int]) -> tuple[int, int, int, float]:
        got = _fitted(tensor, kind, steps, packed, *span)
        return got.exact.size, int(got.exact.sum()), int(got.near.sum()), got.error

    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(look, spans))
    totals = [sum(part[i] for part in found) for i in range(3)]
    return Grid(
        kind=kind.name, n_blocks=int(totals[0]), n_exact=int(totals[1]), n_near=int(totals[2]),
        error=max((part[3] for part in found), default=0.0), is_sampled=False,
    )  # fmt: skip


def _fitted(
    tensor: Tensor, kind: BlockType, steps: Steps | None, packed: Tensor | None, start: int, stop: int
) -> GridBlocks:
    if packed is None:
        found = _rows(tensor, start, stop)
        return fit_grid(found, kind, tensor.block_type, steps=None if steps is None else steps(start, stop))
    blocks = np.ascontiguousarray(packed.read_bytes(start, stop))
    wrong = np.abs(decode(blocks, kind, row_length(tensor), threads=1) - _rows(tensor, start, stop))
    exact = (wrong == 0).reshape(stop - start, -1, kind.block_length).all(axis=-1)
    return GridBlocks(blocks=blocks, exact=exact, near=exact, error=float(wrong.max(initial=0.0)))


def _as_blocks(tensor: Tensor, kind: BlockType, steps: Steps | None, packed: Tensor | None) -> LazyTensor:
    def read(start: int, stop: int) -> np.ndarray:
        parts = [_fitted(tensor, kind, steps, packed, *span).blocks for span in _spans(tensor, start, stop)]
        return np.concatenate(parts) if parts else np.empty((0, kind.row_bytes(row_length(tensor))), np.uint8)

    return LazyTensor(name=tensor.name, shape=tensor.shape, block_type=kind, read=read)


def _as_float(tensor: Tensor) -> Held:
    """A tensor in the smallest float type that holds its weights; its own where that is 16 bits wide already."""
    kind = tensor.block_type if tensor.block_type != F32 else _float_holding(tensor)
    length = row_length(tensor)

    def read(start: int, stop: int) -> np.ndarray:
        return transcode(tensor.read_bytes(start, stop), tensor.block_type, kind, length, first_row=start)

    count = n_weights(tensor)
    grid = Grid(kind=kind.name, n_blocks=count, n_exact=count, n_near=count, error=0.0, is_sampled=False)
    return Held(LazyTensor(name=tensor.name, shape=tensor.shape, block_type=kind, read=read), grid)


def _float_holding(tensor: Tensor) -> BlockType:
    fits = dict.fromkeys((BF16, F16), True)
    for span in (*_places(tensor), *_spans(tensor)):
        values = _rows(tensor, *span)
        for kind in fits:
            fits[kind] = fits[kind] and bool((rounded(values, kind) == values).all())
        if not any(fits.values()):
            return F32
    return next(kind for kind, holds in fits.items() if holds)


def _rows(tensor: Tensor, start: int, stop: int) -> np.ndarray:
    return decode(tensor.read_bytes(start, stop), tensor.block_type, row_length(tensor), threads=1)


def _spans(tensor: Tensor, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Ranges of rows that memory is bounded by."""
    stop = n_rows(tensor) if stop is None else stop
    step = max(1, CHUNK_WEIGHTS // max(1, row_length(tensor)))
    return [(at, min(at + step, stop)) for at in range(start, stop, step)]


def _places(tensor: Tensor) -> list[tuple[int, int]]:
    """A few short ranges of rows over the whole of a tensor."""
    rows = n_rows(tensor)
    run = max(1, min(rows, SAMPLED_BLOCKS * 32 // SAMPLED_PLACES // max(1, row_length(tensor))))
    starts = sorted({place * (rows - run) // (SAMPLED_PLACES - 1) for place in range(SAMPLED_PLACES)})
    return [(start, start + run) for start in starts] if rows else []
