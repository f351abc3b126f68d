// Rounding under a full Hessian, for every type whose codes are numbers on a grid: lane = row.
//
// The error of a row is e H e^T, e = v - w. First each run is rounded with the errors of the columns before it already
// answered by the columns to come (GPTQ, Frantar et al. 2022, in blocks); then runs are improved one at a time, all
// others held: new scales are tried, for each the codes descend column by column, and the best is kept. A run never
// gets worse, so neither does the row.
#include "kvant/fit_types.h"

namespace kvant::KVANT_NS {
namespace {

// What a run is stored with: `scale` and `offset` as a decoder has them, and the integers they come from.
struct Grid {
    vf scale, offset, sc, mn;
};

KVANT_INLINE Grid choose(vi mask, const Grid& a, const Grid& b) {
    return {select(mask, a.scale, b.scale), select(mask, a.offset, b.offset), select(mask, a.sc, b.sc),
            select(mask, a.mn, b.mn)};
}

// The grid nearest to a scale and an offset that a block with super-scales d and dmin can store.
template <class T>
KVANT_INLINE Grid stored(vf scale, vf offset, vf d, vf dmin) {
    if constexpr (T::wide) {
        const vf zero =
            T::has_offset ? nearest_clamped(-offset * inverse(scale), T::Levels::low, T::Levels::high) : vf{};
        return {scale, T::has_offset ? -(scale * zero) : vf{}, vf{}, zero};
    }
    if constexpr (T::direct) return {T::Scale::nearest(scale), T::has_offset ? half_of(offset) : vf{}, vf{}, vf{}};
    const vf sc = nearest_clamped(scale * inverse(d), T::scale_low, T::scale_high);
    const vf mn = T::has_offset ? nearest_clamped(-offset * inverse(dmin), 0, T::minimum_high) : vf{};
    return {d * sc, T::has_offset ? -(dmin * mn) : vf{}, sc, mn};
}

// Scale and offset that bring the levels t closest to x, each column weighed by w; returns the error.
template <class T>
KVANT_INLINE vf least_squares(const vf* x, const float* w, const vf* t, vf& scale, vf& offset) {
    vf xx{}, xt{}, tt{}, xs{}, ts{};
    float ws = 0;
    for (int i = 0; i < T::run; ++i) {
        const vf wt = w[i] * t[i], wx = w[i] * x[i];
        xx += wx * x[i];
        xt += wx * t[i];
        tt += wt * t[i];
        if constexpr (T::has_offset) {
            xs += wx;
            ts += wt;
            ws += w[i];
        }
    }
    scale = xt * inverse(tt);
    if constexpr (T::Scale::is_coarse) scale = T::Scale::nearest(scale);
    offset = vf{};
    if constexpr (T::has_offset) {
        const vf determinant = ws * tt - ts * ts;
        const vf a = (ws * xt - ts * xs) * inverse(determinant), b = (tt * xs - ts * xt) * inverse(determinant);
        const vi free = (determinant > 1e-6f * ws * tt) & (T::direct ? splat(-1) : (b <= 0.f) & (a > 0.f));
        offset = select(free, b, T::direct ? xs / ws : vf{});
        scale = select(free, a, T::direct ? vf{} : scale);
    }
    vf error{};
    for (int i = 0; i < T::run; ++i) {
        const vf e = x[i] - (scale * t[i] + offset);
        error += w[i] * e * e;
    }
    return error;
}

// Search scale and offset of a run of weights x by plain weighted rounding, from several first guesses.
template <class T>
KVANT_INLINE void search(const vf* x, const float* w, vf& scale, vf& offset) {
    using L = typename T::Levels;
    vf low = x[0], high = x[0], extreme = x[0];
    for (int i = 1; i < T::run; ++i) {
        low = vmin(low, x[i]);
        high = vmax(high, x[i]);
        extreme = select(vabs(x[i]) > vabs(extreme), x[i], extreme);
    }
    if (L::low == -L::high) extreme = L::reach < 0 ? -vabs(extreme) : vabs(extreme);  // a scale above 0 is as good
    if (T::has_offset && !T::direct) low = vmin(low, vf{});
    if (T::has_offset && T::wide) low = vmin(low, vf{}), high = vmax(high, vf{});
    vf best = splat(huge), t[T::run], a, b;
    scale = offset = vf{};
    const auto attempt = [&](vf inverse_scale, vf from) {
        for (int pass = 0; pass < 2; ++pass) {
            for (int i = 0; i < T::run; ++i) t[i] = L::nearest_level((x[i] - from) * inverse_scale);
            const vf error = least_squares<T>(x, w, t, a, b);
            const vi better = error < best;
            best = select(better, error, best);
            scale = select(better, a, scale);
            offset = select(better, b, offset);
            inverse_scale = inverse(a);
            from = b;
        }
    };
    for (int step = -8; step <= 8; ++step) {
        const float by = L::spread * (float)step;
        if constexpr (T::has_offset) {
            attempt((L::high + by) * inverse(high - low), low);
        } else {
            attempt((L::reach + by) * inverse(extreme), vf{});
            if (L::low != -L::high) attempt(-(L::reach + by) * inverse(extreme), vf{});
        }
    }
}

// Work on W rows. Arrays of vectors are n long, or one per run or block.
template <class T>
struct Rows {
    using L = typename T::Levels;
    static constexpr int R = T::run;
    FitProblem p;
    vf *w, *x, *v, *t, *g;  // weights; the same less what earlier errors ask; values; levels; H (v - w)
    vf* e;                  // of a chunk: errors, then changes
    Grid* grid;             // per run
    vf *d, *dmin;           // per block
    vf loss;                // the error that is left

