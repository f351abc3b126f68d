// What all kernels that round under a full Hessian share: arithmetic of scales, and how errors reach other columns.
#pragma once
#include "kvant/fit.h"
#include "kvant/half.h"
#include "kvant/simd.h"

#define KVANT_APART [[maybe_unused]] static __attribute__((noinline))

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
    if ((end - first) % 4 == 0) return;
    for (; k < end; ++k)
        for (int j = 0; j < count; ++j) out[k] += matrix[k * n + at + j] * e[j];
}

// Columns are worked on in chunks. Inside one, errors are answered at once; the other columns are told when it is done,
// and for many rows together, so that a large matrix is read as seldom as can be.
constexpr int64_t chunk = fit_chunk;
constexpr int tiles = fit_rows / W;  // sets of W rows that are worked on together

struct Columns {
    int64_t first, end;
};
KVANT_INLINE Columns chunk_of(int64_t at, int64_t n) {
    const int64_t first = at / chunk * chunk;
    return {first, first + chunk < n ? first + chunk : n};
}

// As `answer` inside a chunk, for the elements above the diagonal and on it, or only those below it: out[i] += sum over
// j >= i, or j < i, of matrix[i][j] e[j].
KVANT_APART void answer_upper(const float* m, int64_t stride, int count, const vf* e, vf* out) {
    for (int i = 0; i < count; i += 4) {
        for (int k = i; k < i + 4; ++k)
            for (int j = k; j < i + 4; ++j) out[k] += m[k * stride + j] * e[j];
        answer(m, stride, i, i + 4, i + 4, e + i + 4, count - i - 4, out);
    }
}
KVANT_APART void answer_lower(const float* m, int64_t stride, int count, const vf* e, vf* out) {
    for (int i = 0; i < count; i += 4) {
        answer(m, stride, i, i + 4, 0, e, i, out);
        for (int k = i; k < i + 4; ++k)
            for (int j = i; j < k; ++j) out[k] += m[k * stride + j] * e[j];
    }
}

// As `answer`, with a function of its own.
KVANT_APART void tell(const float* matrix, int64_t n, int64_t first, int64_t end, int64_t at, const vf* e, int count,
                      vf* out) {
    answer(matrix, n, first, end, at, e, count, out);
}

// Vectors of sets of rows that are told something together.
struct Told {
    vf* out[tiles];
    const vf* e[tiles];
};

// As `answer`, for `Count` sets of rows and K columns of the matrix's at once.
template <int K, int Count>
KVANT_INLINE void answer_some(const float* m, int64_t n, int64_t k, int count, const Told& rows, int set) {
    vf sum[K][Count];
    const vf* e[Count];
    for (int s = 0; s < Count; ++s) e[s] = rows.e[set + s];
    for (int i = 0; i < K; ++i)
        for (int s = 0; s < Count; ++s) sum[i][s] = rows.out[set + s][k + i];
    for (int j = 0; j < count; ++j)
        for (int i = 0; i < K; ++i)
            for (int s = 0; s < Count; ++s) sum[i][s] += m[i * n + j] * e[s][j];
    for (int i = 0; i < K; ++i)
        for (int s = 0; s < Count; ++s) rows.out[set + s][k + i] = sum[i][s];
}

// As `answer`, for all sets of rows; e is what they did in the chunk from `at` on. Columns go in tiles whose part of
// the matrix stays in the second cache while pairs of sets, whose e stays in the first, take their turns; meanwhile the
// next tile is fetched.
KVANT_APART void answer_all(const float* matrix, int64_t n, int64_t first, int64_t end, Columns at, const Told& rows,
                            int sets) {
    constexpr int64_t tile = 64, line = 16;
    constexpr int together = W == 16 ? 4 : 2;
    const int count = (int)(at.end - at.first);
    for (int64_t from = first; from < end; from += tile) {
        const int64_t to = from + tile < end ? from + tile : end;
        for (int s = 0; s < sets; s += together) {
            const int some = sets - s < together ? sets - s : together;
            int64_t k = from;
            for (; k + 4 <= to; k += 4) {
                const float* m = matrix + k * n + at.first;
                if (s == 0 && k + tile + 4 <= end)
                    for (int i = 0; i < 4; ++i)
                        for (int64_t j = 0; j < count; j += line) __builtin_prefetch(m + (tile + i) * n + j, 0, 2);
                if (some == together) answer_some<4, together>(m, n, k, count, rows, s);
                else
                    for (int r = s; r < sets; ++r) answer_some<4, 1>(m, n, k, count, rows, r);
            }
            for (; k < to; ++k)
                for (int r = s; r < s + some; ++r) answer_some<1, 1>(matrix + k * n + at.first, n, k, count, rows, r);
        }
    }
}

// The block of a chunk's columns of the matrix that errors are measured with, and what is read off it once for all
// rows.
struct Metric {
    const float* m;  // element (i, j) of the chunk is m[i * stride + j]
    int64_t stride;
    const float* inverse;  // 1 over the diagonal
    const float* sums;     // [runs][chunk]: sums over the columns of each run
};

