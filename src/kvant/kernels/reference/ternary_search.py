"""Encoders of IQ1_S and IQ1_M: every way to split a run's sorted weights into -1, 0 and 1 is tried, with both shifts.

Source: ggml-quants.c `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`. Their block layouts: `codebook`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kvant.kernels.reference import bits, searches, tables
from kvant.kernels.reference.codebook_search import grid, importance_of

GRID = grid(tables.IQ1_S, 3)
DELTA = tables.IQ1_DELTA
OUTER, INNER = np.float32(1) + DELTA, np.float32(1) - DELTA

Trial = tuple[int, int, int, np.ndarray, np.ndarray]
"""Places of the two splits, shifts (bit h: part h down), sums of w x q and w q q [n]."""


def _prefixes(x: np.ndarray, order: np.ndarray, parts: int) -> np.ndarray:
    """Sums over the first 0 .. run sorted values, float32 [parts, run + 1, n]; a part counts its own alone."""
    size = x.shape[1] // parts
    sums = []
    for part in range(parts):
        sorted_part = np.take_along_axis(np.where(np.arange(x.shape[1]) // size == part, x, np.float32(0)), order, -1)
        sums.append(np.add.accumulate(np.pad(sorted_part, ((0, 0), (1, 0))), axis=-1, dtype=np.float32).T)
    return np.stack(sums)


def _whole(sx: np.ndarray, sw: np.ndarray) -> Iterator[Trial]:
    """Trials of a run with one shift."""
    last = len(sx[0]) - 1
    (x,), (w,) = sx, sw
    for i in range(last + 1):
        for j in range(i, last + 1):
            low, middle, high = x[i], (x[j] - x[i]) * DELTA, x[last] - x[j]
            low2, middle2, high2 = w[i], (w[j] - w[i]) * DELTA * DELTA, w[last] - w[j]
            for shift, (a, b) in enumerate(((-INNER, OUTER), (-OUTER, INNER))):
                lower = low * a + (-middle if shift else middle)
                yield i, j, shift, lower + high * b, low2 * a * a + middle2 + high2 * b * b


def _halves(sx: np.ndarray, sw: np.ndarray) -> Iterator[Trial]:
    """Trials of a run whose halves have shifts of their own; sums are taken from the total, as ggml takes them."""
    last = sx.shape[1] - 1
    low2 = [level * level - DELTA * DELTA for level in (INNER, OUTER)]
    for i in range(last + 1):
        for j in range(i, last + 1):
            below = sx[:, i] + sx[:, j]
            qx = [sx[:, last] * b - below for b in (OUTER, INNER)]
            q2 = [
                sw[:, last] * b * b + sw[:, i] * a2 - sw[:, j] * b2
                for b, a2, b2 in ((OUTER, low2[0], low2[1]), (INNER, low2[1], low2[0]))
            ]
            for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
                yield i, j, first | second << 1, qx[first][0] + qx[second][1], q2[first][0] + q2[second][1]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Scales [n], shifts [n], and points [n, groups]."""

    scale: np.ndarray
    shifts: np.ndarray
    points: np.ndarray


def _levels(points: np.ndarray, shifts: np.ndarray, parts: int) -> np.ndarray:
    """What points [n, groups] stand for before the scale, float32 [n, groups, 8]."""
    part = np.arange(points.shape[1]) // (points.shape[1] // parts)
    down = shifts[:, None] >> part & 1
    levels: np.ndarray = tables.IQ1_S[points] + np.where(down, -DELTA, DELTA)[..., None]
    return levels


