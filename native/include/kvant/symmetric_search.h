// Searches for the scale of W blocks at once, lane = block: w = q * scale, q from -levels to levels - 1.
// Each follows ggml's function of the same purpose operation by operation; docs/explanation/kernels.md tells more.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

struct Symmetric {
    vf scale;
    vf iscale;  // of the winning trial: q = clamp(nearest(iscale * x))
    vi empty;   // lanes of zeros (or nearly): scale 0, stored code 0
};

// The weight of largest magnitude, the first of equals, in `extreme`; returns whether all weights are finite.
template <int n>
KVANT_INLINE bool find_extreme(const vf* x, vf& extreme, vi& empty) {
    vf top = vf{}, probe = vf{};
    extreme = vf{};
    for (int i = 0; i < n; ++i) {
        const vf magnitude = vabs(x[i]);
        extreme = select(magnitude > top, x[i], extreme);
        top = vmax(magnitude, top);
        probe += x[i] - x[i];
    }
    empty = top < 1e-15f;
    return all(probe == 0.f);
}

template <bool finite, int levels>
KVANT_INLINE vf symmetric_round(vf v) {
    if (finite) return nearest_clamped(v, -levels, levels - 1);
    return to_float(imax(splat(-levels), imin(splat(levels - 1), nearest(v))));
}

// `wide`: whether a weight may round to less than -levels. A range of less than levels + 1/2 steps has none.
template <bool finite, bool wide, int n, int levels>
KVANT_INLINE void symmetric_sums(const vf* x, const vf* w, const vf* wx, vf iscale, vf& lx, vf& l2) {
    lx = l2 = vf{};
    KVANT_UNROLL(4)
    for (int i = 0; i < n; ++i) {
        const vf v = iscale * x[i];
        const vf l = finite && !wide ? nearest_below(v, levels - 1) : symmetric_round<finite, levels>(v);
        lx += wx[i] * l;
        l2 += w[i] * l * l;
    }
}

template <bool finite, int n, int levels>
static inline Symmetric search_symmetric_in(const vf* x, const vf* w, vf extreme, vi empty) {
    vf wx[n];
    for (int i = 0; i < n; ++i) wx[i] = w[i] * x[i];
    vf lx, l2;
    Symmetric best;
    best.empty = empty;
    best.iscale = (float)-levels / extreme;
    symmetric_sums<finite, false, n, levels>(x, w, wx, best.iscale, lx, l2);
    best.scale = select(l2 == 0.f, splat(0.f), lx / l2);
    vf gain = best.scale * lx;
    for (int t = -9; t <= 9; ++t) {
        if (t == 0) continue;
        const vf iscale = -((float)levels + 0.1f * (float)t) / extreme;
        if (t < 5) symmetric_sums<finite, false, n, levels>(x, w, wx, iscale, lx, l2);
        else symmetric_sums<finite, true, n, levels>(x, w, wx, iscale, lx, l2);
        const vi better = (l2 > 0.f) & (lx * lx > gain * l2);
        best.iscale = select(better, iscale, best.iscale);
        best.scale = select(better, lx / l2, best.scale);
        gain = select(better, best.scale * lx, gain);
    }
    best.scale = select(empty, splat(0.f), best.scale);
    return best;
}

// Nineteen ranges, each with its least-squares scale; the best by the error weighted with w (ggml: make_qx_quants).
template <int n, int levels>
static inline Symmetric search_symmetric(const vf* x, const vf* w) {
    vf extreme;
    vi empty;
    const bool finite = find_extreme<n>(x, extreme, empty);
    if (all(empty)) return {vf{}, vf{}, empty};
    return finite ? search_symmetric_in<true, n, levels>(x, w, extreme, empty)
                  : search_symmetric_in<false, n, levels>(x, w, extreme, empty);
}

// The stored codes (q + levels) of the winning trial.
template <int levels>
KVANT_INLINE vi symmetric_code(const Symmetric& found, vf x) {
    const vi l = imax(splat(-levels), imin(splat(levels - 1), nearest(found.iscale * x)));
    return select(found.empty, splat(0), l + levels);
}

// Stored codes for a scale as stored.
template <int levels>
KVANT_INLINE vi symmetric_recode(vf x, vf scale) {
    return imax(splat(-levels), imin(splat(levels - 1), nearest(x / scale))) + levels;
}

}  // namespace kvant::KVANT_NS