constexpr int64_t least_run = 16;
constexpr int64_t metric_scratch = chunk + chunk / least_run * chunk;  // floats

KVANT_APART Metric metric_of(const float* m, int64_t stride, Columns now, int run, float* scratch) {
    const int64_t count = now.end - now.first;
    float* sums = scratch + chunk;
    for (int64_t i = 0; i < count; ++i) scratch[i] = 1.f / m[i * stride + i];
    for (int64_t r = 0; r < count / run; ++r)
        for (int64_t j = r * run; j < (r + 1) * run; ++j)
            for (int64_t k = 0; k < count; ++k)
                sums[r * chunk + k] = (j > r * run ? sums[r * chunk + k] : 0.f) + m[j * stride + k];
    return {m, stride, scratch, sums};
}

// Round, then improve. Rows has vectors w, x, v, g and, for a chunk, e; round(columns) leaves w - v of the chunk in e,
// and improve(columns, metric, is_last) what it added to v.
//
// First, chunk by chunk, with the errors of earlier chunks answered: H = U D U^T, and all later columns will answer
// this chunk's, so what counts is its block of U D U^T without them, under which the rounding is improved before it is
// told. What is left, q = v - x, costs sum D q^2 in all, and the gradient H (v - w) is U D q. Then in sweeps under H
// itself.
template <class Rows>
void round_and_improve(const FitProblem& p, Rows* rows, int sets, float* scratch) {
    Told moved{}, raised{};
    for (int s = 0; s < sets; ++s) {
        moved.out[s] = rows[s].x;
        raised.out[s] = rows[s].g;
        moved.e[s] = raised.e[s] = rows[s].e;
        for (int64_t j = 0; j < p.n; ++j) rows[s].x[j] = rows[s].w[j];
    }
    for (int64_t at = 0; at < p.n; at += chunk) {
        const Columns now = chunk_of(at, p.n);
        const float* f = p.feedback + at * p.n + at;
        const int count = (int)(now.end - at);
        const Metric metric = metric_of(p.local + at * chunk, chunk, now, Rows::R, scratch);
        rows[0].enter(metric);
        for (int s = 0; s < sets; ++s) {
            Rows& r = rows[s];
            vf start[chunk];
            for (int j = 0; j < count; ++j) start[j] = r.x[at + j];
            r.round(now);
            const auto left = [&] {  // what cannot be answered any more, times what it costs
                for (int j = 0; j < count; ++j) r.x[at + j] = start[j], r.e[j] = r.w[at + j] - r.v[at + j];
                answer_lower(f, p.n, count, r.e, r.x + at);
                for (int j = 0; j < count; ++j) r.x[at + j] = p.curvature[at + j] * (r.v[at + j] - r.x[at + j]);
            };
            left();
            for (int j = 0; j < count; ++j) r.g[at + j] = vf{};
            if (!p.sweeps) continue;
            answer_upper(f, p.n, count, r.x + at, r.g + at);
            r.improve(now, metric, false);
            left();
            for (int j = 0; j < count; ++j) r.g[at + j] = vf{};
        }
        answer_all(p.feedback, p.n, now.end, p.n, now, moved, sets);
    }
    for (int s = 0; s < sets; ++s) {
        rows[s].loss = vf{};
        for (int64_t j = 0; j < p.n; ++j) rows[s].loss += rows[s].x[j] * rows[s].x[j] / p.curvature[j];
    }
    for (int64_t at = 0; p.sweeps && at < p.n; at += chunk) {
        const Columns now = chunk_of(at, p.n);
        for (int s = 0; s < sets; ++s) {
            answer_upper(p.feedback + at * p.n + at, p.n, (int)(now.end - at), rows[s].x + at, rows[s].g + at);
            for (int64_t j = at; j < now.end; ++j) rows[s].e[j - at] = rows[s].x[j];
        }
        answer_all(p.feedback, p.n, 0, at, now, raised, sets);
    }
    for (int sweep = 0; sweep < p.sweeps; ++sweep)
        for (int64_t at = 0; at < p.n; at += chunk) {
            const Columns now = chunk_of(at, p.n);
            const bool is_last = sweep + 1 == p.sweeps;
            const Metric metric = metric_of(p.hessian + at * p.n + at, p.n, now, Rows::R, scratch);
            rows[0].enter(metric);
            for (int s = 0; s < sets; ++s) {
                Rows& r = rows[s];
                vf before[chunk];
                for (int64_t j = at; j < now.end; ++j) before[j - at] = r.v[j];
                r.improve(now, metric, is_last);
                for (int64_t j = at; j < now.end; ++j) r.e[j - at] = r.v[j] - before[j - at];
            }
            if (!is_last) answer_all(p.hessian, p.n, 0, now.first, now, raised, sets);
            answer_all(p.hessian, p.n, now.end, p.n, now, raised, sets);
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
