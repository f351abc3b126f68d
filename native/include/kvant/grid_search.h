// Encoders of the types whose groups of weights are points of a codebook with signs of their own: IQ2_XXS to IQ3_S.
// Source: ggml-quants.c `quantize_row_iq2_xxs_impl` and its siblings; docs/explanation/kernels.md tells more.
//
// Blocks lie in lanes, but where one of a block's runs tries its scales: there the trials do. Weights that are rounded
// for one trial after the other change their levels seldom, so several lanes look for a neighbour of the same cell,
// and one pass over its list serves them all. An entry costs one addition per weight, for the errors of each weight at
// each level are tabulated before.
#pragma once
#include "kvant/affine_search.h"
#include "kvant/codebooks.h"
#include "kvant/half.h"
#include "kvant/lanes.h"
#include "kvant/neighbours.h"
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {
namespace {

enum class Again { off_grid, all_if_any, always };  // which groups are rounded again to the scale that was found

template <const auto& codes_, Codebook book_, int levels_, int run_, bool even_>
struct GridType {
    static constexpr auto& codes = codes_;
    static constexpr Codebook book = book_;
    static constexpr int points = sizeof codes / sizeof codes[0];
    static constexpr int levels = levels_;  // levels 1, 3, 5 ..
    static constexpr int bits = levels == 8 ? 3 : 2, group = levels == 8 ? 4 : 8, top = 2 * levels - 1;
    static constexpr int run = run_, runs = 256 / run, groups = run / group;  // weights that share a scale
    static constexpr bool even = even_;  // of each eight signs an even number is negative, and seven are stored
    static constexpr int joined = 1;     // weights at the start of a group whose errors are tabulated together
};

constexpr int power(int base, int exponent) { return exponent ? base * power(base, exponent - 1) : 1; }

// Errors of a group's weights at each level, a lane per trial, and where a point finds its own.
template <class T>
struct Errors {
    static constexpr int terms = T::group - T::joined + 1, combined = power(T::levels, T::joined);
    struct Places {
        uint16_t at[terms <= 4 ? 4 : 8];  // in bytes
    };
    struct Table {
        Places of[T::points];
    };
    static constexpr Table places() {
        Table table{};
        for (int p = 0; p < T::points; ++p) {
            int first = 0;
            for (int i = T::joined - 1; i >= 0; --i) first = first * T::levels + digit(T::codes[p], i);
            table.of[p].at[0] = (uint16_t)(first * sizeof(vf));
            for (int i = T::joined; i < T::group; ++i)
                table.of[p].at[i - T::joined + 1] =
                    (uint16_t)((combined + (i - T::joined) * T::levels + digit(T::codes[p], i)) * sizeof(vf));
        }
        return table;
    }
    static constexpr int digit(int code, int i) { return code >> (T::bits * i) & ((1 << T::bits) - 1); }

    vf error[combined + (T::group - T::joined) * T::levels];

    // Weights and the roots of their importances lie `stride` apart.
    KVANT_MEMBER void fill(const float* x, const float* root, int stride, vf scale) {
        vf level[T::levels];
        for (int l = 0; l < T::levels; ++l) level[l] = scale * (float)(2 * l + 1);
        vf* end = error;
        int count = 1;
        for (int i = 0; i < T::joined; ++i) {
            vf own[T::levels];
            for (int l = 0; l < T::levels; ++l) own[l] = at(level[l], x[i * stride], root[i * stride]);
            for (int l = T::levels - 1; l >= 0; --l)
                for (int k = 0; k < count; ++k) error[l * count + k] = i ? error[k] + own[l] : own[l];
            count *= T::levels;
        }
        end += combined;
        for (int i = T::joined; i < T::group; ++i)
            for (int l = 0; l < T::levels; ++l) *end++ = at(level[l], x[i * stride], root[i * stride]);
    }
    static KVANT_MEMBER vf at(vf value, float x, float root) {
        const vf off = value - x;
        return root * off * off;
    }

    KVANT_MEMBER vf of(const Places& place) const {
        const char* all = (const char*)error;
        vf sum = *(const vf*)(all + place.at[0]);
        for (int i = 1; i < terms; ++i) sum += *(const vf*)(all + place.at[i]);
        return sum;
    }
};
template <class T> constexpr typename Errors<T>::Table places = Errors<T>::places();

#if defined(__AVX512F__)
KVANT_INLINE vf entry(vf table, vi index) { return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)table); }
#elif defined(__AVX2__)
KVANT_INLINE vf entry(vf table, vi index) { return (vf)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index); }
#endif

