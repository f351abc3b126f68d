// Rounding under a full Hessian for codebook types, whose groups of weights are points of a grid with signs: lane =
// row.
//
// As in fit.cpp: a first rounding with error feedback, then descent over runs with everything else held, never for the
// worse. Where that takes weights one by one, this takes groups: of all points of the codebook, the nearest to what the
// group's weights should be, in the metric of the group's own block of the matrix.
#include "kvant/codebook_search.h"

namespace kvant::KVANT_NS {
namespace {

// Work on W rows. Arrays of vectors are n long, or one per run or block.
template <class T>
struct Rows {
    static constexpr int G = T::group, R = T::run, U = T::unit;
    FitProblem p;
    vf *w, *x, *v, *t, *g;  // weights; the same less what earlier errors ask; values; signed levels; H (v - w)
    vf* e;                  // of a chunk: errors, then changes
    vf *sc, *d;             // 2 sc + 1 of each run; super-scale of each block
    // Blocks along the diagonal, rows of G or U: what errors of a group or unit cost once later columns have answered
    // them, and, for the chunk at hand, the inverse of a group's metric.
    float *cost, *unit_cost, *inverted;
    vf loss;  // the error that is left

    // sum over the unit's columns k >= i, j of U_ik D_k U_jk, where H = U D U^T.
    void cost_of(int64_t at, int count, float* out) const {
        for (int i = 0; i < count; ++i)
            for (int j = 0; j < count; ++j) {
                float sum = 0;
                for (int k = i > j ? i : j; k < count; ++k) {
                    const float* fk = p.feedback + (at + k) * p.n + at;
                    sum += (i == k ? 1.f : fk[i]) * p.curvature[at + k] * (j == k ? 1.f : fk[j]);
                }
                out[i * count + j] = sum;
            }
    }

    // Inverse of a block of the metric, by elimination in place; it is positive definite.
    void invert(const float* m, int64_t stride, float* a) const {
        for (int i = 0; i < G; ++i)
            for (int j = 0; j < G; ++j) a[i * G + j] = m[i * stride + j];
        for (int k = 0; k < G; ++k) {
            const float pivot = 1.f / a[k * G + k];
            a[k * G + k] = 1.f;
            for (int j = 0; j < G; ++j) a[k * G + j] *= pivot;
            for (int i = 0; i < G; ++i) {
                if (i == k) continue;
                const float by = a[i * G + k];
                a[i * G + k] = 0.f;
                for (int j = 0; j < G; ++j) a[i * G + j] -= by * a[k * G + j];
            }
        }
    }

    void prepare() {
        for (int64_t at = 0; at < p.n; at += G) cost_of(at, G, cost + at * G);
        for (int64_t at = 0; T::even && at < p.n; at += U) cost_of(at, U, unit_cost + at * U);
    }

    // Read off a chunk's metric what all rows need.
    void enter(const Metric& h) const {
        for (int at = 0; at < 256; at += G) invert(h.m + at * h.stride + at, h.stride, inverted + at * G);
    }

    // Columns of a unit as they would be if each could answer the errors of those before it. e: errors of the first
    // few.
    KVANT_MEMBER void targets(int64_t at, const vf* from, int first, const vf* known, vf* z) const {
        vf e[U];
        for (int k = 0; k < U; ++k) {
            vf wanted = from[k];
            for (int j = 0; j < k; ++j) wanted += p.feedback[(at + k) * p.n + at + j] * e[j];
            z[k] = wanted;
            e[k] = k < first ? known[k] : w[at + k] - wanted;
        }
    }

