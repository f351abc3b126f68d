"""Searches for the scale and minimum of blocks, [blocks, n]: w = q * scale - minimum.

Written for finite weights of ordinary size: what ggml does beyond them is in the native kernels alone.

Source: ggml-quants.c `make_qx_quants`, `make_q3_quants`, `make_qkx2_quants`, `make_qkx3_quants`, `make_qp_quants`.
"""

from dataclasses import dataclass

import numpy as np

from kvant.kernels.reference import bits

# Blocks whose largest magnitude is below this are stored as zeros.
SMALLEST = np.float32(1e-15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found: scale and minimum [blocks, 1], codes [blocks, n] from 0 up."""

    scale: np.ndarray
    minimum: np.ndarray
    codes: np.ndarray


def total(x: np.ndarray) -> np.ndarray:
    """Sum in order of the last axis, [..., n] -> [..., 1]."""
    with np.errstate(all="ignore"):
        sums: np.ndarray = np.add.accumulate(x, axis=-1, dtype=np.float32)[..., -1:]
    return sums


def symmetric(x: np.ndarray, w: np.ndarray, levels: int) -> Found:
    """Nineteen ranges, each with its least-squares scale; codes -levels .. levels - 1, stored from 0."""
    extreme = bits.first_largest(x)

    def trial(iscale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        codes = np.clip(bits.nearest_even(iscale * x), -levels, levels - 1)
        q = codes.astype(np.float32)
        return codes, total(w * x * q), total(w * q * q)

    with np.errstate(all="ignore"):
        codes, sum_lx, sum_l2 = trial(np.float32(-levels) / extreme)
        scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
        gain = scale * sum_lx
        for step in [*range(-9, 0), *range(1, 10)]:
            fresh, sum_lx, sum_l2 = trial(-(np.float32(levels) + np.float32(0.1) * np.float32(step)) / extreme)
            better = (sum_l2 > 0) & (sum_lx * sum_lx > gain * sum_l2)
            codes = np.where(better, fresh, codes)
            scale = np.where(better, sum_lx / sum_l2, scale)
            gain = np.where(better, scale * sum_lx, gain)
    empty = np.abs(extreme) < SMALLEST
    scale = np.where(empty, np.float32(0), scale)
    return Found(scale=scale, minimum=np.zeros_like(scale), codes=np.where(empty, 0, codes + levels))


def affine(
    x: np.ndarray, w: np.ndarray, levels: int, *, first: float, step: float, steps: int, absolute: bool = False
) -> Found:
    """Ranges `first + step * t + levels` wide, each with its least-squares scale and minimum; the least error wins.

    The offset that wins is the next trial's, so the trials depend on each other.
    """
    low = np.minimum(x.min(axis=-1, keepdims=True), np.float32(0))
    high = x.max(axis=-1, keepdims=True)
    sum_w, sum_x = total(w), total(w * x)

    def round_to_codes(iscale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        rounded: np.ndarray = np.clip(bits.nearest_even(iscale * (x - offset)), 0, levels)
        return rounded.astype(np.float32)

    def error_of(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> np.ndarray:
        difference = scale * codes + offset - x
        return total(w * (np.abs(difference) if absolute else difference * difference))

    with np.errstate(all="ignore"):
        offset = low
        iscale = np.float32(levels) / (high - offset)
        scale = np.float32(1) / iscale
        codes = round_to_codes(iscale, offset)
        least = error_of(codes, scale, offset)
        for t in range(steps + 1):
            width = np.float32(first) + np.float32(step) * np.float32(t) + np.float32(levels)
            q = round_to_codes(width / (high - offset), offset)
            sum_l, sum_l2, sum_xl = total(w * q), total(w * q * q), total(w * q * x)
            det = sum_w * sum_l2 - sum_l * sum_l
            this_scale = (sum_w * sum_xl - sum_x * sum_l) / det
            this_offset = (sum_l2 * sum_x - sum_l * sum_xl) / det
            positive = this_offset > 0
            this_scale = np.where(positive, sum_xl / sum_l2, this_scale)
            this_offset = np.where(positive, np.float32(0), this_offset)
            error = error_of(q, this_scale, this_offset)
            better = (det > 0) & (error < least)
            least, scale, offset = (
                np.where(better, fresh, kept)
                for fresh, kept in ((error, least), (this_scale, scale), (this_offset, offset))
            )
            codes = np.where(better, q, codes)
    constant = high <= low
    return Found(
        scale=np.where(constant, np.float32(0), scale),
        minimum=-np.where(constant, low, offset),
        codes=np.where(constant, 0, codes.astype(np.int32)),
    )


def descent(x: np.ndarray, levels: int) -> Found:
    """Codes of the plain range, moved one at a time while the error weighted with x squared falls; five sweeps."""
    extreme = bits.first_largest(x)
    with np.errstate(all="ignore"):
        codes = np.clip(bits.nearest_even(np.float32(-levels) / extreme * x), -levels, levels - 1).astype(np.float32)
        w = x * x
        sum_lx, sum_l2 = total(w * x * codes)[:, 0], total(w * codes * codes)[:, 0]
        for _ in range(5):
            before = codes.copy()
            for i in range(x.shape[-1]):
                wx = w[:, i] * x[:, i]
                lx = sum_lx - wx * codes[:, i]
                l2 = sum_l2 - w[:, i] * codes[:, i] * codes[:, i]
                fresh = np.clip(bits.nearest_even(x[:, i] * l2 / lx), -levels, levels - 1).astype(np.float32)
                possible = (lx > 0) & (fresh != codes[:, i])
                lx, l2 = lx + wx * fresh, l2 + w[:, i] * fresh * fresh
                better = possible & (l2 > 0) & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
                codes[:, i] = np.where(better, fresh, codes[:, i])
                sum_lx, sum_l2 = np.where(better, lx, sum_lx), np.where(better, l2, sum_l2)
            if np.array_equal(codes, before):
                break
        empty = np.abs(extreme) < SMALLEST
        scale = np.where(~empty & (sum_l2 > 0)[:, None], (sum_lx / sum_l2)[:, None], np.float32(0))
    stored = np.where(empty, 0, codes.astype(np.int32) + levels)
    return Found(scale=scale, minimum=np.zeros_like(scale), codes=stored)


def scale_of_scales(x: np.ndarray, w: np.ndarray, levels: int) -> Found:
    """A scale for what is mostly positive: nine ranges, then up to five sweeps that move one code at a time.

    Codes are kept as bytes, as ggml keeps them: a negative one counts 256 more once it is kept.
    """
    high = np.maximum(x.max(axis=-1, keepdims=True), np.float32(0))

    def codes_at(iscale: np.ndarray) -> np.ndarray:
        rounded: np.ndarray = np.minimum(bits.nearest_even(iscale * x), levels)
        return rounded.astype(np.float32)

    with np.errstate(all="ignore"):
        iscale = np.float32(levels) / high
        least = None
        for step in [0, *range(-4, 0), *range(1, 5)]:
            this = (np.float32(0.1) * np.float32(step) + np.float32(levels)) / high
            tried = codes_at(this) if step else (bits.nearest_even(this * x) & 255).astype(np.float32)
            difference = x - np.float32(1) / this * tried
            error = total(w * difference * difference)
            better = np.zeros(error.shape, bool) if least is None else error < least
            least = error if least is None else np.where(better, error, least)
            iscale = np.where(better, this, iscale)
        codes = codes_at(iscale)
        sum_lx, sum_l2 = total(w * x * codes)[:, 0], total(w * codes * codes)[:, 0]
        codes %= 256
        for _ in range(5):
            before = codes.copy()
            for i in range(x.shape[-1]):
                wi, xi, old = w[:, i], x[:, i], codes[:, i]
                lx, l2 = sum_lx - wi * xi * old, sum_l2 - wi * old * old
                fresh = np.minimum(bits.nearest_even(xi * l2 / lx), levels).astype(np.float32)
                possible = (lx > 0) & (l2 > 0) & (fresh != old)
                lx, l2 = lx + wi * xi * fresh, l2 + wi * fresh * fresh
                better = possible & (lx * lx * sum_l2 > sum_lx * sum_lx * l2)
                codes[:, i] = np.where(better, fresh % 256, old)
                sum_lx, sum_l2 = np.where(better, lx, sum_lx), np.where(better, l2, sum_l2)
            if np.array_equal(codes, before):
                break
        empty = high < SMALLEST
        scale = np.where(~empty & (sum_l2 > 0)[:, None], (sum_lx / sum_l2)[:, None], np.float32(0))
    return Found(scale=scale, minimum=np.zeros_like(scale), codes=np.where(empty, 0, codes.astype(np.int32)))
