// Searches for the scale and minimum of W blocks at once, lane = block: w = q * scale - minimum. Each follows ggml's
// function of the same purpose operation by operation; docs/explanation/kernels.md tells what they do and why.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

constexpr float in_range = 4e6f;  // below this, nearest() is exact and float clamping equals integer clamping

struct Affine {
    vf scale, minimum;
    vf iscale, offset;  // of the winning trial, to make its codes again: q = clamp(nearest(iscale * (x - offset)))
    vi from_start;      // lanes where no trial beat the plain range
    vi constant;        // lanes whose weights are all alike: every code is 0
};

// How v = iscale * (x - offset) becomes a code 0 .. levels.
enum class Clamp {
    after,   // round, then clamp as integers: NaN and what nearest() wraps are kept as the reference has them
    narrow,  // the same for |v| < in_range, faster
    before,  // clamp, then round; NaN gives 0
};

template <Clamp clamp, int levels>
KVANT_INLINE vf affine_round(vf v) {
    if (clamp == Clamp::narrow) return nearest_clamped(v, 0, levels);
    if (clamp == Clamp::before) return vmin(vmax(v, vf{}), splat((float)levels)) + magic - magic;
    return to_float(imax(splat(0), imin(splat(levels), nearest(v))));
}

// One trial: its codes, and the weighted sums of q, q^2 and q x.
struct AffineSums {
    vf l, l2, xl;
};

template <Clamp clamp, int n, int levels>
KVANT_INLINE AffineSums affine_sums(const vf* x, const vf* w, vf iscale, vf offset, vf* codes) {
    AffineSums sums = {vf{}, vf{}, vf{}};
    for (int i = 0; i < n; ++i) {
        const vf l = affine_round<clamp, levels>(iscale * (x[i] - offset));
        codes[i] = l;
        const vf wl = w[i] * l;
        sums.l += wl;
        sums.l2 += wl * l;
        sums.xl += wl * x[i];
    }
    return sums;
}

template <int n, bool absolute>
KVANT_INLINE vf affine_error(const vf* x, const vf* w, const vf* codes, vf scale, vf offset) {
    vf error = vf{};
    for (int i = 0; i < n; ++i) {
        vf diff = scale * codes[i] + offset - x[i];
        diff = absolute ? vabs(diff) : diff * diff;
        error += w[i] * diff;
    }
    return error;
}