    // Round a unit whose columns should be `from` before they answer each other; returns the error left.
    KVANT_MEMBER vf round_unit(int64_t at, const vf* from, vf s, vf* to) const {
        vf z[U], wanted[U], sign[U], e[U], error{};
        if constexpr (T::shifted) return round_shifted(at, from, s, to);
        targets(at, from, 0, e, wanted);
        for (int pass = 0; pass < (T::even ? 2 : 1); ++pass) {
            error = vf{};
            for (int q = 0; q < U; q += G) {
                targets(at, from, q, e, z);
                for (int i = q; i < q + G; ++i) sign[i] = sign_of(pass ? to[i] : z[i]);
                const float* m = cost + (at + q) * G;
                vf found = nearest_point<T>(z + q, sign + q, m, G, s, to + q);
                if constexpr (!T::even) turn_signs<T>(z + q, m, G, s, to + q, found);
                error += found;
                for (int i = q; i < q + G; ++i) e[i] = w[at + i] - s * to[i];
            }
            if (T::even && pass == 0) make_even<T>(wanted, unit_cost + at * U, s, to);
        }
        return error;
    }

    // The same where all levels are shifted alike.
    KVANT_MEMBER vf round_shifted(int64_t at, const vf* from, vf s, vf* to) const {
        vf z[U], e[U], t[U], best = splat(huge);
        for (const float shift : shifts) {
            vf error{};
            for (int q = 0; q < U; q += G) {
                targets(at, from, q, e, z);
                error += nearest_shifted<T>(z + q, cost + (at + q) * G, G, s, splat(shift), t + q);
                for (int i = q; i < q + G; ++i) e[i] = w[at + i] - s * t[i];
            }
            const vi better = shift == shifts[0] ? splat(-1) : vi(error < best);
            best = select(better, error, best);
            for (int i = 0; i < U; ++i) to[i] = select(better, t[i], to[i]);
        }
        return best;
    }

    // Round a run; returns the error left.
    KVANT_MEMBER vf round_run(int64_t at, vf s, vf* to) const {
        vf from[R], e[U], error{};
        for (int j = 0; j < R; ++j) from[j] = x[at + j];
        for (int u = 0; u < R; u += U) {
            error += round_unit(at + u, from + u, s, to + u);
            for (int j = 0; j < U; ++j) e[j] = w[at + u + j] - s * to[u + j];
            for (int k = u + U; k < R; ++k)
                for (int j = 0; j < U; ++j) from[k] += p.feedback[(at + k) * p.n + at + u + j] * e[j];
        }
        return error;
    }

    // The scale of a run that plain rounding of its groups likes best.
    vf search(int64_t at) const {
        vf extreme{}, best = splat(huge), scale{};
        for (int j = 0; j < R; ++j) extreme = vmax(extreme, vabs(x[at + j]));
        const float top = T::values.at[T::levels - 1], from = T::shifted ? 0.3f : 0.6f;
        for (int step = 0; step <= 8; ++step) {
            const vf s = extreme * ((from + 0.1f * (float)step) / top);
            vf error{}, sign[G], to[G];
            for (int u = 0; u < R; u += G) {
                for (int i = 0; i < G; ++i) sign[i] = T::shifted ? splat(1.f) : sign_of(x[at + u + i]);
                error += nearest_point<T>(x + at + u, sign, cost + (at + u) * G, G, s, to);
            }
            const vi better = error < best;
            best = select(better, error, best);
            scale = select(better, s, scale);
        }
        return scale;
    }

    // 2 sc + 1 nearest to a scale in units of d.
    static KVANT_MEMBER vf nearest_odd(vf scale, vf d) {
        return 2.f * nearest_clamped(0.5f * (scale * inverse(d * T::part) - 1.f), 0, 0.5f * (T::top - 1.f)) + 1.f;
    }