def _search_runs(x: np.ndarray, w: np.ndarray, parts: int, smallest: float) -> Runs:
    n, run = x.shape
    order = np.argsort(x, axis=-1, kind="stable")
    sx, sw = _prefixes(w * x, order, parts), _prefixes(w, order, parts)
    scale, gain = np.abs(x).max(axis=-1), np.full(n, -np.finfo(np.float32).max)
    empty = scale < np.float32(smallest)
    best = np.full((3, n), -1)
    with np.errstate(all="ignore"):
        for i, j, down, sum_qx, sum_q2 in _whole(sx, sw) if parts == 1 else _halves(sx, sw):
            better = (sum_q2 > 0) & (sum_qx * sum_qx > gain * sum_q2)
            scale = np.where(better, sum_qx / sum_q2, scale)
            gain = np.where(better, scale * sum_qx, gain)
            best = np.where(better, np.array([i, j, down])[:, None], best)
    first, second, shifts = best
    empty |= first < 0
    place = np.argsort(order, axis=-1)
    levels = (place >= first[:, None]).astype(np.int64) + (place >= second[:, None])
    turned = scale < 0
    levels = np.where(turned[:, None], 2 - levels, levels)
    shifts = np.where(empty, 0, np.where(turned, shifts ^ ((1 << parts) - 1), shifts))
    scale = np.abs(scale)
    groups = run // 8
    shifted_down = np.repeat(shifts, groups) >> np.tile(np.arange(groups) // (groups // parts), n) & 1

    def value(level: np.ndarray, rows: np.ndarray) -> np.ndarray:
        shift = np.where(shifted_down[rows], -DELTA, DELTA)[:, None, None]
        return np.asarray((level - 1).astype(np.float32) + shift)

    points, off = GRID.choose(
        levels.reshape(-1, 8), x.reshape(-1, 8), w.reshape(-1, 8), np.repeat(scale, groups), value
    )
    points, moved = points.reshape(n, groups), off.reshape(n, groups).any(axis=-1)
    q = _levels(points, shifts, parts).reshape(n, run)
    sum_qx, sum_q2 = searches.total(w * q * x)[:, 0], searches.total(w * q * q)[:, 0]
    with np.errstate(all="ignore"):
        scale = np.where(moved & (sum_qx > 0) & (sum_q2 > 0), sum_qx / sum_q2, scale)
    return Runs(scale=np.where(empty, np.float32(0), scale), shifts=shifts, points=np.where(empty[:, None], 0, points))


def _steps(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps 0 .. 7 of runs' scales [blocks, runs], d [blocks, 1], and whether a block has any scale."""
    largest = scale.max(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        d = largest / np.float32(15)
        inverse = np.float32(1) / d
        steps = np.clip(bits.nearest_even(np.float32(0.5) * (inverse * scale - np.float32(1))), 0, 7)
    return np.where(largest != 0, steps, 0), d, largest != 0


def encode_iq1_s(x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Inverse of `codebook.decode_iq1_s`; importance float32 [blocks, 256]."""
    w, _ = importance_of(x, importance, 2 / 256)
    runs = _search_runs(x.reshape(-1, 32), w.reshape(-1, 32), 1, 1e-12)
    steps, d, some = _steps(runs.scale.reshape(-1, 8))
    high = (runs.points.reshape(-1, 8, 4) >> 8 << np.arange(0, 12, 3)).sum(axis=-1)
    words = high | steps << 12 | np.where(some, runs.shifts.reshape(-1, 8), 0) << 15
    halves = bits.to_half(np.where(some, d * np.float32(1.125), np.float32(0)))
    low = runs.points.reshape(-1, 32).astype(np.uint8)
    return np.concatenate([halves, low, words.astype("<u2").view(np.uint8)], axis=-1)


def encode_iq1_m(x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """Inverse of `codebook.decode_iq1_m`; importance float32 [blocks, 256] or None."""
    w, _ = importance_of(x, importance, 2 / 256)
    runs = _search_runs(x.reshape(-1, 16), w.reshape(-1, 16), 2, 1e-7)
    steps, d, some = _steps(runs.scale.reshape(-1, 16))
    factor = np.repeat((2 * steps + 1).astype(np.float32), 16, axis=-1)
    q = _levels(runs.points, runs.shifts, 2).reshape(-1, 256) * factor
    sum_qx, sum_q2 = searches.total(w * q * x), searches.total(w * q * q)
    with np.errstate(all="ignore"):
        d = np.where(sum_q2 > 0, sum_qx / sum_q2, d) * np.float32(1.1125)
    half = bits.to_half(np.where(some, d, np.float32(0))).view("<u2")
    packed = (steps.reshape(-1, 4, 4) << np.arange(0, 12, 3)).sum(axis=-1)
    words = packed | (half >> np.arange(0, 16, 4) & 15) << 12
    shifts = np.where(some, runs.shifts.reshape(-1, 16), 0)
    high = runs.points.reshape(-1, 16, 2) >> 8 | np.stack([shifts & 1, shifts >> 1], axis=-1) << 3
    low = runs.points.reshape(-1, 32).astype(np.uint8)
    return np.concatenate(
        [low, (high[..., 0] | high[..., 1] << 4).astype(np.uint8), words.astype("<u2").view(np.uint8)], axis=-1
    )