// `lowest` + `step` * the level that a code has for weight i; tables repeat, so that bits above the level's are idle.
template <class T>
KVANT_INLINE vf level_table(float step = 2.f, float lowest = 1.f) {
    vf table;
    for (int k = 0; k < W; ++k) table[k] = lowest + step * (float)(k & ((1 << T::bits) - 1));
    return table;
}
template <class T>
KVANT_INLINE vf level_of(vi code, int i, float step = 2.f, float lowest = 1.f) {
#if defined(__AVX2__)
    return entry(level_table<T>(step, lowest), code >> (T::bits * i));
#else
    return lowest + step * to_float((code >> (T::bits * i)) & ((1 << T::bits) - 1));
#endif
}

// The cell of a group: its weights times `factor`, each rounded to the nearest level. x(i): weight i.
template <class T, class X>
KVANT_INLINE vi cell_of(vf factor, X x) {
    constexpr uint32_t zero = 0x00400000;  // of `nearest`
    vu cell{};
    uint32_t bias = 0;
    for (int i = T::group - 1; i >= 0; --i) {
        const vi rounded = as_int(0.5f * (factor * x(i) - 1.f) + magic) & 0x007fffff;
        const vi level = imin(imax(rounded, splat((int)zero)), splat((int)zero + T::levels - 1));
        cell = (T::levels == 8 ? cell << 3 : (cell << 1) + cell) + (vu)level;
        bias = bias * T::levels + zero;
    }
    return (vi)(cell - bias);
}

// W runs, lane = block.
template <class T>
struct Run {
    vf x[T::run], w[T::run], wx[T::run], root[T::run];  // weights without their signs, their importance, its root
    vi signs[T::run / 8];
    vf scale;
    vi code[T::groups];  // of points, and `off_grid` where the levels were none

    const float* lane(const vf* columns, int group, int k) const {
        return (const float*)(columns + group * T::group) + k;
    }
};
constexpr int off_grid = INT32_MIN;

// The code of the neighbour with the least error for one group. Lanes are neighbours.
template <class T>
static inline int32_t nearest_neighbour(const Neighbours& book, const Cell& cell, const float* x, const float* root,
                                        float scale, float step = 2.f, float lowest = 1.f) {
    typedef uint16_t codes __attribute__((vector_size(W * 2)));
    vi lane;
    for (int k = 0; k < W; ++k) lane[k] = k;
#if defined(__AVX2__)
    vf error[T::group];
    const vf value = scale * level_table<T>(step, lowest);
    for (int i = 0; i < T::group; ++i) {
        const vf off = value - x[i * W];
        error[i] = root[i * W] * off * off;
    }
#endif
    vf least = splat(__FLT_MAX__);
    vi found = splat((int)book.codes[cell.first]), place{};
    for (int j = 0; j < cell.count; j += W) {
        codes some;
        memcpy(&some, book.codes + cell.first + j, sizeof some);
        const vi code = __builtin_convertvector(some, vi);
        vf sum{};
        for (int i = 0; i < T::group; ++i) {
#if defined(__AVX2__)
            sum += entry(error[i], code >> (T::bits * i));
#else
            const vf off = scale * level_of<T>(code, i, step, lowest) - x[i * W];
            sum += root[i * W] * off * off;
#endif
        }
        const vi better = (sum < least) & (lane + j < cell.count);
        least = select(better, sum, least);
        found = select(better, code, found);
        place = select(better, lane + j, place);
    }
    int best = 0;
    for (int k = 1; k < W; ++k)
        if (least[k] < least[best] || (least[k] == least[best] && place[k] < place[best])) best = k;
    return found[best];
}

// Scales that one run tries. Lanes are trials.
template <class T>
struct Trials {
    static constexpr int vectors = (T::trials + W - 1) / W;
    float qx[vectors * W], q2[vectors * W];
    int32_t code[T::groups][vectors * W];

    struct Widths {
        float at[vectors * W];
    };
    static constexpr Widths widths() {
        Widths all{};
        for (int t = 0; t < vectors * W; ++t)
            all.at[t] = (float)T::top + (float)(T::first + (t < T::trials ? t : 0)) * T::step;
        return all;
    }

    // The points of `group` for the scales of one vector of trials.
    KVANT_MEMBER vi choose(const Neighbours& book, const float* x, const float* root, vf factor, vf scale) {
        const vi cells = cell_of<T>(factor, [&](int i) { return x[i * W]; });
        int32_t cell_at[W];
        memcpy(cell_at, &cells, sizeof cells);
        Errors<T> errors;
        bool filled = false;
        vi chosen{};
        uint32_t open = (1u << W) - 1;
        while (open) {
            const int number = cell_at[__builtin_ctz(open)];
            const Cell cell = book.cells[number];
            const vi here = cells == number;
            open &= ~sign_bits(here);
            if (!cell.count) {
                chosen = select(here, splat((int)T::codes[cell.point]), chosen);
                continue;
            }
            if (!filled) errors.fill(x, root, W, scale);
            filled = true;
            vf least = splat(__FLT_MAX__);
            vi found = splat((int)book.codes[cell.first]);
            for (uint32_t j = cell.first; j < cell.first + cell.count; ++j) {
                const vf error = errors.of(places<T>.of[book.points[j]]);
                found = select(error < least, splat((int)book.codes[j]), found);
                least = vmin(error, least);
            }
            chosen = select(here, found | off_grid, chosen);
        }
        return chosen;
    }