    // The first rounding of a block, columns in order, each run's errors answered by all columns after it.
    void round(Columns now) {
        const int64_t block = now.first / 256;
        vf scale[T::runs], to[R], widest{};
        for (int i = 0; i < T::runs; ++i) widest = vmax(widest, scale[i] = search(now.first + i * R));
        d[block] = half_of(widest / (T::top * T::part));
        for (int64_t at = now.first; at < now.end; at += R) {
            vf best = splat(huge);
            const vf first = nearest_odd(scale[(at - now.first) / R], d[block]);
            sc[at / R] = first;
            for (int step = -1; step <= 1; ++step) {
                const vf odd = vmin(vmax(first + (float)(2 * step), splat(1.f)), splat(T::top));
                const vf error = round_run(at, d[block] * T::part * odd, to);
                const vi better = step < 0 ? splat(-1) : vi(error < best);
                best = select(better, error, best);
                sc[at / R] = select(better, odd, sc[at / R]);
                for (int j = 0; j < R; ++j) t[at + j] = select(better, to[j], t[at + j]);
            }
            const vf s = d[block] * T::part * sc[at / R];
            vf* error = e + (at - now.first);
            for (int j = 0; j < R; ++j) {
                v[at + j] = s * t[at + j];
                error[j] = w[at + j] - v[at + j];
            }
            tell(p.feedback, p.n, at + R, now.end, at, error, R, x);
        }
    }

    // A run as it is being improved.
    struct State {
        vf t[R], v[R], g[R], change, sc;
    };

    // Take `step` in columns [q, q + count) of a run where that makes the error less; to: their new levels.
    KVANT_MEMBER void advance(const Metric& h, int at, int q, int count, vf s, const vf* to, State& run) const {
        vf step[span], change{};
        for (int i = 0; i < count; ++i) step[i] = s * to[i] - run.v[q + i];
        for (int i = 0; i < count; ++i) {
            const float* row = h.m + (at + q + i) * h.stride + at + q;
            vf moved{};
            for (int j = 0; j < count; ++j) moved += row[j] * step[j];
            change += step[i] * (2.f * run.g[q + i] + moved);
        }
        const vi better = change < 0.f;
        run.change += select(better, change, vf{});
        for (int i = 0; i < count; ++i) {
            step[i] = select(better, step[i], vf{});
            run.t[q + i] = select(better, to[i], run.t[q + i]);
            run.v[q + i] = s * run.t[q + i];
        }
        answer(h.m + at * h.stride + at, h.stride, 0, R, q, step, count, run.g);
    }

    // Turn the two signs of a unit that are best turned together.
    KVANT_MEMBER void turn_pair(const Metric& h, int at, int q, vf s, State& run) const {
        vf step[U], alone[U], least{}, to[U];
        vi first = splat(-1), second = splat(-1);
        for (int i = 0; i < U; ++i) {
            const float* row = h.m + (at + q + i) * h.stride + at + q;
            step[i] = -2.f * run.v[q + i];
            alone[i] = step[i] * (2.f * run.g[q + i] + row[i] * step[i]);
            for (int j = 0; j < i; ++j) {
                const vf change = alone[i] + alone[j] + (2.f * row[j]) * (step[i] * step[j]);
                const vi better = change < least;
                least = select(better, change, least);
                first = select(better, splat(i), first);
                second = select(better, splat(j), second);
            }
        }
        for (int i = 0; i < U; ++i) to[i] = select((first == i) | (second == i), -run.t[q + i], run.t[q + i]);
        if (any(first >= 0)) advance(h, at, q, U, s, to, run);
    }

