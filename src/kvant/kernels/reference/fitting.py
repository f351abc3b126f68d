"""Twin of native/src/fit.cpp: rounding under a full Hessian, in the same order of float operations.

Arrays of columns come first, [n, rows], so that a line here is a line of the kernel, where rows are lanes.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvant.kernels.packing import Parts
from kvant.kernels.reference import microscaled
from kvant.kernels.reference.chunked import CHUNK, ChunkedRows, F, Metric, answer
from kvant.kernels.reference.tables import E2M1_VALUES, IQ4NL_VALUES

HUGE = F(1e30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """What the kernel knows of a block type; scale and minimum bounds are 0 where a block is one run.

    Levels are low to high in steps of 1, or those of a table. First guesses at a scale bring the largest weight to
    `reach`, by default the lowest level, and to what is around it in steps of `spread`.
    """

    run: int
    runs: int
    low: int
    high: int
    has_offset: bool
    scale_low: int = 0
    scale_high: int = 0
    minimum_high: int = 0
    table: np.ndarray | None = None
    step: float = 1
    reach: float | None = None
    spread: float = 0.11
    scale: str = "half"

    @property
    def is_direct(self) -> bool:
        """Whether a block stores its scale itself."""
        return self.runs == 1

    @property
    def is_symmetric(self) -> bool:
        """Whether a scale above 0 is as good as one below."""
        return self.low == -self.high

    def nearest_level(self, t: np.ndarray) -> np.ndarray:
        """Level closest to t; of two the even one, or on the uneven grid the lower one."""
        if self.table is None:
            return np.asarray(np.clip(np.rint(t), F(self.low), F(self.high)))
        middles = F(0.5) * (self.table[:-1] + self.table[1:])
        level: np.ndarray = self.table[np.searchsorted(middles, t, side="left")]
        return level

    def codes(self, levels: np.ndarray) -> np.ndarray:
        """Codes from 0 on of levels."""
        codes = levels - self.low if self.table is None else np.searchsorted(self.table, levels)
        return codes.astype(np.uint8)

    def nearest_scale(self, scale: np.ndarray) -> np.ndarray:
        """The scale that a block of one run can store."""
        if self.scale == "half":
            return half(scale)
        if self.scale == "power":
            limited = np.minimum(np.maximum(scale, F(2**-126)), F(2**124)).astype(F)
            return np.asarray(((limited.view(np.int32) + 0x00400000) & 0x7F800000).view(F))
        return microscaled.half_e4m3(microscaled.to_e4m3(F(2) * scale))

    def wider(self, scale: np.ndarray, by: int) -> np.ndarray:
        """A scale that is a little more, by > 0, or less."""
        if self.scale == "half":
            return np.asarray(scale * F(1 + 0.35 * by * self.step / (self.high - self.low)))
        if self.scale == "power":
            return self.nearest_scale(F(2.0**by) * scale)
        code = np.clip(microscaled.to_e4m3(F(2) * scale).astype(np.int32) + by, 0, 0x7E)
        return microscaled.half_e4m3(code.astype(np.uint8))

    def scale_codes(self, scale: np.ndarray) -> np.ndarray:
        """How a scale is stored, uint16."""
        if self.scale == "half":
            return scale.astype(np.float16).view(np.uint16)
        if self.scale == "power":
            return ((scale.view(np.int32) >> 23) + 1).astype(np.uint16)
        return microscaled.to_e4m3(F(2) * scale).astype(np.uint16)


_E2M1 = np.unique(E2M1_VALUES)
_MXFP4 = Type(run=32, runs=1, low=-12, high=12, has_offset=False, table=_E2M1, step=2, spread=0.8, scale="power")
_IQ4_NL = Type(run=32, runs=1, low=-127, high=113, has_offset=False, table=IQ4NL_VALUES, step=16, spread=1.76)
_TERNARY = Type(run=256, runs=1, low=-1, high=1, has_offset=False, reach=1.78, spread=0.16)


TYPES = {
    "Q4_0": Type(run=32, runs=1, low=-8, high=7, has_offset=False),
    "Q4_1": Type(run=32, runs=1, low=0, high=15, has_offset=True),
    "Q5_0": Type(run=32, runs=1, low=-16, high=15, has_offset=False),
    "Q5_1": Type(run=32, runs=1, low=0, high=31, has_offset=True),
    "Q8_0": Type(run=32, runs=1, low=-128, high=127, has_offset=False),
    "IQ4_NL": _IQ4_NL,
    "MXFP4": _MXFP4, "NVFP4": replace(_MXFP4, run=16, scale="micro"),
    "TQ1_0": _TERNARY, "TQ2_0": _TERNARY,
    "Q1_0": Type(run=128, runs=1, low=-1, high=1, has_offset=False, table=np.array([-1, 1], F)),
    "Q2_0": Type(run=64, runs=1, low=-1, high=2, has_offset=False, reach=1.78, spread=0.16),
    "Q2_K": Type(run=16, runs=16, low=0, high=3, has_offset=True, scale_high=15, minimum_high=15),
    "Q3_K": Type(run=16, runs=16, low=-4, high=3, has_offset=False, scale_low=-32, scale_high=31),
    "Q4_K": Type(run=32, runs=8, low=0, high=15, has_offset=True, scale_high=63, minimum_high=63),
    "Q5_K": Type(run=32, runs=8, low=0, high=31, has_offset=True, scale_high=63, minimum_high=63),
    "Q6_K": Type(run=16, runs=16, low=-32, high=31, has_offset=False, scale_low=-128, scale_high=127),
    "IQ4_XS": replace(_IQ4_NL, runs=8, scale_low=-32, scale_high=31),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grid:
    """What a run is stored with, arrays [rows]: scale and offset as decoded, and their integers."""

    scale: np.ndarray
    offset: np.ndarray
    sc: np.ndarray
    mn: np.ndarray

    def where(self, mask: np.ndarray, other: "Grid") -> "Grid":
        """This grid where the mask holds, the other elsewhere."""
        pairs = zip(self.fields(), other.fields(), strict=True)
        return Grid(*(np.where(mask, a, b) for a, b in pairs))

    def fields(self) -> tuple[np.ndarray, ...]:
        """All four arrays."""
        return self.scale, self.offset, self.sc, self.mn


@dataclass(frozen=True, slots=True)
class Start:
    """What every attempt at a run begins with: its columns in the chunk, levels, gradients, and sums over them."""

    run: slice
    t: np.ndarray
    g: np.ndarray
    ht: np.ndarray
    hs: np.ndarray
    gt: np.ndarray
    gs: np.ndarray
    tt: np.ndarray
    ts: np.ndarray
    ss: np.float32
    grid: Grid


@dataclass(slots=True)
class State:
    """What an attempt leads to: levels [run, rows], change of the error [rows], grid."""

    t: np.ndarray
    change: np.ndarray
    grid: Grid


def half(a: np.ndarray) -> np.ndarray:
    """Nearest finite float16, as float32."""
    return np.asarray(np.clip(a, F(-65504), F(65504)).astype(np.float16).astype(np.float32))


def inverse(a: np.ndarray) -> np.ndarray:
    """1 / a, and 0 where that would be beyond all weights."""
    large = np.abs(a) > F(1e-30)
    return np.where(large, F(1) / np.where(large, a, F(1)), F(0))


def stored(kind: Type, scale: np.ndarray, offset: np.ndarray, d: np.ndarray, dmin: np.ndarray) -> Grid:
    """The grid nearest to a scale and an offset that a block can store."""
    zero = np.zeros_like(scale)
    if kind.is_direct:
        return Grid(kind.nearest_scale(scale), half(offset) if kind.has_offset else zero, zero, zero)
    sc = np.clip(np.rint(scale * inverse(d)), F(kind.scale_low), F(kind.scale_high))
    mn = np.clip(np.rint(-offset * inverse(dmin)), F(0), F(kind.minimum_high)) if kind.has_offset else zero
    return Grid(d * sc, -(dmin * mn) if kind.has_offset else zero, sc, mn)


def least_squares(kind: Type, x: np.ndarray, w: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale and offset that bring levels t closest to x [run, rows], and the error; columns weighed by w [run]."""
    zero = np.zeros(x.shape[1], F)
    xx, xt, tt, xs, ts, ws = zero, zero, zero, zero, zero, F(0)
    for i in range(kind.run):
        wt, wx = w[i] * t[i], w[i] * x[i]
        xx, xt, tt = xx + wx * x[i], xt + wx * t[i], tt + wt * t[i]
        xs, ts, ws = xs + wx, ts + wt, ws + w[i]
    scale, offset = xt * inverse(tt), zero
    if kind.scale != "half":
        scale = kind.nearest_scale(scale)
    if kind.has_offset:
        determinant = ws * tt - ts * ts
        a, b = (ws * xt - ts * xs) * inverse(determinant), (tt * xs - ts * xt) * inverse(determinant)
        free = determinant > F(1e-6) * ws * tt
        free = free if kind.is_direct else free & (b <= 0) & (a > 0)
        offset = np.where(free, b, xs / ws if kind.is_direct else zero)
        scale = np.where(free, a, zero if kind.is_direct else scale)
    error = zero
    for i in range(kind.run):
        e = x[i] - (scale * t[i] + offset)
        error = error + w[i] * e * e
    return scale, offset, error