    // Super-scales of a block from the scales its runs would like.
    void choose_super(int64_t block) {
        vf scale[T::runs], offset[T::runs];
        vf widest{}, deepest{};
        for (int r = 0; r < T::runs; ++r) {
            const int64_t at = block * T::length + r * R;
            search<T>(x + at, p.curvature + at, scale[r], offset[r]);
            widest = select(vabs(scale[r]) > vabs(widest), scale[r], widest);
            deepest = vmin(deepest, offset[r]);
        }
        vf first = T::scale_low < 0 ? widest / (float)T::scale_low : widest / (float)T::scale_high;
        d[block] = half_of(first);
        dmin[block] = half_of(-deepest / (float)(T::minimum_high ? T::minimum_high : 1));
    }

    void enter(const Metric&) const {}

    // The first rounding, columns in order, each run's errors answered by all columns after it.
    __attribute__((noinline)) void round(Columns now) {
        for (int64_t at = now.first; at < now.end; at += R) {
            const int64_t block = at / T::length;
            if (!T::direct && at % T::length == 0) choose_super(block);
            vf scale, offset, *error = e + (at - now.first);
            search<T>(x + at, p.curvature + at, scale, offset);
            const Grid s = stored<T>(scale, offset, T::direct ? vf{} : d[block], T::direct ? vf{} : dmin[block]);
            grid[at / R] = s;
            const vf by = inverse(s.scale);
            for (int j = 0; j < R; ++j) {
                t[at + j] = L::nearest_level((x[at + j] - s.offset) * by);
                v[at + j] = s.scale * t[at + j] + s.offset;
                error[j] = w[at + j] - v[at + j];
                for (int k = j + 1; k < R; ++k) x[at + k] += p.feedback[(at + k) * p.n + at + j] * error[j];
            }
            tell(p.feedback, p.n, at + R, now.end, at, error, R, x);
        }
    }

    // What every attempt at a run begins with: its levels, gradients, and sums over them.
    struct Start {
        int at;  // in the chunk
        vf t[R], g[R], ht[R];
        vf gt, gs, tt, ts;
        float ss;
        Grid grid;
    };
    // What an attempt leads to.
    struct State {
        vf t[R], change;
        Grid grid;
    };

    void begin(int64_t first, int at, const Metric& h, Start& run) const {
        run.at = at;
        for (int j = 0; j < R; ++j) run.t[j] = t[first + at + j], run.g[j] = g[first + at + j], run.ht[j] = vf{};
        answer(h.m + at * h.stride + at, h.stride, 0, R, 0, run.t, R, run.ht);
        run.gt = run.gs = run.tt = run.ts = vf{};
        run.ss = 0;
        const float* sums = h.sums + at / R * chunk + at;
        for (int j = 0; j < R; ++j) {
            run.gt += run.g[j] * run.t[j];
            run.tt += run.ht[j] * run.t[j];
            if constexpr (T::has_offset) {
                run.gs += run.g[j];
                run.ts += run.ht[j];
                run.ss += sums[j];
            }
        }
        run.grid = grid[(first + at) / R];
    }

