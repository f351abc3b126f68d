"""Blocks that hold weights as they are: find the step of the grid they lie on, and prove it block by block.

Weights that were rounded to few levels, `w = (q - z) * s`, can be stored in a block type without a second rounding if
the block gets that very step. ggml's encoders do not look for it: Q4_0 puts the largest magnitude on code -8, so a grid
whose largest level is 7 gets a step of 7/8 of its own, and every weight moves.

Here the largest magnitude is taken for each level k in turn. The codes that follow from a step bound it: every weight
is a float of the source's type, that is an interval of reals that round to it, and the step must map each code into its
weight's interval. A float16 number in the intersection of all restores the block.

Nothing found is believed: what is returned as exact was decoded and compared.
"""

from typing import NamedTuple

import numpy as np

from kvant.dtypes import BF16, F16, F32, BlockType
from kvant.kernels import packing
from kvant.kernels.codec import decode, encode
from kvant.kernels.reference import bits

SYMMETRIC = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
"""Types of one step: weight = (q - levels) * d, q from 0 to 2 * levels - 1."""

AFFINE = {"Q4_1": 15, "Q5_1": 31}
"""Types of a step and an offset: weight = q * d + m, q from 0 to levels."""

GRID_TYPES = ("MXFP4", *SYMMETRIC, *AFFINE)
"""Types that `fit_grid` fits."""

SEARCHED = ("MXFP4", "Q4_0", "Q4_1")
"""Those whose step can be found from weights alone; more bits have too many levels to try, and need a known step."""

_ULP = {F32: np.uint32(1), F16: np.uint32(1 << 13), BF16: np.uint32(1 << 16)}
"""Distance of neighbours in the bits of a float32."""

_HALF_ULP = {F32: 2.0**-24, F16: 2.0**-11, BF16: 2.0**-8}
"""Largest relative error of rounding to a type, with room for the two roundings of step and weight."""

_TINY = np.float32(2.0**-22)
"""Eight of the smallest steps of float16: what blocks of almost nothing lose."""

_PROBED = 8  # weights of a block that are looked at first: they rule most levels out


class GridBlocks(NamedTuple):
    """Rows in a block type.

    Attributes:
        blocks: Blocks, uint8 [rows, bytes per row].
        exact: Whether a block restores every weight of the source, bool [rows, blocks].
        near: Whether it restores them all but for one unit in the last place of the source's type, or for what is below
            the smallest steps of float16, bool [rows, blocks].
        error: Largest difference of a weight, after rounding to the source's type.
    """

    blocks: np.ndarray
    exact: np.ndarray
    near: np.ndarray
    error: float


class _Found(NamedTuple):
    """Codes from the lowest up, steps and offsets of blocks; which blocks have any, and which are restored by them."""

    codes: np.ndarray
    d: np.ndarray
    m: np.ndarray
    is_found: np.ndarray
    is_exact: np.ndarray