def search(kind: Type, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and offset of a run of weights [run, rows] by plain weighted rounding, from several first guesses."""
    low, high = x.min(axis=0), x.max(axis=0)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    reach = F(kind.low if kind.reach is None else kind.reach)
    if kind.is_symmetric:
        extreme = -np.abs(extreme) if reach < 0 else np.abs(extreme)
    if kind.has_offset and not kind.is_direct:
        low = np.minimum(low, F(0))
    best = np.full_like(low, HUGE)
    scale = offset = np.zeros_like(low)
    for step in range(-8, 9):
        by = F(kind.spread) * F(step)
        if kind.has_offset:
            guesses = [((F(kind.high) + by) * inverse(high - low), low)]
        else:
            signs = (F(1),) if kind.is_symmetric else (F(1), F(-1))
            guesses = [(sign * (reach + by) * inverse(extreme), np.zeros_like(low)) for sign in signs]
        for guess, start in guesses:
            inverse_scale, origin = guess, start
            for _ in range(2):
                t = kind.nearest_level((x - origin) * inverse_scale)
                a, b, error = least_squares(kind, x, w, t)
                better = error < best
                best, scale, offset = (np.where(better, n, o) for n, o in ((error, best), (a, scale), (b, offset)))
                inverse_scale, origin = inverse(a), b
    return scale, offset


def _half_bits(columns: list[np.ndarray]) -> np.ndarray:
    """Float16 bits of arrays [rows], side by side."""
    return np.stack(columns, axis=1).astype(np.float16).view(np.uint16)


class Rows(ChunkedRows):
    """Rows of a type whose codes are numbers on a grid."""

    def __init__(
        self, kind: Type, weights: np.ndarray, hessian: np.ndarray, feedback: np.ndarray, cost: np.ndarray,
        local: np.ndarray,
    ) -> None:  # fmt: skip
        super().__init__(weights, hessian, feedback, cost, local)
        self.kind, self.run_length = kind, kind.run
        zero = np.zeros(self.w.shape[1], F)
        blocks = self.n // (kind.run * kind.runs)
        self.grid = [Grid(zero, zero, zero, zero)] * (self.n // kind.run)
        self.d, self.dmin = [zero] * blocks, [zero] * blocks

    def round(self, now: slice) -> None:
        """Round the columns of a chunk in order, each run's errors answered by those after it."""
        kind = self.kind
        for at in range(now.start, now.stop, kind.run):
            block, r = divmod(at // kind.run, kind.runs)
            if r == 0 and not kind.is_direct:
                self.choose_super(block)
            run, rest = slice(at, at + kind.run), slice(at + kind.run, now.stop)
            scale, offset = search(kind, self.x[run], self.curvature[run])
            s = self.grid[at // kind.run] = stored(kind, scale, offset, self.d[block], self.dmin[block])
            by, e = inverse(s.scale), np.empty_like(self.w[run])
            for j in range(kind.run):
                c = at + j
                self.t[c] = kind.nearest_level((self.x[c] - s.offset) * by)
                self.v[c] = s.scale * self.t[c] + s.offset
                e[j] = self.w[c] - self.v[c]
                self.x[c + 1 : run.stop] += self.feedback[c + 1 : run.stop, c, None] * e[j]
            answer(self.feedback[rest, run], self.x[rest], e)

    def choose_super(self, block: int) -> None:
        """Super-scales of a block from the scales its runs would like."""
        kind = self.kind
        widest = deepest = np.zeros(self.w.shape[1], F)
        for r in range(kind.runs):
            at = (block * kind.runs + r) * kind.run
            scale, offset = search(kind, self.x[at : at + kind.run], self.curvature[at : at + kind.run])
            widest = np.where(np.abs(scale) > np.abs(widest), scale, widest)
            deepest = np.minimum(deepest, offset)
        self.d[block] = half(widest / F(kind.scale_low if kind.scale_low < 0 else kind.scale_high))
        self.dmin[block] = half(-deepest / F(kind.minimum_high or 1))

    def begin(self, now: slice, at: int, h: Metric) -> Start:
        """Look at a run, `at` in its chunk."""
        run, here = slice(at, at + self.kind.run), slice(now.start + at, now.start + at + self.kind.run)
        t, g, m = self.t[here].copy(), self.g[here].copy(), h.m[run, run]
        ht, hs = np.zeros_like(t), h.sums[at // self.kind.run, run]
        answer(m, ht, t)
        zero = np.zeros_like(t[0])
        gt, gs, tt, ts, ss = zero, zero, zero, zero, F(0)
        for j in range(len(t)):
            gt, tt, gs, ts, ss = gt + g[j] * t[j], tt + ht[j] * t[j], gs + g[j], ts + ht[j], ss + hs[j]
        return Start(run, t, g, ht, hs, gt, gs, tt, ts, ss, self.grid[here.start // self.kind.run])

    def descend(self, run: slice, h: Metric, s: State, g: np.ndarray) -> None:
        """Let codes descend once, in the order of columns."""
        m, inverses, by = h.m[run, run], h.inverse[run], inverse(s.grid.scale)
        for j in range(len(g)):
            level = self.kind.nearest_level(s.t[j] - g[j] * (by * inverses[j]))
            step = s.grid.scale * (level - s.t[j])
            s.change = s.change + step * (g[j] + g[j] + m[j, j] * step)
            s.t[j] = level
            g[j + 1 :] += m[j + 1 :, j, None] * step

    def attempt(self, run: Start, h: Metric, to: Grid) -> State:
        """Go over to another grid and let the codes descend."""
        by, shift = to.scale - run.grid.scale, to.offset - run.grid.offset
        change, g = by * (run.gt + run.gt + by * run.tt), run.g + by * run.ht
        if self.kind.has_offset:
            change = change + shift * (F(2) * (run.gs + by * run.ts) + run.ss * shift)
            g = g + run.hs[:, None] * shift
        state = State(run.t.copy(), change, to)
        self.descend(run.run, h, state, g)
        return state

    def refit(self, run: Start) -> tuple[np.ndarray, np.ndarray]:
        """Scale and offset that are best for a run's codes as they are."""
        if not self.kind.has_offset:
            return run.grid.scale - run.gt * inverse(run.tt), run.grid.offset
        determinant = run.tt * run.ss - run.ts * run.ts
        by = np.where(determinant > F(1e-6) * run.ss * run.tt, inverse(determinant), F(0))
        return (
            run.grid.scale - (run.ss * run.gt - run.ts * run.gs) * by,
            run.grid.offset - (run.tt * run.gs - run.ts * run.gt) * by,
        )

    def guesses(self, at: int, run: Start) -> list[Grid]:
        """Grids to try for a run beside its own."""
        kind, old, block = self.kind, run.grid, at // (self.kind.run * self.kind.runs)
        keep: Callable[[np.ndarray], np.ndarray] = lambda a: a if kind.is_direct else np.minimum(a, F(0))  # noqa: E731
        d, dmin = self.d[block], self.dmin[block]
        scale, offset = self.refit(run)
        found = [stored(kind, scale, keep(offset), d, dmin)]
        mean = np.zeros_like(scale)
        for j in range(kind.run):
            mean = mean + self.t[at + j]
        mean = mean * F(1 / kind.run)
        for i, sign in ((1, -1), (1, 1), (2, -1), (2, 1)):
            if kind.is_direct:
                wider = kind.wider(old.scale, sign * i)
                found.append(stored(kind, wider, old.offset - (wider - old.scale) * mean, d, dmin))
                continue
            sc = np.clip(old.sc + F(sign * i), F(kind.scale_low), F(kind.scale_high))
            wider = d * sc
            if not kind.has_offset:
                found.append(Grid(wider, np.zeros_like(wider), sc, np.zeros_like(wider)))
                continue
            found.append(stored(kind, wider, keep(old.offset - (wider - old.scale) * mean), d, dmin))
            mn = np.clip(old.mn + F(sign * i), F(0), F(kind.minimum_high))
            found.append(Grid(old.scale, -(dmin * mn), old.sc, mn))
        return found

    def improve_run(self, now: slice, at: int, h: Metric) -> None:
        """Improve one run, `at` in its chunk, and let the gradients of the chunk know."""
        here, number = slice(now.start + at, now.start + at + self.kind.run), (now.start + at) // self.kind.run
        run = self.begin(now, at, h)
        best = self.attempt(run, h, run.grid)
        for grid in self.guesses(here.start, run):
            tried = self.attempt(run, h, grid)
            better = tried.change < best.change
            t, change = np.where(better, tried.t, best.t), np.where(better, tried.change, best.change)
            best = State(t, change, tried.grid.where(better, best.grid))
        g = run.g.copy()
        answer(h.m[run.run, run.run], g, best.grid.scale * best.t + best.grid.offset - self.v[here])
        self.descend(run.run, h, best, g)
        better, values = best.change < 0, best.grid.scale * best.t + best.grid.offset
        self.loss = self.loss + np.where(better, best.change, F(0))
        e = np.where(better, values - self.v[here], F(0))
        self.t[here], self.v[here] = np.where(better, best.t, self.t[here]), np.where(better, values, self.v[here])
        self.grid[number] = best.grid.where(better, self.grid[number])
        answer(h.m[:, run.run], self.g[now], e)

    def refit_super(self, block: int, h: Metric) -> None:
        """Refit d and dmin of a block to its codes and integer scales."""
        kind, count = self.kind, self.kind.run * self.kind.runs
        span = slice(block * count, block * count + count)
        grids = self.grid[block * kind.runs : (block + 1) * kind.runs]
        g, t = self.g[span], self.t[span]
        a = np.concatenate([s.sc * t[r * kind.run : (r + 1) * kind.run] for r, s in enumerate(grids)])
        b = np.repeat(np.stack([-s.mn for s in grids]), kind.run, axis=0)
        ha, hb = np.zeros_like(a), np.zeros_like(a)
        answer(h.m, ha, a)
        for r, s in enumerate(grids):
            hb -= h.sums[r, :, None] * s.mn
        zero = np.zeros_like(a[0])
        ga, aa, gb, ab, bb = zero, zero, zero, zero, zero
        for j in range(count):
            ga, aa, gb = ga + g[j] * a[j], aa + ha[j] * a[j], gb + g[j] * b[j]
            ab, bb = ab + ha[j] * b[j], bb + hb[j] * b[j]
        d, dmin = self.d[block], self.dmin[block]
        if kind.has_offset:
            determinant = aa * bb - ab * ab
            usable = determinant > F(1e-6) * aa * bb
            by = inverse(determinant)
            to = half(d - np.where(usable, (bb * ga - ab * gb) * by, ga * inverse(aa)))
            to_min = half(np.maximum(dmin - np.where(usable, (aa * gb - ab * ga) * by, zero), F(0)))
        else:
            to, to_min = half(d - ga * inverse(aa)), dmin
        by, by_min = to - d, to_min - dmin
        change = by * (ga + ga + by * aa)
        if kind.has_offset:
            change = change + by_min * (F(2) * (gb + by * ab) + by_min * bb)
        better = change < 0
        self.loss = self.loss + np.where(better, change, F(0))
        self.d[block], self.dmin[block] = np.where(better, to, d), np.where(better, to_min, dmin)
        self.g[span] += np.where(better, by, F(0)) * ha
        if kind.has_offset:
            self.g[span] += np.where(better, by_min, F(0)) * hb
        for r, s in enumerate(grids):
            run = slice(span.start + r * kind.run, span.start + (r + 1) * kind.run)
            scale, offset = self.d[block] * s.sc, -(self.dmin[block] * s.mn)
            self.grid[block * kind.runs + r] = Grid(scale, offset, s.sc, s.mn)
            self.v[run] = np.where(better, scale * self.t[run] + offset, self.v[run])

    def improve(self, now: slice, h: Metric) -> None:
        """Improve the runs of a chunk; blocks of several runs are as long as it is."""
        for at in range(0, now.stop - now.start, self.kind.run):
            self.improve_run(now, at, h)
        if not self.kind.is_direct:
            self.refit_super(now.start // CHUNK, h)

    def parts(self) -> Parts:
        """The blocks as numbers."""
        direct = self.kind.is_direct
        return Parts(
            codes=np.ascontiguousarray(self.kind.codes(self.t).T),
            d=np.stack(
                [self.kind.scale_codes(s) for s in ([g.scale for g in self.grid] if direct else self.d)], axis=1
            ),
            dmin=_half_bits([s.offset for s in self.grid] if direct else self.dmin),
            scales=np.stack([s.sc for s in self.grid], axis=1).astype(np.int8),
            minimums=np.stack([s.mn for s in self.grid], axis=1).astype(np.uint8),
        )