    // Find the scale of run `k` and its codes.
    void search(const Neighbours& book, Run<T>& run, int k, float reach) {
        static constexpr Widths width = widths();
        for (int v = 0; v < vectors; ++v) {
            const vf factor = load(width.at + v * W) / reach, scale = 1.f / factor;
            vf sum_qx{}, sum_q2{};
            for (int g = 0; g < T::groups; ++g) {
                const vi chosen = choose(book, run.lane(run.x, g, k), run.lane(run.root, g, k), factor, scale);
                memcpy(code[g] + v * W, &chosen, sizeof chosen);
                const float *w = run.lane(run.w, g, k), *wx = run.lane(run.wx, g, k);
                for (int i = 0; i < T::group; ++i) {
                    const vf q = level_of<T>(chosen, i);
                    sum_qx += wx[i * W] * q;
                    sum_q2 += w[i * W] * q * q;
                }
            }
            store(qx + v * W, sum_qx);
            store(q2 + v * W, sum_q2);
        }
        float gain = 0.f, found = run.scale[k];
        int best = -1;
        for (int t = 0; t < T::trials; ++t) {
            if (!(q2[t] > 0.f && qx[t] * qx[t] > gain * q2[t])) continue;
            found = qx[t] / q2[t];
            gain = found * qx[t];
            best = t;
        }
        run.scale[k] = found;
        for (int g = 0; g < T::groups; ++g)
            run.code[g][k] = best >= 0 ? code[g][best] : T::again == Again::all_if_any ? off_grid : 0;
    }
};

// Take the signs from W runs of weights, into bits, and make those of each eight even by turning the weight that
// matters least.
template <class T>
KVANT_INLINE void take_signs(const vf* columns, Run<T>& run) {
    for (int first = 0; first < T::run; first += 8) {
        vi signs{}, odd{}, least_at{};
        vf least{};
        for (int i = 0; i < 8; ++i) {
            const vf x = columns[first + i];
            const vi negative = x < 0.f;
            run.x[first + i] = select(negative, -x, x);
            signs |= negative & (1 << i);
            odd ^= negative;
            if (!T::even) continue;
            const vf cost = run.w[first + i] * x * x;
            const vi less = i ? cost < least : splat(-1);
            least = select(less, cost, least);
            least_at = select(less, splat(i), least_at);
        }
        if (T::even) {
            for (int i = 0; i < 8; ++i) {
                const vi turned = odd & (least_at == i);
                run.x[first + i] = select(turned, -run.x[first + i], run.x[first + i]);
                signs ^= turned & (1 << i);
            }
            signs &= 127;
        }
        run.signs[first / 8] = signs;
    }
}

// Round groups again to the scale that was found, and fit it to their points.
template <class T>
static inline void round_again(const Neighbours& book, Run<T>& run, uint32_t live) {
    vi off{};
    for (int g = 0; g < T::groups; ++g) off |= run.code[g] & off_grid;
    const vi some = (run.scale > 0.f) & (T::again == Again::always ? splat(-1) : off < 0);
    const uint32_t lanes = sign_bits(some) & live;
    if (!lanes) return;
    const vf factor = 1.f / run.scale;
    vf sum_qx{}, sum_q2{};
    for (int g = 0; g < T::groups; ++g) {
        const vf* x = run.x + g * T::group;
        const vi cells = cell_of<T>(factor, [&](int i) { return x[i]; });
        uint32_t open = T::again == Again::off_grid ? lanes & sign_bits(run.code[g]) : lanes;
        for (; open; open &= open - 1) {
            const int k = __builtin_ctz(open);
            const Cell cell = book.cells[cells[k]];
            run.code[g][k] = !cell.count ? T::codes[cell.point]
                                         : nearest_neighbour<T>(book, cell, run.lane(run.x, g, k),
                                                                run.lane(run.root, g, k), run.scale[k]);
        }
        for (int i = 0; i < T::group; ++i) {
            const int at = g * T::group + i;
            const vf q = level_of<T>(run.code[g], i);
            sum_qx += run.wx[at] * q;
            sum_q2 += run.w[at] * q * q;
        }
    }
    run.scale = select(some & (sum_q2 > 0.f), sum_qx / sum_q2, run.scale);
}