    // Change of the error when a run, `at` in the chunk from `first` on, goes over to another scale and its groups then
    // descend. turn: 1, or -1 to shift its levels the other way.
    KVANT_MEMBER void descend(const Metric& h, int64_t first, int at, vf odd, State& run, float turn = 1) const {
        const vf s = d[first / 256] * T::part * odd;
        vf e[R], z[G], sign[G], to[G];
        run.sc = odd;
        for (int j = 0; j < R; ++j) {
            run.t[j] = t[first + at + j];
            if (turn < 0) run.t[j] -= 2.f * shift_of(run.t[j]);
            run.v[j] = s * run.t[j];
            run.g[j] = g[first + at + j];
            e[j] = run.v[j] - v[first + at + j];
        }
        answer(h.m + at * h.stride + at, h.stride, 0, R, 0, e, R, run.g);
        run.change = vf{};
        for (int j = 0; j < R; ++j) run.change += e[j] * (g[first + at + j] + run.g[j]);
        for (int q = 0; q < R; q += G) {
            for (int i = 0; i < G; ++i) {
                z[i] = run.v[q + i];
                for (int j = 0; j < G; ++j) z[i] -= inverted[(at + q + i) * G + j] * run.g[q + j];
                sign[i] = sign_of(T::even ? run.t[q + i] : z[i]);
            }
            const float* m = h.m + (at + q) * h.stride + at + q;
            if constexpr (T::shifted) {
                const vf shift = shift_of(run.t[q]);
                const vf found = nearest_shifted<T>(z, m, h.stride, s, shift, to);
                if (U == G) {  // it is the group's own
                    vf other[G];
                    const vi better = nearest_shifted<T>(z, m, h.stride, s, -shift, other) < found;
                    for (int i = 0; i < G; ++i) to[i] = select(better, other[i], to[i]);
                }
            } else {
                vf found = nearest_point<T>(z, sign, m, h.stride, s, to);
                if constexpr (!T::even) turn_signs<T>(z, m, h.stride, s, to, found);
            }
            advance(h, at, q, G, s, to, run);
            if (T::even && (q + G) % U == 0) turn_pair(h, at, q + G - U, s, run);
        }
    }

    // Scale that is best for the codes as they are, everything else held.
    KVANT_MEMBER vf refit(const Metric& h, int64_t first, int at) const {
        vf gt{}, tt{}, ht[R]{};
        const vf* own = t + first + at;
        answer(h.m + at * h.stride + at, h.stride, 0, R, 0, own, R, ht);
        for (int k = 0; k < R; ++k) {
            gt += g[first + at + k] * own[k];
            tt += ht[k] * own[k];
        }
        return d[first / 256] * T::part * sc[(first + at) / R] - gt * inverse(tt);
    }

    // Improve one run and let the gradients of its chunk know.
    void improve_run(const Metric& h, int64_t first, int at) {
        const int64_t from = first + at;
        const vf old = sc[from / R];
        State best, next;
        descend(h, first, at, old, best);
        const vf guesses[3] = {nearest_odd(refit(h, first, at), d[first / 256]), vmax(old - 2.f, splat(1.f)),
                               vmin(old + 2.f, splat(T::top))};
        for (int i = 0; i < (T::shifted && U > G ? 4 : 3); ++i) {
            if (i < 3 && !any(guesses[i] != old)) continue;
            if (i < 3) descend(h, first, at, guesses[i], next);
            else descend(h, first, at, best.sc, next, -1);
            const vi better = next.change < best.change;
            if (!any(better)) continue;
            best.change = select(better, next.change, best.change);
            best.sc = select(better, next.sc, best.sc);
            for (int j = 0; j < R; ++j) {
                best.t[j] = select(better, next.t[j], best.t[j]);
                best.v[j] = select(better, next.v[j], best.v[j]);
            }
        }
        const vi better = best.change < 0.f;
        if (!any(better)) return;
        loss += select(better, best.change, vf{});
        vf e[R];
        for (int j = 0; j < R; ++j) {
            e[j] = select(better, best.v[j] - v[from + j], vf{});
            t[from + j] = select(better, best.t[j], t[from + j]);
            v[from + j] = select(better, best.v[j], v[from + j]);
        }
        sc[from / R] = select(better, best.sc, old);
        tell(h.m, h.stride, 0, 256, at, e, R, g + first);
    }

