"""Encoders of the codebook types: groups of weights become points of a grid, the scale of each run is searched.

Weights are rounded to levels one by one. A group that is then no point becomes the nearest of the points around its
cell, weighted by importance. Written for weights that `kernels.limits` lets through.

Source: ggml-quants.c `quantize_row_iq2_xxs_impl`, `iq2_xs`, `iq2_s`, `iq3_xxs`, `iq3_s`; `iq2xs_init_impl`,
`iq3xs_init_impl`. Their block layouts: `codebook`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvant.kernels.reference import bits, searches, tables


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """Points [points, weights] as levels from 0 up, and how many distances the neighbours of a cell may have."""

    points: np.ndarray
    levels: int
    distances: int

    @cached_property
    def places(self) -> np.ndarray:
        """What each weight's level counts in the number of a cell."""
        return self.levels ** np.arange(self.points.shape[1])

    @cached_property
    def number(self) -> np.ndarray:
        """Number of the point in each cell, or -1."""
        number = np.full(self.levels ** self.points.shape[1], -1)
        number[self.points @ self.places] = np.arange(len(self.points))
        return number

    @cached_property
    def _known(self) -> dict[int, np.ndarray]:
        return {}

    def neighbours(self, cell: int) -> np.ndarray:
        """Numbers of the points around a cell: nearest first, then lowest."""
        if cell not in self._known:
            self._known[cell] = self._neighbours(cell)
        return self._known[cell]

    def _neighbours(self, cell: int) -> np.ndarray:
        away = ((self.points - cell // self.places % self.levels) ** 2).sum(axis=-1)
        within = np.flatnonzero(away <= np.unique(away)[self.distances - 1])
        ordered: np.ndarray = within[np.argsort(away[within], kind="stable")]
        return ordered

    def choose(
        self, levels: np.ndarray, x: np.ndarray, weight: np.ndarray, scale: np.ndarray, value: Callable[..., np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Points for groups rounded to `levels` [n, weights]: their numbers [n], and whether they were none [n].

        The error is that of scale [n] * value(levels, rows), weighted.
        """
        cells = levels @ self.places
        found = self.number[cells]
        off = found < 0
        for cell in np.unique(cells[off]):
            rows = np.flatnonzero(cells == cell)
            near = self.neighbours(int(cell))
            rest = scale[rows, None, None] * value(self.points[near], rows) - x[rows, None, :]
            found[rows] = near[searches.total(weight[rows, None, :] * rest * rest)[..., 0].argmin(axis=-1)]
        return found, off


def grid(points: np.ndarray, distances: int) -> Grid:
    """Return a grid by its points' values, the lowest of which is level 0."""
    values = np.unique(points)
    return Grid(points=np.searchsorted(values, points), levels=len(values), distances=distances)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What differs between the types: trials are `top + step * t` levels wide, t from -tries to tries."""

    grid: Grid
    run: int
    even: bool
    step: float
    tries: int
    variance: float
    smallest: float
    again: str  # which groups are rounded again to the scale found: those "off" the grid, "all" if one is, or "always"
    correction: float
    clears: bool  # a block whose scales are all 0 is all zeros

    @property
    def top(self) -> int:
        """The highest level's value."""
        return 2 * self.grid.levels - 1


IQ2_XXS = Kind(
    grid=grid(tables.IQ2_XXS, 2), run=32, even=True, step=0.1, tries=6, variance=1 / 256, smallest=1e-15,
    again="always", correction=1, clears=True,
)  # fmt: skip
IQ2_XS = Kind(
    grid=grid(tables.IQ2_XS, 2), run=16, even=True, step=0.1, tries=9, variance=1 / 256, smallest=1e-15,
    again="off", correction=1, clears=True,
)  # fmt: skip
IQ2_S = Kind(
    grid=grid(tables.IQ2_S, 1), run=16, even=False, step=0.1, tries=9, variance=2 / 256, smallest=1e-8,
    again="off", correction=0.9875, clears=False,
)  # fmt: skip
IQ3_XXS = Kind(
    grid=grid(tables.IQ3_XXS, 2), run=32, even=True, step=0.2, tries=15, variance=2 / 256, smallest=1e-8,
    again="off", correction=1.0125, clears=True,
)  # fmt: skip
IQ3_S = Kind(
    grid=grid(tables.IQ3_S, 3), run=32, even=False, step=0.2, tries=9, variance=2 / 256, smallest=1e-45,
    again="all", correction=1.033, clears=False,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """Blocks: d [n, 1], steps [n, runs], points [n, groups], signs [n, 32], runs without a weight that counts."""

    d: np.ndarray
    steps: np.ndarray
    points: np.ndarray
    signs: np.ndarray
    empty: np.ndarray


def importance_of(x: np.ndarray, importance: np.ndarray | None, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the error [blocks, 256], and the variance of each block [blocks, 1]."""
    squares = x * x
    spread = searches.total(squares) * np.float32(variance)
    return (squares if importance is None else importance * np.sqrt(spread + squares)), spread


def _split_signs(x: np.ndarray, w: np.ndarray, even: bool) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes [n, run] and sign bytes [n, run / 8]; `even`: the least of eight turns where an odd number is < 0."""
    eights = x.reshape(len(x), -1, 8)
    negative = eights < 0
    magnitude = np.where(negative, -eights, eights)
    if even:
        least = (w.reshape(eights.shape) * eights * eights).argmin(axis=-1)
        turned = (negative.sum(axis=-1) % 2 == 1)[..., None] & (np.arange(8) == least[..., None])
        magnitude, negative = np.where(turned, -magnitude, magnitude), negative ^ turned
    signs = bits.pack_bits(negative)[..., 0]
    return magnitude.reshape(x.shape), signs & 127 if even else signs


def _rounded(kind: Kind, x: np.ndarray, factor: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        levels = bits.nearest_even(np.float32(0.5) * (factor * x - np.float32(1)))
    rounded: np.ndarray = np.clip(levels, 0, kind.grid.levels - 1)
    return rounded


def _sums(kind: Kind, x: np.ndarray, w: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of w x q and w q q over runs, for points [..., groups]."""
    q = (2 * kind.grid.points[points] + 1).astype(np.float32).reshape(*points.shape[:-1], kind.run)
    return searches.total(w * x * q)[..., 0], searches.total(w * q * q)[..., 0]


def _value(levels: np.ndarray, _: np.ndarray) -> np.ndarray:
    return (2 * levels + 1).astype(np.float32)


def _choose(
    kind: Kind, x: np.ndarray, w: np.ndarray, factor: np.ndarray, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points of runs [n, run] at scale [n]: [n, groups], and whether each group was none."""
    size = kind.grid.points.shape[1]
    groups = x.reshape(-1, size)
    levels = _rounded(kind, x, factor[:, None]).reshape(-1, size)
    points, off = kind.grid.choose(
        levels, groups, np.sqrt(w).reshape(-1, size), np.repeat(scale, kind.run // size), _value
    )
    return points.reshape(len(x), -1), off.reshape(len(x), -1)


def _search_runs(kind: Kind, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales [n], points [n, groups] and empty runs [n] for magnitudes [n, run]."""
    reach = x.max(axis=-1)
    empty = reach < np.float32(kind.smallest)
    scale = reach / np.float32(kind.top)
    if kind is IQ2_XXS:
        scale = searches.scale_of_scales(x, w, kind.grid.levels + 1).scale[:, 0]
        reach = scale * np.float32(kind.grid.levels)
        empty |= reach <= 0
    gain = np.zeros_like(scale)
    points = np.zeros((len(x), kind.run // kind.grid.points.shape[1]), np.int64)
    off = np.full(points.shape, kind.again == "all")
    with np.errstate(all="ignore"):
        for t in range(-kind.tries, kind.tries + 1):
            factor = (np.float32(kind.top) + np.float32(t) * np.float32(kind.step)) / reach
            these, none = _choose(kind, x, w, factor, np.float32(1) / factor)
            sum_qx, sum_q2 = _sums(kind, x, w, these)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > gain * sum_q2)
            scale = np.where(better, sum_qx / sum_q2, scale)
            gain = np.where(better, scale * sum_qx, gain)
            points, off = (np.where(better[:, None], a, b) for a, b in ((these, points), (none, off)))
        again = ~empty & (scale > 0) & (off.any(axis=-1) | (kind.again == "always"))
        moves = again[:, None] & (off | (kind.again != "off"))
        these, _ = _choose(kind, x, w, np.float32(1) / scale, scale)
        points = np.where(moves, these, points)
        sum_qx, sum_q2 = _sums(kind, x, w, points)
        scale = np.where(again & (sum_q2 > 0), sum_qx / sum_q2, scale)
    return np.where(empty, np.float32(0), scale), np.where(empty[:, None], 0, points), empty


def search(x: np.ndarray, importance: np.ndarray | None, kind: Kind) -> Found:
    """Encode blocks [blocks, 256]; importance of the same shape, or None where ggml allows that."""
    weights, spread = importance_of(x, importance, kind.variance)
    if importance is None and kind is IQ2_S:
        weights = np.float32(0.25) * spread + weights
    w = weights.reshape(-1, kind.run)
    magnitude, signs = _split_signs(x.reshape(-1, kind.run), w, kind.even)
    scale, points, empty = _search_runs(kind, magnitude, w)
    turned = scale < 0
    signs = np.where(turned[:, None], signs ^ np.uint8(127 if kind.even else 255), signs)
    scales = np.abs(scale).reshape(len(x), -1)
    largest = scales.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        d = largest / np.float32(31)
        inverse = np.float32(1) / d
        steps = np.clip(bits.nearest_even(np.float32(0.5) * (inverse * scales - np.float32(1))), 0, 15)
    kept = largest != 0
    shown = kept | (not kind.clears)
    return Found(
        d=np.where(kept, d * np.float32(kind.correction), np.float32(0)),
        steps=np.where(kept, steps, 0).astype(np.uint32),
        points=np.where(shown, points.reshape(len(x), -1), 0).astype(np.uint32),
        signs=np.where(shown, np.where(empty[:, None], 0, signs).reshape(len(x), -1), 0).astype(np.uint8),
        empty=empty.reshape(len(x), -1),
    )


def _bytes(words: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(words.astype(dtype)).view(np.uint8)


def _sevens(found: Found) -> np.ndarray:
    """Words of four times seven signs and a step."""
    sevens = (found.signs.reshape(-1, 8, 4).astype(np.uint32) << np.array([0, 7, 14, 21], np.uint32)).sum(axis=-1)
    return np.asarray(sevens | found.steps << 28, np.uint32)


def _fields(values: np.ndarray, width: int) -> np.ndarray:
    """Bytes of fields of `width` bits, the first lowest, [n, k] -> uint8 [n, k * width / 8]."""
    fields = values.reshape(len(values), -1, 8 // width) << np.arange(0, 8, width, dtype=np.uint32)
    return np.asarray(fields.sum(axis=-1), np.uint8)


def encode_iq2_xxs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Inverse of `codebook.decode_iq2_xxs`; importance float32 [blocks, 256]."""
    found = search(x, importance, IQ2_XXS)
    runs = [found.points.astype(np.uint8).reshape(-1, 8, 4), _bytes(_sevens(found)[..., None], "<u4")]
    return np.concatenate([bits.to_half(found.d), np.concatenate(runs, axis=-1).reshape(-1, 64)], axis=-1)


def encode_iq2_xs(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Inverse of `codebook.decode_iq2_xs`; importance float32 [blocks, 256]."""
    found = search(x, importance, IQ2_XS)
    words = found.points | found.signs.astype(np.uint32) << 9
    return np.concatenate([bits.to_half(found.d), _bytes(words, "<u2"), _fields(found.steps, 4)], axis=-1)


def encode_iq2_s(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `codebook.decode_iq2_s`; importance float32 [blocks, 256] or None."""
    found = search(x, importance, IQ2_S)
    low = found.points.astype(np.uint8)
    return np.concatenate(
        [bits.to_half(found.d), low, found.signs, _fields(found.points >> 8, 2), _fields(found.steps, 4)], axis=-1
    )


def encode_iq3_xxs(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `codebook.decode_iq3_xxs`; importance float32 [blocks, 256] or None."""
    found = search(x, importance, IQ3_XXS)
    return np.concatenate(
        [bits.to_half(found.d), found.points.astype(np.uint8), _bytes(_sevens(found), "<u4")], axis=-1
    )


def encode_iq3_s(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `codebook.decode_iq3_s`, where no run is all zeros; importance float32 [blocks, 256] or None.

    ggml leaves a run of zeros without moving on in its indices and signs: those of later runs move up, and only their
    ninth bits stay.
    """
    found = search(x, importance, IQ3_S)
    low, signs = (np.zeros_like(a, np.uint8) for a in (found.points, found.signs))
    for to, given in ((low, found.points.astype(np.uint8)), (signs, found.signs)):
        for block, empty in enumerate(found.empty):
            kept = given[block].reshape(8, -1)[~empty].ravel()
            to[block, : len(kept)] = kept
    return np.concatenate(
        [bits.to_half(found.d), low, _fields(found.points >> 8, 1), signs, _fields(found.steps, 4)], axis=-1
    )
