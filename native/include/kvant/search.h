// Searches for the scale (and minimum) of W blocks at once, lane = block. Each follows ggml's function of the same
// purpose operation by operation: see docs/explanation/kernels.md.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

constexpr float in_range = 4e6f;  // below this, nearest() is exact and float clamping equals integer clamping

// Result of an asymmetric search: w = q * scale - minimum. Codes are clamp(nearest(iscale * (x - offset))).
struct Affine {
    vf scale, minimum;
    vf iscale, offset;  // of the winning trial, to make the codes again
    vi constant;        // lanes whose weights are all alike: every code is 0
};

template <bool safe, int levels>
KVANT_INLINE vf code(vf v) {
    if (safe) return nearest_clamped(v, 0, levels);
    return to_float(imax(splat(0), imin(splat(levels), nearest(v))));
}

// One trial: codes into `codes`, weighted sums of q, q^2 and q x.
template <bool safe, int n, int levels>
KVANT_INLINE void affine_sums(const vf* x, const vf* w, vf iscale, vf offset, vf* codes, vf& sum_l, vf& sum_l2, vf& sum_xl) {
    sum_l = sum_l2 = sum_xl = vf{};
    for (int i = 0; i < n; ++i) {
        const vf l = code<safe, levels>(iscale * (x[i] - offset));
        codes[i] = l;
        const vf wl = w[i] * l;
        sum_l += wl;
        sum_l2 += wl * l;
        sum_xl += wl * x[i];
    }
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

// Without importance (ggml: make_qkx2_quants). The offset moves within the trials, as it does there.
template <int n, int levels, bool absolute>
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
    best.constant = high == low;
    const vi finite = vabs(sum_x) < __builtin_inff();
    vf codes[n], sum_l, sum_l2, sum_xl;
    vf offset = low;
    const auto range = [&] { return select(best.constant, splat(1.f), high - offset); };
    vf iscale = (float)levels / range();
    vf scale = 1.f / iscale;
    best.iscale = iscale;
    best.offset = offset;
    const auto is_safe = [&] {
        const vf reach = iscale * vmax(vabs(high - offset), vabs(low - offset));
        return all(best.constant | (finite & (vabs(reach) < in_range)));
    };
    if (is_safe()) affine_sums<true, n, levels>(x, w, iscale, offset, codes, sum_l, sum_l2, sum_xl);
    else affine_sums<false, n, levels>(x, w, iscale, offset, codes, sum_l, sum_l2, sum_xl);
    vf least = affine_error<n, absolute>(x, w, codes, scale, offset);
    for (int t = 0; t <= steps; ++t) {
        iscale = (first + step * (float)t + (float)levels) / range();
        if (is_safe()) affine_sums<true, n, levels>(x, w, iscale, offset, codes, sum_l, sum_l2, sum_xl);
        else affine_sums<false, n, levels>(x, w, iscale, offset, codes, sum_l, sum_l2, sum_xl);
        const vf det = sum_w * sum_l2 - sum_l * sum_l;
        vf this_scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        vf this_offset = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        const vi positive = this_offset > 0.f;
        this_scale = select(positive, sum_xl / sum_l2, this_scale);
        this_offset = select(positive, splat(0.f), this_offset);
        const vf error = affine_error<n, absolute>(x, w, codes, this_scale, this_offset);
        const vi better = (det > 0.f) & (error < least);
        least = select(better, error, least);
        scale = select(better, this_scale, scale);
        best.iscale = select(better, iscale, best.iscale);
        best.offset = select(better, offset, best.offset);
        offset = select(better, this_offset, offset);
    }
    best.scale = select(best.constant, splat(0.f), scale);
    best.minimum = -select(best.constant, low, offset);
    return best;
}

// The codes of the winning trial, at full care for range: only blocks whose rounded scale is 0 keep these.
template <int levels>
KVANT_INLINE vi affine_code(const Affine& a, vf x) {
    const vi l = imax(splat(0), imin(splat(levels), nearest(a.iscale * (x - a.offset))));
    return select(a.constant, splat(0), l);
}

}  // namespace kvant::KVANT_NS