    // Codes descend once, in the order of columns; adds the change of the error.
    __attribute__((noinline)) void pass(int at, const Metric& h, const Grid& to, vf* levels, vf* gradient,
                                        vf& change) const {
        constexpr int B = 8;  // columns whose steps reach those behind them together
        const vf by = inverse(to.scale);
        for (int first = 0; first < R; first += B) {
            vf now[B], step[B];
            for (int j = 0; j < B; ++j) now[j] = gradient[first + j];
            const float* m = h.m + (at + first) * h.stride + at + first;
            KVANT_UNROLL(8) for (int j = 0; j < B; ++j) {
                const vf from = levels[first + j];
                const vf level = L::nearest_level(from - now[j] * (by * h.inverse[at + first + j]));
                step[j] = to.scale * (level - from);
                change += step[j] * (now[j] + now[j] + m[j * h.stride + j] * step[j]);
                levels[first + j] = level;
                KVANT_UNROLL(8) for (int k = j + 1; k < B; ++k) now[k] += m[k * h.stride + j] * step[j];
            }
            answer(h.m + at * h.stride + at, h.stride, first + B, R, first, step, B, gradient);
        }
    }

    // Go over to another grid and let the codes descend.
    __attribute__((noinline)) void attempt(const Start& run, const Metric& h, const Grid& to, State& s) const {
        const float* sums = h.sums + run.at / R * chunk + run.at;
        const vf by = to.scale - run.grid.scale, shift = to.offset - run.grid.offset;
        vf gradient[R];
        s.grid = to;
        s.change = by * (run.gt + run.gt + by * run.tt);
        if constexpr (T::has_offset) s.change += shift * (2.f * (run.gs + by * run.ts) + run.ss * shift);
        for (int j = 0; j < R; ++j) {
            s.t[j] = run.t[j];
            gradient[j] = run.g[j] + by * run.ht[j];
            if constexpr (T::has_offset) gradient[j] += sums[j] * shift;
        }
        pass(run.at, h, to, s.t, gradient, s.change);
    }

    // Scale and offset that are best for the codes as they are, everything else held.
    KVANT_MEMBER void refit(const Start& run, vf& scale, vf& offset) const {
        if constexpr (T::wide && T::has_offset) {
            const vf zero = run.grid.mn;  // stays: the scale alone is free
            scale -= (run.gt - zero * run.gs) * inverse(run.tt - 2.f * zero * run.ts + zero * zero * run.ss);
            offset = -(scale * zero);
        } else if constexpr (T::has_offset) {
            const vf determinant = run.tt * run.ss - run.ts * run.ts;
            const vi usable = determinant > 1e-6f * run.ss * run.tt;
            const vf by = select(usable, inverse(determinant), vf{});
            scale -= (run.ss * run.gt - run.ts * run.gs) * by;
            offset -= (run.tt * run.gs - run.ts * run.gt) * by;
        } else {
            scale -= run.gt * inverse(run.tt);
        }
    }

    // Improve one run: `at` in the chunk from `first` on.
    void improve_run(Columns now, int at, const Metric& h, bool is_last) {
        const int64_t block = (now.first + at) / T::length;
        const vf db = T::direct ? vf{} : d[block], mb = T::direct ? vf{} : dmin[block];
        Start run;
        State best, next;
        begin(now.first, at, h, run);
        const Grid old = run.grid;
        attempt(run, h, old, best);
        const auto consider = [&](const Grid& to) {
            attempt(run, h, to, next);
            const vi better = next.change < best.change;
            if (!any(better)) return;
            best.change = select(better, next.change, best.change);
            best.grid = choose(better, next.grid, best.grid);
            for (int j = 0; j < R; ++j) best.t[j] = select(better, next.t[j], best.t[j]);
        };
        vf scale = old.scale, offset = old.offset, mean{};
        refit(run, scale, offset);
        if (!T::direct) offset = vmin(offset, vf{});
        consider(stored<T>(scale, offset, db, mb));
        for (int j = 0; j < R; ++j) mean += run.t[j];
        mean *= 1.f / R;
        for (int i = 1; i <= 2; ++i) {
            for (int sign = -1; sign <= 1; sign += 2) {
                if constexpr (T::wide && T::has_offset) {
                    const vf zero = vmin(vmax(old.mn + (float)(sign * i), splat(L::low)), splat(L::high));
                    consider({old.scale, -(old.scale * zero), vf{}, zero});
                }
                if constexpr (T::direct) {
                    const vf wider = T::Scale::template wider<L>(old.scale, sign * i);
                    consider(stored<T>(wider, old.offset - (wider - old.scale) * mean, db, mb));
                } else {
                    const vf sc =
                        vmin(vmax(old.sc + (float)(sign * i), splat((float)T::scale_low)), splat((float)T::scale_high));
                    const vf wider = db * sc;
                    if constexpr (T::has_offset) {
                        consider(stored<T>(wider, vmin(old.offset - (wider - old.scale) * mean, vf{}), db, mb));
                        const vf mn = vmin(vmax(old.mn + (float)(sign * i), splat(0.f)), splat((float)T::minimum_high));
                        consider({old.scale, -(mb * mn), old.sc, mn});
                    } else {
                        consider({wider, vf{}, sc, vf{}});
                    }
                }
            }
        }
        take(now, run, h, best, is_last);
    }