def fit_grid(x: np.ndarray, kind: BlockType, source: BlockType = F32, *, steps: np.ndarray | None = None) -> GridBlocks:
    """Encode rows with the step of the grid that they lie on; blocks on no grid get ggml's encoding.

    A block is exact if every weight that it decodes to, rounded to the source's type, is the source's weight.

    Args:
        x: Weights, float32 [rows, n]; n a multiple of the block length.
        kind: One of `GRID_TYPES`.
        source: F32, F16 or BF16: the type that the weights were rounded to when they were stored.
        steps: The grid's step where it is known, float32 [rows, groups], groups dividing n; searched for if None.

    Returns:
        The blocks, which of them are exact, and the largest error of the others.
    """
    rows, n = x.shape
    if kind.name == "MXFP4":  # a power of two is what ggml's rule finds
        return _proven(encode(x, kind, threads=1), x, kind, source)
    b = x.reshape(-1, kind.block_length)
    known = None if steps is None else _by_block(steps, n // kind.block_length)
    find = _affine if kind.name in AFFINE else _symmetric
    found = find(b, AFFINE.get(kind.name) or SYMMETRIC[kind.name], source, known)
    blocks = _packed(found, kind)
    rest = ~found.is_found
    if rest.any():
        blocks[rest] = encode(b[rest], kind, threads=1)
    return _proven(blocks.reshape(rows, -1), x, kind, source)


def rounded(x: np.ndarray, kind: BlockType) -> np.ndarray:
    """Float32 values rounded to a float type, halves to even; float32 [...]."""
    if kind == BF16:
        raw = x.view(np.uint32)
        return ((raw + 0x7FFF + (raw >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if kind == F16:
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    return x


def _proven(blocks: np.ndarray, x: np.ndarray, kind: BlockType, source: BlockType) -> GridBlocks:
    """Decode blocks and compare them with the weights."""
    restored = rounded(decode(blocks, kind, x.shape[1], threads=1), source)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(restored - x)
        exact = (difference == 0).reshape(len(x), -1, kind.block_length).all(axis=-1)
        near, worst = exact.copy(), 0.0
        if not exact.all():
            left = ~exact
            wrong, weights = (a.reshape(*exact.shape, -1)[left] for a in (difference, np.abs(x)))
            ulp = (weights.view(np.uint32) + _ULP[source]).view(np.float32) - weights
            near[left] = (wrong <= np.maximum(ulp, _TINY)).all(axis=-1)
            worst = float(np.nan_to_num(wrong, nan=np.inf).max())
    return GridBlocks(blocks=blocks, exact=exact, near=near, error=worst)


def _by_block(steps: np.ndarray, blocks: int) -> np.ndarray:
    """Known steps, one per block, float32 [rows * blocks]."""
    at = np.arange(blocks) * steps.shape[1] // blocks
    return np.ascontiguousarray(steps[:, at], np.float32).reshape(-1)


def _packed(found: _Found, kind: BlockType) -> np.ndarray:
    """Blocks of codes, steps and offsets, uint8 [blocks, block bytes]; nonsense where nothing is found."""
    with np.errstate(over="ignore"):
        d, m = (values.astype(np.float16).view(np.uint16)[:, None] for values in (found.d, found.m))
    nothing = np.empty(0)
    return packing.pack(packing.Parts(codes=found.codes, d=d, dmin=m, scales=nothing, minimums=nothing), kind)


def _symmetric(b: np.ndarray, levels: int, source: BlockType, steps: np.ndarray | None) -> _Found:
    """Codes and steps of `weight = (q - levels) * d`."""
    out = _nothing(b)
    out.codes[:] = levels
    out.is_found[:] = out.is_exact[:] = ~b.any(axis=1)
    signed, nothing = bits.first_largest(b)[:, 0], np.zeros(len(b), np.float32)
    for level in range(levels, 0, -1) if steps is None else (0,):
        left = np.flatnonzero(~out.is_exact & np.isfinite(signed))
        if not len(left):
            break
        if steps is not None:
            step = steps[left]
        else:
            step = signed[left] / np.float32(-levels) if level == levels else np.abs(signed[left]) / np.float32(level)
        left, step, q = _on_grid(b, left, step, nothing, np.abs(signed[left]), source)
        high = q.max(axis=1, initial=0) > levels - 1  # code `levels` is there on the negative side alone
        step, q = np.where(high, -step, step), np.where(high[:, None], -q, q)
        fits = (q.min(axis=1, initial=0) >= -levels) & (q.max(axis=1, initial=0) < levels)
        _settle(b, out, left[fits], q[fits], step[fits], nothing[left[fits]], source, levels)
    return out


def _affine(b: np.ndarray, levels: int, source: BlockType, steps: np.ndarray | None) -> _Found:
    """Codes, steps and offsets of `weight = q * d + m`; m may lie below the lowest weight, where float16 has it."""
    out = _nothing(b)
    low, high = b.min(axis=1), b.max(axis=1)
    out.m[:] = low
    out.is_found[:] = out.is_exact[:] = low == high
    usable = np.isfinite(low) & np.isfinite(high)
    for level in range(levels, 0, -1) if steps is None else (0,):
        left = np.flatnonzero(~out.is_exact & usable)
        if not len(left):
            break
        step = np.abs(steps[left]) if steps is not None else (high[left] - low[left]) / np.float32(level)
        largest = np.maximum(np.abs(low[left]), np.abs(high[left]))
        left, step, q = _on_grid(b, left, step, low, largest, source)
        unused = levels - q.max(axis=1, initial=0)
        for down in range(levels):
            fits = (unused >= down) & ~out.is_exact[left]
            if not fits.any():
                break
            at = left[fits]
            offset = rounded(low[at] - np.float32(down) * step[fits], F16)
            _settle(b, out, at, q[fits] + down, step[fits], offset, source, 0)
    return out


def _nothing(b: np.ndarray) -> _Found:
    n = len(b)
    return _Found(
        np.zeros(b.shape, np.uint8), np.zeros(n, np.float32), np.zeros(n, np.float32), np.zeros(n, bool),
        np.zeros(n, bool),
    )  # fmt: skip


def _settle(
    b: np.ndarray, out: _Found, at: np.ndarray, q: np.ndarray, step: np.ndarray, offset: np.ndarray,
    source: BlockType, middle: int,
) -> None:  # fmt: skip
    """Note codes with the first float16 step that restores the weights, else with the nearest one."""
    left, w = np.arange(len(at)), b[at]
    for attempt in range(5):
        if not len(left):
            break
        if attempt < 2:  # what most grids have: a float16 step as it is, or a bfloat16 step that was rounded twice
            trial = rounded(step[left] if attempt else rounded(step[left], BF16), F16)
        elif attempt == 2:
            least, most = _bounds(w[left], q[left], offset[left], source)
            known = np.isfinite(least) & np.isfinite(most)
            with np.errstate(invalid="ignore"):
                centre = np.where(known, (least + most) / 2, step[left]).astype(np.float32)
            trial = rounded(centre, F16)
        else:
            trial = _neighbour(rounded(centre, F16), up=attempt == 3)
        good = _holds(w[left], q[left], trial, offset[left], source)
        fresh = good | ((attempt == 2) & ~out.is_found[at[left]])
        to = at[left[fresh]]
        out.codes[to], out.d[to], out.m[to] = (
            (q[left[fresh]] + middle).astype(np.uint8),
            trial[fresh],
            offset[left[fresh]],
        )
        out.is_found[to] = True
        out.is_exact[at[left[good]]] = True
        left = left[~good]
        if attempt >= 2:
            centre = centre[~good]


def _on_grid(
    b: np.ndarray, left: np.ndarray, step: np.ndarray, offset: np.ndarray, largest: np.ndarray, source: BlockType
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep the blocks whose weights are whole numbers of steps from an offset; their numbers, steps and codes."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        inverse = np.float32(1) / step
        slack = np.minimum(np.abs(largest * inverse) * np.float32(4 * _HALF_ULP[source]) + np.float32(1e-4), 0.2)
        for width in (_PROBED, b.shape[1]):
            places = (b[left, :width] - offset[left, None]) * inverse[:, None]
            q = np.rint(places)
            near = (np.abs(places - q) <= slack[:, None]).all(axis=1)
            left, step, inverse, slack, q = (a[near] for a in (left, step, inverse, slack, q))
    near = np.abs(q).max(axis=1, initial=0) <= 1 << 10
    return left[near], step[near], q[near].astype(np.int16)


def _bounds(b: np.ndarray, q: np.ndarray, offset: np.ndarray, source: BlockType) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest step that maps every code into the reals that round to its weight, float64 [blocks]."""
    magnitude = np.abs(b)
    raw = magnitude.view(np.uint32)
    wide = magnitude.astype(np.float64)
    outer = (wide + (raw + _ULP[source]).view(np.float32)) / 2
    inner = (wide + (np.maximum(raw, _ULP[source]) - _ULP[source]).view(np.float32)) / 2
    negative = b < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        one = (np.where(negative, -outer, inner) - offset[:, None]) / q
        other = (np.where(negative, -inner, outer) - offset[:, None]) / q
    used = q != 0
    least = np.where(used, np.minimum(one, other), -np.inf).max(axis=1, initial=-np.inf)
    most = np.where(used, np.maximum(one, other), np.inf).min(axis=1, initial=np.inf)
    return least, most


def _neighbour(halves: np.ndarray, *, up: bool) -> np.ndarray:
    """The float16 numbers beside float16 numbers, float32 [...]."""
    towards = np.float16(np.inf if up else -np.inf)
    return np.nextafter(halves.astype(np.float16), towards).astype(np.float32)


def _holds(b: np.ndarray, q: np.ndarray, step: np.ndarray, offset: np.ndarray, source: BlockType) -> np.ndarray:
    """Whether codes, step and offset restore a block; bool [blocks]."""
    with np.errstate(invalid="ignore", over="ignore"):
        restored = q.astype(np.float32) * step[:, None] + offset[:, None]
    return np.asarray((rounded(restored, source) == b).all(axis=1))
