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
KVANT_INLINE void answer(const float* matrix, int64_t n, int64_t first, int64_t end, int64_t at, const vf* e, int count,
                         vf* out) {
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
        out[k] = a0;
        out[k + 1] = a1;
        out[k + 2] = a2;
        out[k + 3] = a3;
    }
    for (; k < end; ++k)
        for (int j = 0; j < count; ++j) out[k] += matrix[k * n + at + j] * e[j];
}

// Columns are worked on in chunks. Inside one, errors are answered at once; the other columns are told when it is done,
// and for many rows together, so that a large matrix is read as seldom as can be.
constexpr int64_t chunk = 256;
constexpr int tiles = fit_rows / W;  // sets of W rows that are worked on together

struct Columns {
    int64_t first, end;
};
KVANT_INLINE Columns chunk_of(int64_t at, int64_t n) {
    const int64_t first = at / chunk * chunk;
    return {first, first + chunk < n ? first + chunk : n};
}

// As `answer`, for `Count` sets of rows and K columns of the matrix's at once.
template <int K, int Count, class Rows>
KVANT_INLINE void answer_some(const float* m, int64_t n, int64_t k, int count, const Rows* rows, vf* Rows::* out) {
    vf sum[K][Count];
    for (int i = 0; i < K; ++i)
        for (int s = 0; s < Count; ++s) sum[i][s] = (rows[s].*out)[k + i];
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < K; ++i)
            for (int s = 0; s < Count; ++s) sum[i][s] += m[i * n + j] * rows[s].e[j];
    for (int i = 0; i < K; ++i)
        for (int s = 0; s < Count; ++s) (rows[s].*out)[k + i] = sum[i][s];
}

// As `answer`, for all sets of rows; e is what they did in the chunk from `at` on.
template <class Rows>
void answer_all(const float* matrix, int64_t n, int64_t first, int64_t end, Columns at, const Rows* rows, int sets,
                vf* Rows::* out) {
    const int count = (int)(at.end - at.first);
    int64_t k = first;
    for (; k + 4 <= end; k += 4) {
        const float* m = matrix + k * n + at.first;
        int s = 0;
        for (; s + 2 <= sets; s += 2) answer_some<4, 2>(m, n, k, count, rows + s, out);
        if (s < sets) answer_some<4, 1>(m, n, k, count, rows + s, out);
    }
    for (; k < end; ++k)
        for (int s = 0; s < sets; ++s) answer_some<1, 1>(matrix + k * n + at.first, n, k, count, rows + s, out);
}

// Round, then improve. Rows has vectors w, x, v, g and, for a chunk, e; round(columns) leaves w - v of the chunk in e,
// and improve(columns) what it added to v.
template <class Rows>
void round_and_improve(const FitProblem& p, Rows* rows, int sets) {
    for (int s = 0; s < sets; ++s)
        for (int64_t j = 0; j < p.n; ++j) rows[s].x[j] = rows[s].w[j], rows[s].g[j] = vf{};
    for (int64_t at = 0; at < p.n; at += chunk) {
        const Columns now = chunk_of(at, p.n);
        for (int s = 0; s < sets; ++s) rows[s].round(now);
        answer_all(p.feedback, p.n, now.end, p.n, now, rows, sets, &Rows::x);
    }
    for (int64_t at = 0; at < p.n; at += chunk) {
        const Columns now = chunk_of(at, p.n);
        for (int s = 0; s < sets; ++s)
            for (int64_t j = now.first; j < now.end; ++j) rows[s].e[j - now.first] = rows[s].v[j] - rows[s].w[j];
        answer_all(p.hessian, p.n, 0, p.n, now, rows, sets, &Rows::g);
    }
    for (int sweep = 0; sweep < p.sweeps; ++sweep)
        for (int64_t at = 0; at < p.n; at += chunk) {
            const Columns now = chunk_of(at, p.n);
            for (int s = 0; s < sets; ++s) {
                Rows& r = rows[s];
                for (int64_t j = now.first; j < now.end; ++j) r.e[j - now.first] = -r.v[j];
                r.improve(now);
                for (int64_t j = now.first; j < now.end; ++j) r.e[j - now.first] += r.v[j];
            }
            answer_all(p.hessian, p.n, 0, now.first, now, rows, sets, &Rows::g);
            answer_all(p.hessian, p.n, now.end, p.n, now, rows, sets, &Rows::g);
        }
}

// Fill a set with rows [row, end), the last repeated where they are fewer than its lanes.
template <class Rows>
KVANT_INLINE void load_rows(const FitProblem& p, int64_t row, int64_t end, Rows& rows) {
    for (int k = 0; k < W; ++k) {
        const float* from = p.weights + (row + k < end ? row + k : end - 1) * p.n;
        for (int64_t j = 0; j < p.n; ++j) rows.w[j][k] = from[j];
    }
}

}  // namespace kvant::KVANT_NS