    // Let the codes of the best attempt descend once more, store it and tell the gradients of its chunk.
    void take(Columns now, const Start& run, const Metric& h, State& s, bool is_last) {
        const int64_t from = now.first + run.at;
        vf e[R], gradient[R];
        for (int j = 0; j < R; ++j) {
            e[j] = s.grid.scale * s.t[j] + s.grid.offset - v[from + j];
            gradient[j] = run.g[j];
        }
        answer(h.m + run.at * h.stride + run.at, h.stride, 0, R, 0, e, R, gradient);
        pass(run.at, h, s.grid, s.t, gradient, s.change);
        const vi better = s.change < 0.f;
        if (!any(better)) return;
        loss += select(better, s.change, vf{});
        for (int j = 0; j < R; ++j) {
            const vf value = s.grid.scale * s.t[j] + s.grid.offset;
            e[j] = select(better, value - v[from + j], vf{});
            t[from + j] = select(better, s.t[j], t[from + j]);
            v[from + j] = select(better, value, v[from + j]);
        }
        grid[from / R] = choose(better, s.grid, grid[from / R]);
        // Of a last pass the columns before it ask for no more, but a block's super-scales.
        const int64_t told = T::direct && is_last ? run.at + R : 0;
        tell(h.m, h.stride, told, now.end - now.first, run.at, e, R, g + now.first);
    }

    // Refit d and dmin of a block to its codes and integer scales.
    void refit_super(int64_t block, const Metric& h) {
        constexpr int N = T::length;
        const int64_t from = block * N;
        vf a[N], ha[N], hb[N], ga{}, aa{}, gb{}, ab{}, bb{};
        for (int j = 0; j < N; ++j) {
            a[j] = grid[(from + j) / R].sc * t[from + j];
            ha[j] = hb[j] = vf{};
        }
        for (int j = 0; j < N; j += 16) tell(h.m, h.stride, 0, N, j, a + j, 16, ha);
        if constexpr (T::has_offset)
            for (int r = 0; r < T::runs; ++r)
                for (int j = 0; j < N; ++j) hb[j] -= h.sums[r * chunk + j] * grid[from / R + r].mn;
        for (int j = 0; j < N; ++j) {
            ga += g[from + j] * a[j];
            aa += ha[j] * a[j];
            if constexpr (T::has_offset) {
                const vf b = -grid[(from + j) / R].mn;
                gb += g[from + j] * b;
                ab += ha[j] * b;
                bb += hb[j] * b;
            }
        }
        vf to = d[block], to_min = dmin[block];
        if constexpr (T::has_offset) {
            const vf determinant = aa * bb - ab * ab;
            const vi usable = determinant > 1e-6f * aa * bb;
            to = half_of(to - select(usable, (bb * ga - ab * gb) * inverse(determinant), ga * inverse(aa)));
            to_min = half_of(vmax(to_min - select(usable, (aa * gb - ab * ga) * inverse(determinant), vf{}), vf{}));
        } else {
            to = half_of(to - ga * inverse(aa));
        }
        vf by = to - d[block], by_min = to_min - dmin[block], change = by * (ga + ga + by * aa);
        if constexpr (T::has_offset) change += by_min * (2.f * (gb + by * ab) + by_min * bb);
        const vi better = change < 0.f;
        if (!any(better)) return;
        loss += select(better, change, vf{});
        by = select(better, by, vf{});
        by_min = select(better, by_min, vf{});
        d[block] = select(better, to, d[block]);
        dmin[block] = select(better, to_min, dmin[block]);
        for (int j = 0; j < N; ++j) {
            g[from + j] += by * ha[j];
            if constexpr (T::has_offset) g[from + j] += by_min * hb[j];
        }
        for (int r = 0; r < T::runs; ++r) {
            Grid& s = grid[from / R + r];
            s.scale = d[block] * s.sc;
            s.offset = T::has_offset ? -(dmin[block] * s.mn) : vf{};
            for (int j = 0; j < R; ++j) v[from + r * R + j] = s.scale * t[from + r * R + j] + s.offset;
        }
    }

