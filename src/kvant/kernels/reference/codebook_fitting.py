"""Twin of native/src/fit_codebook.cpp: codebook types under a full Hessian, in the same order of float operations.

Arrays of columns come first, [n, rows], so that a line here is a line of the kernel, where rows are lanes. A unit is
the weights whose signs hang together: a group, or eight weights where the number of negative ones is even.
"""

from dataclasses import dataclass

import numpy as np

from kvant.kernels.packing import Parts
from kvant.kernels.reference import tables
from kvant.kernels.reference.chunked import ChunkedRows, F, Metric, answer
from kvant.kernels.reference.fitting import HUGE, half, inverse


@dataclass(frozen=True, slots=True, kw_only=True)
class Type:
    """What the kernel knows of a block type: weight = d * part * (2 sc + 1) * level.

    Levels have signs; or, in IQ1, are all 1/8 higher or lower, `shifted` weights alike.
    """

    points: np.ndarray
    run: int
    part: np.float32
    is_even: bool = False
    shifted: int = 0

    @property
    def top(self) -> np.float32:
        """The highest 2 sc + 1."""
        return F(15 if self.shifted else 31)

    @property
    def group(self) -> int:
        """Weights of a point."""
        return int(self.points.shape[1])

    @property
    def unit(self) -> int:
        """Weights whose signs hang together, or that are shifted alike."""
        return self.shifted or (8 if self.is_even else self.group)

    @property
    def levels(self) -> np.ndarray:
        """Magnitudes by code."""
        return np.unique(self.points)


TYPES = {
    "IQ1_S": Type(points=tables.IQ1_S, run=32, part=F(1), shifted=32),
    "IQ1_M": Type(points=tables.IQ1_S, run=16, part=F(1), shifted=8),
    "IQ3_S": Type(points=tables.IQ3_S, run=32, part=F(1), is_even=False),
    "IQ3_XXS": Type(points=tables.IQ3_XXS, run=32, part=F(0.25), is_even=True),
    "IQ2_S": Type(points=tables.IQ2_S, run=16, part=F(0.125), is_even=False),
    "IQ2_XS": Type(points=tables.IQ2_XS, run=16, part=F(0.125), is_even=True),
    "IQ2_XXS": Type(points=tables.IQ2_XXS, run=32, part=F(0.125), is_even=True),
}


def sign_of(a: np.ndarray) -> np.ndarray:
    """-1 below zero, else 1."""
    return np.where(a < 0, F(-1), F(1))