// Try steps + 1 ranges, (first + step * t + levels) codes wide; keep the least-squares fit with the least error
// sum w diff^2 (or w |diff|). The offset found so far is the next trial's, as in the reference.
// Without importance (ggml: make_qkx2_quants) trials clamp after rounding, with it (make_qkx3_quants) before.
template <int n, int levels, bool absolute, bool weighted>
static inline Affine search_affine(const vf* x, const vf* w, float first, float step, int steps) {
    vf low = x[0], high = x[0], sum_w = w[0], sum_x = sum_w * x[0];
    for (int i = 1; i < n; ++i) {
        low = vmin(x[i], low);
        high = vmax(x[i], high);
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    low = vmin(splat(0.f), low);
    Affine best;
    best.constant = weighted ? high <= low : high == low;
    best.from_start = splat(-1);
    vf offset = low;
    const auto range = [&] { return select(best.constant, splat(1.f), high - offset); };
    vf iscale = (float)levels / range();
    vf scale = 1.f / iscale;
    best.iscale = iscale;
    best.offset = offset;

    vf codes[n];
    const vi finite = vabs(sum_x) < __builtin_inff();
    const auto clamped_after = [&] {
        const vf reach = vabs(iscale * vmax(vabs(high - offset), vabs(low - offset)));
        return all(best.constant | (finite & (reach < in_range)))
                   ? affine_sums<Clamp::narrow, n, levels>(x, w, iscale, offset, codes)
                   : affine_sums<Clamp::after, n, levels>(x, w, iscale, offset, codes);
    };
    clamped_after();
    vf least = affine_error<n, absolute>(x, w, codes, scale, offset);
    for (int t = 0; t <= steps; ++t) {
        iscale = (first + step * (float)t + (float)levels) / range();
        const AffineSums sums =
            weighted ? affine_sums<Clamp::before, n, levels>(x, w, iscale, offset, codes) : clamped_after();
        const vf det = sum_w * sums.l2 - sums.l * sums.l;
        vf this_scale = (sum_w * sums.xl - sum_x * sums.l) / det;
        vf this_offset = (sums.l2 * sum_x - sums.l * sums.xl) / det;
        const vi positive = this_offset > 0.f;
        this_scale = select(positive, sums.xl / sums.l2, this_scale);
        this_offset = select(positive, splat(0.f), this_offset);
        const vf error = affine_error<n, absolute>(x, w, codes, this_scale, this_offset);
        const vi better = (det > 0.f) & (error < least);
        least = select(better, error, least);
        scale = select(better, this_scale, scale);
        best.from_start &= ~better;
        best.iscale = select(better, iscale, best.iscale);
        best.offset = select(better, offset, best.offset);
        offset = select(better, this_offset, offset);
    }
    best.scale = select(best.constant, splat(0.f), scale);
    best.minimum = -select(best.constant, low, offset);
    return best;
}

// The codes of the winning trial.
template <int levels, bool weighted>
KVANT_INLINE vi affine_code(const Affine& a, vf x) {
    const vf v = a.iscale * (x - a.offset);
    vf l = affine_round<Clamp::after, levels>(v);
    if (weighted) l = select(a.from_start, l, affine_round<Clamp::before, levels>(v));
    return select(a.constant, splat(0), to_int(l));
}

// Codes for a scale and minimum as stored; a sub-block whose stored scale is 0 keeps the search's codes.
template <int n, int levels, bool weighted>
KVANT_INLINE void affine_recode(const vf* x, const Affine& found, vf scale, vf minimum, vi* codes) {
    for (int i = 0; i < n; ++i) codes[i] = imax(splat(0), imin(splat(levels), nearest((x[i] + minimum) / scale)));
    const vi keep = scale == 0.f;
    if (!any(keep)) return;
    for (int i = 0; i < n; ++i) codes[i] = select(keep, affine_code<levels, weighted>(found, x[i]), codes[i]);
}

// A scale for n scales, codes 0 .. levels (ggml: make_qp_quants): nine ranges, then up to five sweeps that move one
// code at a time. Codes are bytes: a negative one wraps, as it does there.
template <int n, int levels>
static inline vf search_scale(const vf* x, const vf* w, vi* codes) {
    vf high = vf{};
    for (int i = 0; i < n; ++i) high = vmax(high, x[i]);
    const vi empty = high < 1e-15f;
    vf iscale = (float)levels / high;
    vf scale = 1.f / iscale, least = vf{};
    for (int i = 0; i < n; ++i) {
        const vf diff = x[i] - scale * to_float(nearest(iscale * x[i]) & 0xff);
        least += w[i] * diff * diff;
    }
    for (int t = -4; t <= 4; ++t) {
        if (t == 0) continue;
        const vf this_iscale = (0.1f * (float)t + (float)levels) / high;
        const vf this_scale = 1.f / this_iscale;
        vf error = vf{};
        for (int i = 0; i < n; ++i) {
            const vf diff = x[i] - this_scale * to_float(imin(splat(levels), nearest(this_iscale * x[i])));
            error += w[i] * diff * diff;
        }
        const vi better = error < least;
        least = select(better, error, least);
        iscale = select(better, this_iscale, iscale);
    }
    vf sum_lx = vf{}, sum_l2 = vf{};
    for (int i = 0; i < n; ++i) {
        const vi l = imin(splat(levels), nearest(iscale * x[i]));
        codes[i] = l & 0xff;
        sum_lx += w[i] * x[i] * to_float(l);
        sum_l2 += w[i] * to_float(l) * to_float(l);
    }
    for (int sweep = 0; sweep < 5; ++sweep) {
        vi changed = splat(0);
        for (int i = 0; i < n; ++i) {
            const vf old = to_float(codes[i]);
            vf lx = sum_lx - w[i] * x[i] * old;
            vf l2 = sum_l2 - w[i] * old * old;
            const vi fresh = imin(splat(levels), nearest(x[i] * l2 / lx));
            const vi possible = (lx > 0.f) & (l2 > 0.f) & (fresh != codes[i]);
            lx += w[i] * x[i] * to_float(fresh);
            l2 += w[i] * to_float(fresh) * to_float(fresh);
            const vi better = possible & (lx * lx * sum_l2 > sum_lx * sum_lx * l2);
            codes[i] = select(better, fresh & 0xff, codes[i]);
            sum_lx = select(better, lx, sum_lx);
            sum_l2 = select(better, l2, sum_l2);
            changed |= better;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < n; ++i) codes[i] = select(empty, splat(0), codes[i]);
    return select(empty | ~(sum_l2 > 0.f), splat(0.f), sum_lx / sum_l2);
}

}  // namespace kvant::KVANT_NS