    // Improve the runs of a chunk; blocks of several runs are as long as it is.
    __attribute__((noinline)) void improve(Columns now, const Metric& h, bool is_last) {
        for (int at = 0; at < now.end - now.first; at += R) improve_run(now, at, h, is_last);
        if constexpr (!T::direct) refit_super(now.first / T::length, h);
    }
};

template <class T>
void fit(const FitProblem& p, int64_t first, int64_t end, float* scratch, const FitResult& out) {
    constexpr int R = T::run;
    const int64_t runs = p.n / R, blocks = p.n / T::length;
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
        r = {p,
             take(p.n),
             take(p.n),
             take(p.n),
             take(p.n),
             take(p.n),
             take(chunk),
             (Grid*)take(4 * runs),
             take(T::direct ? 0 : blocks),
             take(T::direct ? 0 : blocks),
             vf{}};
        load_rows(p, row, end, r);
    }
    round_and_improve(p, rows, sets, (float*)next);
    for (int64_t row = first; row < end; row += W) {
        const Rows<T>& r = rows[(row - first) / W];
        for (int k = 0; k < W && row + k < end; ++k) {
            const int64_t at = row + k;
            for (int64_t j = 0; j < p.n; ++j) out.codes[at * p.n + j] = (uint8_t)T::Levels::code(r.t[j][k]);
            out.loss[at] = r.loss[k];
            for (int64_t b = 0; T::wide && b < blocks; ++b) {
                out.wide[at * blocks + b] = r.grid[b].scale[k];
                if (T::has_offset) out.minimums[at * blocks + b] = (uint8_t)r.grid[b].mn[k];
            }
            for (int64_t b = 0; !T::wide && b < blocks; ++b) {
                out.d[at * blocks + b] = (uint16_t)T::Scale::code(T::direct ? r.grid[b].scale : r.d[b])[k];
                if (T::has_offset)
                    out.dmin[at * blocks + b] = (uint16_t)to_half(T::direct ? r.grid[b].offset : r.dmin[b])[k];
            }
            if (T::direct) continue;
            for (int64_t i = 0; i < runs; ++i) {
                out.scales[at * runs + i] = (int8_t)r.grid[i].sc[k];
                if (T::has_offset) out.minimums[at * runs + i] = (uint8_t)r.grid[i].mn[k];
            }
        }
    }
}

template <class T>
constexpr FitKernel kernel(int id) {
    return {id, T::run, T::length, T::has_offset, fit<T>};
}
template <int bits, int group>
constexpr FitKernel affine() {
    return kernel<Affine<bits, group>>(affine_id(bits, group));
}
template <int bits, int block>
constexpr FitKernel symmetric() {
    return kernel<Symmetric<bits, block>>(nbits_id(bits, block, true));
}
template <int bits, int block>
constexpr FitKernel asymmetric() {
    return kernel<Asymmetric<bits, block>>(nbits_id(bits, block, false));
}
constexpr FitKernel kernels[] = {
    symmetric<4, 32>(),
    symmetric<4, 64>(),
    symmetric<4, 128>(),
    asymmetric<4, 32>(),
    asymmetric<4, 64>(),
    asymmetric<4, 128>(),
    asymmetric<2, 32>(),
    asymmetric<2, 64>(),
    asymmetric<8, 32>(),
    asymmetric<8, 64>(),
    asymmetric<8, 128>(),
    kernel<Q4_0>(2),
    kernel<Q4_1>(3),
    kernel<Q5_0>(6),
    kernel<Q5_1>(7),
    kernel<Q8_0>(8),
    kernel<Q2_K>(10),
    kernel<Q3_K>(11),
    kernel<Q4_K>(12),
    kernel<Q5_K>(13),
    kernel<Q6_K>(14),
    kernel<TQ>(34),
    kernel<TQ>(35),
    kernel<MXFP4>(39),
    kernel<NVFP4>(40),
    kernel<Q1_0>(41),
    kernel<Q2_0>(42),
    kernel<IQ4_NL>(20),
    kernel<IQ4_XS>(23),
    affine<2, 32>(),
    affine<3, 32>(),
    kernel<Q4_1>(affine_id(4, 32)),
    kernel<Q5_1>(affine_id(5, 32)),
    affine<6, 32>(),
    affine<8, 32>(),
    affine<2, 64>(),
    affine<3, 64>(),
    affine<4, 64>(),
    affine<5, 64>(),
    affine<6, 64>(),
    affine<8, 64>(),
};

}  // namespace

const FitKernel* find_codebook_fit(int ggml_id);  // fit_codebook.cpp

const FitKernel* find_fit(int id) {
    for (const FitKernel& k : kernels)
        if (k.id == id) return &k;
    return find_codebook_fit(id);
}

}  // namespace kvant::KVANT_NS