def half_errors(points: np.ndarray, to: np.ndarray, m: np.ndarray, c: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Errors [points, rows] of half points [points, half] whose weights should be `to`; c as in `nearest_point`."""
    total = np.zeros((len(points), len(s)), F)
    left = [to[i] - s * points[:, i, None] for i in range(len(to))]
    for i in range(len(to)):
        row = m[i, i] * left[i]
        for j in range(i):
            row = row + c[j, i] * left[j]
        total = total + left[i] * row
    return total


def nearest_point(
    kind: Type, z: np.ndarray, sign: np.ndarray, m: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The point t [group, rows], signs given, for which (z - s t) m (z - s t)ᵀ is least, and that error [rows]."""
    size, h, points = kind.group, kind.group // 2, kind.points
    to = sign * z
    c = np.zeros((size, size, len(s)), F)
    for i in range(size):
        for j in range(i + 1, size):
            c[i, j] = (F(2) * m[i, j]) * (sign[i] * sign[j])
    low = half_errors(points[:, :h], to[:h], m[:h, :h], c[:h, :h], s)
    error = low + half_errors(points[:, h:], to[h:], m[h:, h:], c[h:, h:], s)
    for i in range(h):
        y = np.zeros_like(error)
        for j in range(h, size):
            y = y + c[i, j] * (to[j] - s * points[:, j, None])
        error = error + y * (to[i] - s * points[:, i, None])
    best = np.min(error, axis=0)
    found = np.where(best < HUGE, np.argmin(error, axis=0), 0)
    return sign * points[found].T, np.minimum(best, HUGE)


def nearest_shifted(
    kind: Type, z: np.ndarray, m: np.ndarray, s: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """As `nearest_point`, of a codebook without signs whose levels are all shifted by as much, [rows]."""
    t, error = nearest_point(kind, z - s * shift, np.ones_like(z), m, s)
    return t + shift, error


def shift_of(t: np.ndarray) -> np.ndarray:
    """Shift of levels that have one."""
    return np.asarray(t - np.clip(np.rint(t), F(-1), F(1)))


def rest_of(m: np.ndarray, z: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Product m (z - s t), column after column."""
    rest = np.zeros_like(z)
    for j in range(len(z)):
        rest = rest + m[:, j, None] * (z[j] - s * t[j])
    return rest


def turn_signs(
    z: np.ndarray, m: np.ndarray, s: np.ndarray, t: np.ndarray, error: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Turn signs that are better the other way, each in its turn; returns levels and error."""
    t, rest = t.copy(), rest_of(m, z, t, s)
    for i in range(len(t)):
        step = F(2) * (s * t[i])
        change = step * (F(2) * rest[i] + m[i, i] * step)
        better = change < 0
        error = error + np.where(better, change, F(0))
        t[i] = np.where(better, -t[i], t[i])
        rest = rest + m[:, i, None] * np.where(better, step, F(0))
    return t, error


def make_even(z: np.ndarray, m: np.ndarray, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Where an odd number of signs is negative, turn the one that costs least."""
    step = F(2) * (s * t)
    change = step * (F(2) * rest_of(m, z, t, s) + np.diag(m)[:, None] * step)
    which = np.where(np.min(change, axis=0) < HUGE, np.argmin(change, axis=0), 0)
    turned = (np.prod(sign_of(t), axis=0) < 0) & (np.arange(len(t))[:, None] == which)
    return np.where(turned, -t, t)


@dataclass(slots=True)
class State:
    """A run as it is being improved: signed levels, values, gradients; change of the error, 2 sc + 1."""

    t: np.ndarray
    v: np.ndarray
    g: np.ndarray
    change: np.ndarray
    sc: np.ndarray


class Rows(ChunkedRows):
    """Rows of a codebook type."""

    def __init__(
        self, kind: Type, weights: np.ndarray, hessian: np.ndarray, feedback: np.ndarray, cost: np.ndarray,
        local: np.ndarray,
    ) -> None:  # fmt: skip
        super().__init__(weights, hessian, feedback, cost, local)
        self.kind, self.run_length = kind, kind.run
        rows = self.w.shape[1]
        self.sc = np.ones((self.n // kind.run, rows), F)
        self.d = np.zeros((self.n // 256, rows), F)
        self.cost = [self.cost_of(at, kind.group) for at in range(0, self.n, kind.group)]
        self.unit_cost = [self.cost_of(at, kind.unit) for at in range(0, self.n, kind.unit)]
        self.inverted: list[np.ndarray] = []

    def cost_of(self, at: int, count: int) -> np.ndarray:
        """What errors of some columns cost once all later ones have answered them, [count, count]."""
        cost = np.zeros((count, count), F)
        for k in range(count):
            u = np.append(self.feedback[at + k, at : at + k], F(1))
            cost[: k + 1, : k + 1] += (u[:, None] * self.curvature[at + k]) * u
        return cost

    def inverse_of(self, m: np.ndarray, at: int) -> np.ndarray:
        """Inverse of a group's block of the metric."""
        count = self.kind.group
        a = m[at : at + count, at : at + count].copy()
        for k in range(count):
            pivot = F(1) / a[k, k]
            a[k, k] = 1
            a[k] *= pivot
            for i in range(count):
                if i != k:
                    by, a[i, k] = a[i, k], 0
                    a[i] -= by * a[k]
        return a

    def targets(self, at: int, start: np.ndarray, known: list[np.ndarray]) -> np.ndarray:
        """Columns of a unit as they would be if each could answer the errors of those before it, the first known."""
        z, e = np.empty_like(start), np.empty_like(start)
        for k in range(len(start)):
            wanted = start[k]
            for j in range(k):
                wanted = wanted + self.feedback[at + k, at + j] * e[j]
            z[k], e[k] = wanted, known[k] if k < len(known) else self.w[at + k] - wanted
        return z

    def round_unit(self, at: int, start: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round a unit whose columns should be `start` before they answer each other; returns levels, error."""
        kind, size = self.kind, self.kind.group
        if kind.shifted:
            return self.round_shifted(at, start, s)
        wanted, t, error = self.targets(at, start, []), np.zeros_like(start), np.zeros_like(s)
        for is_second in (False, True) if kind.is_even else (False,):
            e: list[np.ndarray] = []
            error = np.zeros_like(s)
            for q in range(0, kind.unit, size):
                group, m = slice(q, q + size), self.cost[(at + q) // size]
                z = self.targets(at, start, e)
                t[group], found = nearest_point(kind, z[group], sign_of((t if is_second else z)[group]), m, s)
                if not kind.is_even:
                    t[group], found = turn_signs(z[group], m, s, t[group], found)
                error = error + found
                e += [self.w[at + i] - s * t[i] for i in range(q, q + size)]
            if kind.is_even and not is_second:
                t = make_even(wanted, self.unit_cost[at // kind.unit], s, t)
        return t, error

    def round_shifted(self, at: int, start: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round a unit whose levels are all shifted alike; returns levels, error."""
        size, found = self.kind.group, []
        for sign in (F(1), F(-1)):
            shift, t, error = np.full_like(s, sign * tables.IQ1_DELTA), np.zeros_like(start), np.zeros_like(s)
            e: list[np.ndarray] = []
            for q in range(0, self.kind.unit, size):
                group = slice(q, q + size)
                z = self.targets(at, start, e)
                t[group], more = nearest_shifted(self.kind, z[group], self.cost[(at + q) // size], s, shift)
                error = error + more
                e += [self.w[at + i] - s * t[i] for i in range(q, q + size)]
            found.append((t, error))
        (up, error_up), (down, error_down) = found
        better = error_down < error_up
        return np.where(better, down, up), np.where(better, error_down, error_up)

    def round_run(self, at: int, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Round a run; returns levels and error."""
        run, unit = self.kind.run, self.kind.unit
        start, t, error = self.x[at : at + run].copy(), np.empty_like(self.x[at : at + run]), np.zeros_like(s)
        for u in range(0, run, unit):
            part = slice(u, u + unit)
            t[part], found = self.round_unit(at + u, start[part], s)
            error = error + found
            e = self.w[at + u : at + u + unit] - s * t[part]
            answer(self.feedback[at + u + unit : at + run, at + u : at + u + unit], start[u + unit :], e)
        return t, error

    def search(self, at: int) -> np.ndarray:
        """The scale of a run that plain rounding of its groups likes best."""
        kind, size = self.kind, self.kind.group
        x = self.x[at : at + kind.run]
        extreme = np.max(np.abs(x), axis=0)
        best, scale = np.full_like(extreme, HUGE), np.zeros_like(extreme)
        least = F(0.3 if kind.shifted else 0.6)
        for step in range(9):
            s, error = extreme * ((least + F(0.1) * F(step)) / kind.levels[-1]), np.zeros_like(extreme)
            for u in range(0, kind.run, size):
                z = x[u : u + size]
                sign = np.ones_like(z) if kind.shifted else sign_of(z)
                error = error + nearest_point(kind, z, sign, self.cost[(at + u) // size], s)[1]
            better = error < best
            best, scale = np.where(better, error, best), np.where(better, s, scale)
        return np.asarray(scale)

    def nearest_odd(self, scale: np.ndarray, d: np.ndarray) -> np.ndarray:
        """2 sc + 1 nearest to a scale in units of d."""
        wanted = F(0.5) * (scale * inverse(d * self.kind.part) - F(1))
        return np.asarray(F(2) * np.clip(np.rint(wanted), F(0), F(0.5) * (self.kind.top - F(1))) + F(1))

    def round(self, now: slice) -> None:
        """Round the columns of a block in order, each run's errors answered by those after it."""
        kind, runs = self.kind, 256 // self.kind.run
        scale: list[np.ndarray] = []
        for at in range(now.start, now.stop, kind.run):
            block, r = divmod(at // kind.run, runs)
            if r == 0:
                scale = [self.search(at + i * kind.run) for i in range(runs)]
                self.d[block] = half(np.max(scale, axis=0) / (kind.top * kind.part))
            first = self.nearest_odd(scale[r], self.d[block])
            run, best = slice(at, at + kind.run), np.zeros_like(first)
            for step in (-1, 0, 1):
                odd = np.clip(first + F(2 * step), F(1), kind.top)
                t, error = self.round_run(at, self.d[block] * kind.part * odd)
                better = (error < best) | (step < 0)
                best = np.where(better, error, best)
                self.sc[at // kind.run] = np.where(better, odd, self.sc[at // kind.run])
                self.t[run] = np.where(better, t, self.t[run])
            self.v[run] = self.d[block] * kind.part * self.sc[at // kind.run] * self.t[run]
            answer(self.feedback[run.stop : now.stop, run], self.x[run.stop : now.stop], self.w[run] - self.v[run])

    def advance(self, h: np.ndarray, q: int, s: np.ndarray, to: np.ndarray, run: State) -> None:
        """Go over to levels `to` from column q of a run on, where that makes the error less."""
        part = slice(q, q + len(to))
        step, change = s * to - run.v[part], np.zeros_like(s)
        for i in range(len(to)):
            moved = np.zeros_like(s)
            for j in range(len(to)):
                moved = moved + h[q + i, q + j] * step[j]
            change = change + step[i] * (F(2) * run.g[q + i] + moved)
        better = change < 0
        run.change = run.change + np.where(better, change, F(0))
        run.t[part] = np.where(better, to, run.t[part])
        run.v[part] = s * run.t[part]
        answer(h[:, part], run.g, np.where(better, step, F(0)))

    def turn_pair(self, block: np.ndarray, q: int, s: np.ndarray, run: State) -> None:
        """Turn the two signs of a unit that are best turned together."""
        unit = slice(q, q + self.kind.unit)
        h = block[unit, unit]
        step = F(-2) * run.v[unit]
        alone = step * (F(2) * run.g[unit] + np.diag(h)[:, None] * step)
        least, first, second = np.zeros_like(s), np.full(s.shape, -1), np.full(s.shape, -1)
        for i in range(len(step)):
            for j in range(i):
                change = alone[i] + alone[j] + (F(2) * h[i, j]) * (step[i] * step[j])
                better = change < least
                least, first, second = (
                    np.where(better, a, b) for a, b in ((change, least), (i, first), (j, second))
                )  # fmt: skip
        number = np.arange(len(step))[:, None]
        self.advance(block, q, s, np.where((number == first) | (number == second), -run.t[unit], run.t[unit]), run)

    def descend(self, h: np.ndarray, at: int, odd: np.ndarray, *, turned: bool = False) -> State:
        """Go over to another scale with a run, whose block of the metric is h, then let its groups descend.

        `turned`: its levels are shifted the other way before.
        """
        kind, size, here = self.kind, self.kind.group, slice(at, at + self.kind.run)
        s, t, g = self.d[at // 256] * kind.part * odd, self.t[here].copy(), self.g[here].copy()
        if turned:
            t -= F(2) * shift_of(t)
        v = s * t
        e = v - self.v[here]
        answer(h, g, e)
        change = np.zeros_like(s)
        for j in range(kind.run):
            change = change + e[j] * (self.g[at + j] + g[j])
        run = State(t, v, g, change, odd)
        for q in range(0, kind.run, size):
            group, inverted = slice(q, q + size), self.inverted[(at % 256 + q) // size]
            z = run.v[group].copy()
            for j in range(size):
                z -= inverted[:, j, None] * run.g[q + j]
            m = h[group, group]
            if kind.shifted:
                to = self.nearest_of_group(z, m, s, shift_of(run.t[q]))
            else:
                to, error = nearest_point(kind, z, sign_of(run.t[group] if kind.is_even else z), m, s)
                if not kind.is_even:
                    to, _ = turn_signs(z, m, s, to, error)
            self.advance(h, q, s, to, run)
            if kind.is_even and (q + size) % kind.unit == 0:
                self.turn_pair(h, q + size - kind.unit, s, run)
        return run

    def nearest_of_group(self, z: np.ndarray, m: np.ndarray, s: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Nearest levels as they are shifted, or, where the shift is the group's own, shifted either way."""
        to, error = nearest_shifted(self.kind, z, m, s, shift)
        if self.kind.shifted > self.kind.group:
            return to
        other, error_of_other = nearest_shifted(self.kind, z, m, s, -shift)
        return np.where(error_of_other < error, other, to)

    def refit(self, h: np.ndarray, at: int) -> np.ndarray:
        """Scale that is best for a run's codes as they are."""
        here = slice(at, at + self.kind.run)
        t, g = self.t[here], self.g[here]
        gt = tt = np.zeros_like(t[0])
        for k in range(len(t)):
            ht = np.zeros_like(gt)
            for j in range(len(t)):
                ht = ht + h[k, j] * t[j]
            gt, tt = gt + g[k] * t[k], tt + ht * t[k]
        return np.asarray(self.d[at // 256] * self.kind.part * self.sc[at // self.kind.run] - gt * inverse(tt))

    def improve_run(self, now: slice, at: int, h: Metric) -> None:
        """Improve one run and let the gradients of its chunk know."""
        run = slice(at - now.start, at - now.start + self.kind.run)
        m = h.m[run, run]
        here, number = slice(at, at + self.kind.run), at // self.kind.run
        old = self.sc[number]
        best = self.descend(m, at, old)
        refitted = self.nearest_odd(self.refit(m, at), self.d[at // 256])
        guesses = (refitted, np.maximum(old - F(2), F(1)), np.minimum(old + F(2), self.kind.top))
        for number_of_guess in range(4 if self.kind.shifted > self.kind.group else 3):
            turned = number_of_guess == 3
            tried = self.descend(m, at, best.sc if turned else guesses[number_of_guess], turned=turned)
            better = tried.change < best.change
            best = State(
                *(np.where(better, getattr(tried, k), getattr(best, k)) for k in ("t", "v", "g", "change", "sc"))
            )
        better = best.change < 0
        self.loss = self.loss + np.where(better, best.change, F(0))
        e = np.where(better, best.v - self.v[here], F(0))
        self.t[here], self.v[here] = np.where(better, best.t, self.t[here]), np.where(better, best.v, self.v[here])
        self.sc[number] = np.where(better, best.sc, old)
        answer(h.m[:, run], self.g[now], e)

    def refit_super(self, block: int, h: Metric) -> None:
        """Refit the super-scale of a block to its points and scales."""
        span = slice(block * 256, block * 256 + 256)
        g, d = self.g[span], self.d[block].copy()
        scales = np.repeat(self.sc[span.start // self.kind.run : span.stop // self.kind.run], self.kind.run, axis=0)
        a, ha = self.kind.part * scales * self.t[span], np.zeros_like(g)
        answer(h.m, ha, a)
        ga, aa = (np.zeros_like(g[0]) for _ in range(2))
        for j in range(256):
            ga, aa = ga + g[j] * a[j], aa + ha[j] * a[j]
        to = half(np.maximum(d - ga * inverse(aa), F(0)))
        by = to - d
        change = by * (ga + ga + by * aa)
        better = change < 0
        self.loss = self.loss + np.where(better, change, F(0))
        self.d[block] = np.where(better, to, d)
        self.g[span] += np.where(better, by, F(0)) * ha
        values = self.d[block] * self.kind.part * scales * self.t[span]
        self.v[span] = np.where(better, values, self.v[span])

    def improve(self, now: slice, h: Metric) -> None:
        """Improve the runs of a block, then its super-scale."""
        self.inverted = [self.inverse_of(h.m, at) for at in range(0, 256, self.kind.group)]
        for at in range(now.start, now.stop, self.kind.run):
            self.improve_run(now, at, h)
        self.refit_super(now.start // 256, h)

    def parts(self) -> Parts:
        """The blocks as numbers."""
        levels, is_marked = np.abs(self.t), self.t < 0
        if self.kind.shifted:
            levels, is_marked = np.rint(self.t), shift_of(self.t) < 0
        codes = np.searchsorted(self.kind.levels, levels) + np.where(is_marked, 128, 0)
        return Parts(
            codes=np.ascontiguousarray(codes.astype(np.uint8).T),
            d=self.d.T.astype(np.float16).view(np.uint16),
            dmin=np.zeros((1, 0), np.uint16),
            scales=np.ascontiguousarray((self.sc.T // 2).astype(np.int8)),
            minimums=np.zeros((1, 0), np.uint8),
        )