// Blocks as numbers, lane = block, for each type to lay out.
template <class T>
struct Found {
    vi d;                           // a half
    vi step[T::runs];               // scales: d * (2 step + 1)
    vi point[T::runs * T::groups];  // numbers of points
    vi signs[32];
    vi empty[T::runs];  // runs without a weight that counts
};

// The number of each lane's point, from its code.
template <class T>
KVANT_INLINE void take_point(const Neighbours& book, vi code, vi& point) {
    vi cell{};
    for (int i = T::group - 1; i >= 0; --i) cell = cell * T::levels + ((code >> (T::bits * i)) & ((1 << T::bits) - 1));
    for (int k = 0; k < W; ++k) point[k] = book.cells[cell[k]].point;
}

// W blocks. `importances`: where each lane finds its own, or null.
template <class T>
static inline void search_blocks(const Tile& tile, const Tile* importances, const Neighbours& book, Found<T>& found) {
    vf columns[256], scales[T::runs], largest = vf{};
    load_columns(tile, 0, 256, columns);
    vf squares = vf{};
    for (int i = 0; i < 256; ++i) squares += columns[i] * columns[i];
    const vf variance = squares * T::variance;
    for (int r = 0; r < T::runs; ++r) {
        Run<T> run;
        const vf* x = columns + r * T::run;
        if (importances) load_columns(*importances, r * T::run, T::run, run.w);
        for (int i = 0; i < T::run; ++i) {
            const vf square = x[i] * x[i];
            run.w[i] = importances ? run.w[i] * vsqrt(variance + square) : T::unweighted(variance, square);
            run.root[i] = vsqrt(run.w[i]);
        }
        take_signs(x, run);
        vf high = run.x[0];
        for (int i = 1; i < T::run; ++i) high = vmax(high, run.x[i]);
        for (int i = 0; i < T::run; ++i) run.wx[i] = run.w[i] * run.x[i];
        vf reach = high;
        vi empty = T::smallest > 0 ? high < T::smallest : high == 0.f;
        T::start(run, reach, empty);
        for (int g = 0; g < T::groups; ++g) run.code[g] = vi{};
        const uint32_t live = ~sign_bits(empty) & ((1u << tile.live) - 1);
        for (uint32_t open = live; open; open &= open - 1) {
            const int k = __builtin_ctz(open);
            Trials<T> trials;
            trials.search(book, run, k, reach[k]);
        }
        round_again(book, run, live);
        const vi turned = run.scale < 0.f;
        run.scale = select(empty, vf{}, select(turned, -run.scale, run.scale));
        for (int i = 0; i < T::run / 8; ++i)
            found.signs[r * (T::run / 8) + i] = ~empty & (run.signs[i] ^ (turned & (T::even ? 127 : 255)));
        for (int g = 0; g < T::groups; ++g) {
            vi& point = found.point[r * T::groups + g];
            take_point<T>(book, run.code[g], point);
            point &= ~empty;
        }
        found.empty[r] = empty;
        scales[r] = run.scale;
        largest = vmax(largest, run.scale);
    }
    const vi none = largest == 0.f;
    const vf d = largest / 31.f, inverse = 1.f / d;
    found.d = select(none, splat(0), to_half(d * T::correction));
    for (int r = 0; r < T::runs; ++r) {
        const vi step = imax(splat(0), imin(splat(15), nearest(0.5f * (inverse * scales[r] - 1.f))));
        found.step[r] = ~none & step;
    }
    if (!T::clears) return;
    for (vi& point : found.point) point &= ~none;
    for (vi& signs : found.signs) signs &= ~none;
}

// Encode blocks of `bytes` bytes, laid out by `lay_out(found, words)` from byte 2 on.
template <class T, int bytes, class F>
KVANT_INLINE void encode_grid(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out,
                              F lay_out) {
    const Neighbours& book = neighbours(T::book);
    for_each_tile(x, 256, out, bytes, rows * n / 256, [&](const Tile& tile) {
        Tile importances = tile;
        if (importance)
            for (int k = 0; k < W; ++k) importances.x[k] = importance + (tile.x[k] - x) % n;
        Found<T> found;
        search_blocks(tile, importance ? &importances : nullptr, book, found);
        vi words[(bytes - 2) / 4];
        lay_out(found, words);
        store_half(tile, 0, found.d);
        store_words(tile, 2, words, (bytes - 2) / 4);
    });
}

// The usual start of a search: a scale that puts the largest weight on the highest level.
template <class T>
KVANT_INLINE void start_at_highest(Run<T>& run, vf reach) {
    run.scale = reach / (float)T::top;
}

}  // namespace
}  // namespace kvant::KVANT_NS