    // Refit the super-scale of a block to its points and scales.
    void refit_super(const Metric& h, int64_t block) {
        constexpr int N = 256;
        const int64_t from = block * N;
        vf a[N], ha[N], ga{}, aa{};
        for (int j = 0; j < N; ++j) {
            a[j] = T::part * sc[(from + j) / R] * t[from + j];
            ha[j] = vf{};
        }
        tell(h.m, h.stride, 0, N, 0, a, N, ha);
        for (int j = 0; j < N; ++j) {
            ga += g[from + j] * a[j];
            aa += ha[j] * a[j];
        }
        const vf to = half_of(vmax(d[block] - ga * inverse(aa), vf{}));
        vf by = to - d[block];
        const vf change = by * (ga + ga + by * aa);
        const vi better = change < 0.f;
        if (!any(better)) return;
        loss += select(better, change, vf{});
        by = select(better, by, vf{});
        d[block] = select(better, to, d[block]);
        for (int j = 0; j < N; ++j) {
            g[from + j] += by * ha[j];
            v[from + j] = d[block] * T::part * sc[(from + j) / R] * t[from + j];
        }
    }

    // Improve the runs of a block, then its super-scale.
    __attribute__((noinline)) void improve(Columns now, const Metric& h, bool) {
        for (int at = 0; at < 256; at += R) improve_run(h, now.first, at);
        refit_super(h, now.first / 256);
    }
};

template <class T>
int level_code(float t) {
    if (T::shifted) {
        const int level = t < -0.5f ? -1 : t > 0.5f;
        return level + 1 + (t < (float)level ? 128 : 0);
    }
    const float level = t < 0 ? -t : t;
    int code = 0;
    while (code < T::levels - 1 && (float)T::values.at[code] != level) ++code;
    return code + (t < 0 ? 128 : 0);
}

template <class T>
void fit(const FitProblem& p, int64_t first, int64_t end, float* scratch, const FitResult& out) {
    const int64_t runs = p.n / T::run, blocks = p.n / 256;
    vf* next = (vf*)scratch;
    const auto take = [&](int64_t count) {
        vf* at = next;
        next += count;
        return at;
    };
    Rows<T> rows[tiles];
    int sets = 0;
    for (int64_t row = first; row < end; row += W) {
        Rows<T>& r = rows[sets++];
        r = {p,          take(p.n),    take(p.n), take(p.n), take(p.n), take(p.n), take(chunk),
             take(runs), take(blocks), {},        {},        {},        vf{}};
        load_rows(p, row, end, r);
    }
    float* shared = (float*)next;
    float* cost = shared + metric_scratch;
    for (Rows<T>& r : rows)
        r.cost = cost, r.unit_cost = cost + T::group * p.n, r.inverted = r.unit_cost + (T::even ? T::unit * p.n : 0);
    rows[0].prepare();
    round_and_improve(p, rows, sets, shared);
    for (int64_t row = first; row < end; row += W) {
        const Rows<T>& r = rows[(row - first) / W];
        for (int k = 0; k < W && row + k < end; ++k) {
            const int64_t at = row + k;
            for (int64_t j = 0; j < p.n; ++j) out.codes[at * p.n + j] = (uint8_t)level_code<T>(r.t[j][k]);
            out.loss[at] = r.loss[k];
            for (int64_t b = 0; b < blocks; ++b) out.d[at * blocks + b] = (uint16_t)to_half(r.d[b])[k];
            for (int64_t i = 0; i < runs; ++i) out.scales[at * runs + i] = (int8_t)((int)r.sc[i][k] / 2);
        }
    }
}

template <class T>
constexpr FitKernel kernel(int ggml_id) {
    return {ggml_id, T::run, 256, false, fit<T>};
}
constexpr FitKernel kernels[] = {
    kernel<IQ1_S>(19),   kernel<IQ1_M>(29), kernel<IQ2_XXS>(16), kernel<IQ2_XS>(17),
    kernel<IQ3_XXS>(18), kernel<IQ3_S>(21), kernel<IQ2_S>(22),
};

}  // namespace

const FitKernel* find_codebook_fit(int ggml_id) {
    for (const FitKernel& k : kernels)
        if (k.id == ggml_id) return &k;
    return nullptr;
}

}  // namespace kvant::KVANT_NS
