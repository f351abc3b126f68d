// What all kernels that round under a full Hessian share: arithmetic of scales, and how errors reach other columns.
#pragma once
#include "kvant/fit.h"
#include "kvant/half.h"
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

constexpr float huge = 1e30f;

KVANT_INLINE vf half_of(vf a) { return from_half(to_half(vmax(vmin(a, splat(65504.f)), splat(-65504.f)))); }
// 1 / a, and 0 where that would be beyond all weights.
KVANT_INLINE vf inverse(vf a) { return select(vabs(a) > 1e-30f, 1.f / a, vf{}); }

// out[k] += sum over j of matrix[k][at + j] e[j], for k from `first` on.
KVANT_INLINE void answer(const float* matrix, int64_t n, int64_t first, int64_t end, int64_t at, const vf* e, int count, vf* out) {
    int64_t k = first;
    for (; k + 4 <= end; k += 4) {
        const float* m = matrix + k * n + at;
        vf a0 = out[k], a1 = out[k + 1], a2 = out[k + 2], a3 = out[k + 3];
        for (int j = 0; j < count; ++j) {
            const vf ej = e[j];
            a0 += m[j] * ej;
            a1 += m[n + j] * ej;
            a2 += m[2 * n + j] * ej;
            a3 += m[3 * n + j] * ej;
        }
        out[k] = a0; out[k + 1] = a1; out[k + 2] = a2; out[k + 3] = a3;
    }
    for (; k < end; ++k)
        for (int j = 0; j < count; ++j) out[k] += matrix[k * n + at + j] * e[j];
}

// g = H (v - w).
KVANT_INLINE void gradient(const FitProblem& p, const vf* w, const vf* v, vf* g) {
    for (int64_t j = 0; j < p.n; ++j) g[j] = vf{};
    vf e[16];
    for (int64_t at = 0; at < p.n; at += 16) {
        for (int j = 0; j < 16; ++j) e[j] = v[at + j] - w[at + j];
        answer(p.hessian, p.n, 0, p.n, at, e, 16, g);
    }
}

}  // namespace kvant::KVANT_NS
