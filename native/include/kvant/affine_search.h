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
    before,  // clamp, then round; NaN gives 0
    narrow,  // both of these where |v| < in_range, and faster
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
    KVANT_UNROLL(4)
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
    KVANT_UNROLL(4)
    for (int i = 0; i < n; ++i) {
        vf diff = scale * codes[i] + offset - x[i];
        diff = absolute ? vabs(diff) : diff * diff;
        error += w[i] * diff;
    }
    return error;
}

// The search of one block of n weights, lane = block: a fit per trial, the best kept.
// Without importance (ggml: make_qkx2_quants) trials clamp after rounding, with it (make_qkx3_quants) before.
template <int n, int levels, bool absolute, bool weighted>
class AffineSearch {
public:
    // The plain range, from the lowest weight (or 0) to the highest.
    KVANT_MEMBER void start(const vf* weights, const vf* importance) {
        x = weights;
        w = importance;
        low = high = x[0];
        sum_w = w[0];
        sum_x = sum_w * x[0];
        for (int i = 1; i < n; ++i) {
            low = vmin(x[i], low);
            high = vmax(x[i], high);
            sum_w += w[i];
            sum_x += w[i] * x[i];
        }
        low = vmin(splat(0.f), low);
        finite = vabs(sum_x) < __builtin_inff();
        best.constant = weighted ? high <= low : high == low;
        best.from_start = splat(-1);
        best.offset = offset = low;
        best.iscale = iscale = (float)levels / range();
        best.scale = 1.f / iscale;
        if (is_narrow()) affine_sums<Clamp::narrow, n, levels>(x, w, iscale, offset, codes);
        else affine_sums<Clamp::after, n, levels>(x, w, iscale, offset, codes);
        least = affine_error<n, absolute>(x, w, codes, best.scale, offset);
    }

    // One trial: codes for a range `width` steps wide, then the least-squares scale and offset for these codes.
    KVANT_MEMBER void fit(float width) {
        constexpr Clamp wide = weighted ? Clamp::before : Clamp::after;
        iscale = width / range();
        const AffineSums sums = is_narrow() ? affine_sums<Clamp::narrow, n, levels>(x, w, iscale, offset, codes)
                                            : affine_sums<wide, n, levels>(x, w, iscale, offset, codes);
        const vf det = sum_w * sums.l2 - sums.l * sums.l;
        solvable = det > 0.f;
        fit_scale = (sum_w * sums.xl - sum_x * sums.l) / det;
        fit_offset = (sums.l2 * sum_x - sums.l * sums.xl) / det;
        const vi positive = fit_offset > 0.f;
        fit_scale = select(positive, sums.xl / sums.l2, fit_scale);
        fit_offset = select(positive, splat(0.f), fit_offset);
    }

    // Keep the trial where its error, the sum of w diff^2 (or w |diff|), is less than the least so far. The next trial
    // starts from the offset kept, as in the reference.
    KVANT_MEMBER void judge() {
        const vf error = affine_error<n, absolute>(x, w, codes, fit_scale, fit_offset);
        const vi better = solvable & (error < least);
        least = select(better, error, least);
        best.from_start &= ~better;
        best.scale = select(better, fit_scale, best.scale);
        best.iscale = select(better, iscale, best.iscale);
        best.offset = select(better, offset, best.offset);
        offset = select(better, fit_offset, offset);
    }

    KVANT_MEMBER vi constant() const { return best.constant; }

    KVANT_MEMBER Affine result() const {
        Affine found = best;
        found.scale = select(best.constant, splat(0.f), best.scale);
        found.minimum = -select(best.constant, low, offset);
        return found;
    }

private:
    KVANT_MEMBER vf range() const { return select(best.constant, splat(1.f), high - offset); }

    KVANT_MEMBER bool is_narrow() const {
        const vf reach = vabs(iscale * vmax(vabs(high - offset), vabs(low - offset)));
        return all(best.constant | (finite & (reach < in_range)));
    }

    const vf* x;
    const vf* w;
    vf codes[n];
    vf low, high, sum_w, sum_x, offset, iscale, least, fit_scale, fit_offset;
    vi finite, solvable;
    Affine best;
};

// Search two blocks side by side, so that one's arithmetic fills the other's waits for divisions: steps + 1 trials, of
// width first + step * t + levels.
template <int n, int levels, bool absolute, bool weighted>
static inline void search_affine_pair(const vf* x0, const vf* w0, const vf* x1, const vf* w1, float first, float step,
                                      int steps, Affine* found) {
    AffineSearch<n, levels, absolute, weighted> a, b;
    a.start(x0, w0);
    b.start(x1, w1);
    const bool settled = all(a.constant() & b.constant());
    for (int t = 0; t <= steps && !settled; ++t) {
        const float width = first + step * (float)t + (float)levels;
        a.fit(width);
        b.fit(width);
        a.judge();
        b.judge();
    }
    found[0] = a.result();
    found[1] = b.result();
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
