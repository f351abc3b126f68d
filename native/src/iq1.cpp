// IQ1_S and IQ1_M: groups of eight weights are points of -1, 0, 1, all shifted by 1/8 up or down. Lane = block.
// Source: ggml-quants.c `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`.
//
// A run's weights are sorted, and every pair of places to split them in three is tried, with both shifts. The sums that
// a trial needs are differences of prefix sums. Then groups that are no points become their neighbours.
#include "kvant/grid_search.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

namespace {

constexpr float delta = codebooks::iq1_delta;
constexpr float outer = 1 + delta, inner = 1 - delta;  // magnitudes of levels; the middle one is delta

struct Grid : GridType<codebooks::iq1s_codes, Codebook::iq1, 3, 32, false> {};

// Where each of n weights stands among them, equals in their order.
template <int n>
KVANT_INLINE void rank(const vf* x, vi* place) {
    for (int i = 0; i < n; ++i) place[i] = splat(n - 1 - i);
    for (int i = 0; i < n; ++i)
        for (int j = i + 1; j < n; ++j) {
            const vi before = x[i] <= x[j];
            place[i] += before;
            place[j] -= before;
        }
}

// Sums over the first i of the sorted weights, i = 0 .. n; in `parts` parts, each with its own share of the run.
template <int n, int parts>
struct Prefixes {
    vf wx[parts][n + 1], w[parts][n + 1];

    void sum(const vf* x, const vf* weight, const vi* place) {
        for (int h = 0; h < parts; ++h)
            for (int i = 0; i <= n; ++i) wx[h][i] = w[h][i] = vf{};
        for (int i = 0; i < n; ++i) {
            const int h = i / (n / parts);
            const vf product = weight[i] * x[i];
            for (int k = 0; k < W; ++k) {
                wx[h][place[i][k] + 1][k] = product[k];
                w[h][place[i][k] + 1][k] = weight[i][k];
            }
        }
        for (int h = 0; h < parts; ++h)
            for (int i = 1; i <= n; ++i) {
                wx[h][i] += wx[h][i - 1];
                w[h][i] += w[h][i - 1];
            }
    }
};

// The best split: weights below place `first` become the lowest level, those from `second` on the highest.
struct Split {
    vf scale, gain = splat(-__FLT_MAX__);
    vi first{}, second{}, down{};  // down: bit h for part h whose levels are shifted down
    vi found{};

    KVANT_MEMBER void consider(vf qx, vf q2, int i, int j, int shifted) {
        const vi better = (q2 > 0.f) & (qx * qx > gain * q2);
        if (!any(better)) return;
        scale = select(better, qx / q2, scale);
        gain = select(better, scale * qx, gain);
        first = select(better, splat(i), first);
        second = select(better, splat(j), second);
        down = select(better, splat(shifted), down);
        found |= better;
    }
};

template <int n>
void search_splits(const Prefixes<n, 1>& all, Split& best) {
    const vf *sx = all.wx[0], *sw = all.w[0];
    struct {
        vf up, down, up2, down2;
    } high[n + 1];
    for (int j = 0; j <= n; ++j) {
        const vf x = sx[n] - sx[j], w = sw[n] - sw[j];
        high[j] = {x * outer, x * inner, w * outer * outer, w * inner * inner};
    }
    for (int i = 0; i <= n; ++i) {
        const vf up = sx[i] * -inner, down = sx[i] * -outer, up2 = sw[i] * inner * inner, down2 = sw[i] * outer * outer;
        for (int j = i; j <= n; ++j) {
            const vf middle = (sx[j] - sx[i]) * delta, middle2 = (sw[j] - sw[i]) * delta * delta;
            best.consider(up + middle + high[j].up, up2 + middle2 + high[j].up2, i, j, 0);
            best.consider(down - middle + high[j].down, down2 + middle2 + high[j].down2, i, j, 1);
        }
    }
}

// Each half has its own shift. ggml takes these sums from the total: total * highest - (sums below both splits).
template <int n>
void search_splits(const Prefixes<n, 2>& halves, Split& best) {
    constexpr float outer2 = outer * outer - delta * delta, inner2 = inner * inner - delta * delta;
    vf up_x[2], down_x[2], up2[2], down2[2];
    for (int h = 0; h < 2; ++h) {
        const vf x = halves.wx[h][n], w = halves.w[h][n];
        up_x[h] = x * outer;
        down_x[h] = x * inner;
        up2[h] = w * outer * outer;
        down2[h] = w * inner * inner;
    }
    for (int i = 0; i <= n; ++i) {
        vf low_up2[2], low_down2[2];
        for (int h = 0; h < 2; ++h) {
            low_up2[h] = up2[h] + halves.w[h][i] * inner2;
            low_down2[h] = down2[h] + halves.w[h][i] * outer2;
        }
        for (int j = i; j <= n; ++j) {
            vf qx[2][2], q2[2][2];  // [half][shifted down]
            for (int h = 0; h < 2; ++h) {
                const vf below = halves.wx[h][i] + halves.wx[h][j], w = halves.w[h][j];
                qx[h][0] = up_x[h] - below;
                qx[h][1] = down_x[h] - below;
                q2[h][0] = low_up2[h] - w * outer2;
                q2[h][1] = low_down2[h] - w * inner2;
            }
            best.consider(qx[0][0] + qx[1][0], q2[0][0] + q2[1][0], i, j, 0);
            best.consider(qx[0][0] + qx[1][1], q2[0][0] + q2[1][1], i, j, 2);
            best.consider(qx[0][1] + qx[1][0], q2[0][1] + q2[1][0], i, j, 1);
            best.consider(qx[0][1] + qx[1][1], q2[0][1] + q2[1][1], i, j, 3);
        }
    }
}

// Runs of n weights in `parts` parts that are shifted together, a run per lane.
template <int n, int parts>
struct Ternary {
    static constexpr int groups = n / 8, groups_per_part = groups / parts;
    vf scale;
    vi down;          // bit h: part h is shifted down
    vi code[groups];  // of points
    vi empty;

    KVANT_MEMBER vf level(int group, int i) const {
        const vi shifted = (down >> (group / groups_per_part)) & 1;
        return level_of<Grid>(code[group], i, 1.f, -1.f) + select(-shifted, splat(-delta), splat(delta));
    }

    void search(const Neighbours& book, const vf* x, const vf* w, float smallest, uint32_t live) {
        vf high = vabs(x[0]);
        for (int i = 1; i < n; ++i) high = vmax(high, vabs(x[i]));
        empty = high < smallest;
        vi place[n];
        rank<n>(x, place);
        Prefixes<n, parts> prefixes;
        prefixes.sum(x, w, place);
        Split split;
        split.scale = high;
        search_splits(prefixes, split);
        empty |= ~split.found;
        const vi turned = split.scale < 0.f;
        scale = select(turned, -split.scale, split.scale);
        down = split.down ^ (turned & ((1 << parts) - 1));
        vi digit[n];
        for (int i = 0; i < n; ++i) {
            const vi up = (place[i] >= split.first) + (place[i] >= split.second);  // 0, -1 or -2
            digit[i] = select(turned, 2 + up, -up);
        }
        if (settle(book, x, w, digit, live)) fit(x, w);
        scale = select(empty, vf{}, scale);
        down &= ~empty;
        for (vi& c : code) c = select(empty, splat((int)Grid::codes[0]), c);
    }

private:
    vi off;  // lanes with a group that was no point

    bool settle(const Neighbours& book, const vf* x, const vf* w, const vi* digit, uint32_t live) {
        off = vi{};
        for (int g = 0; g < groups; ++g) {
            vi cells{};
            for (int i = 7; i >= 0; --i) cells = cells * 3 + digit[8 * g + i];
            code[g] = vi{};
            for (uint32_t open = live & ~sign_bits(empty); open; open &= open - 1) {
                const int k = __builtin_ctz(open);
                const Cell cell = book.cells[cells[k]];
                if (!cell.count) {
                    code[g][k] = Grid::codes[cell.point];
                    continue;
                }
                off[k] = -1;
                const float lowest = down[k] >> (g / groups_per_part) & 1 ? -outer : -inner;
                code[g][k] = nearest_neighbour<Grid>(book, cell, (const float*)(x + 8 * g) + k,
                                                     (const float*)(w + 8 * g) + k, scale[k], 1.f, lowest);
            }
        }
        return any(off);
    }

    void fit(const vf* x, const vf* w) {
        vf sum_qx{}, sum_q2{};
        for (int i = 0; i < n; ++i) {
            const vf q = level(i / 8, i % 8);
            sum_qx += w[i] * q * x[i];
            sum_q2 += w[i] * q * q;
        }
        scale = select(off & (sum_qx > 0.f) & (sum_q2 > 0.f), sum_qx / sum_q2, scale);
    }
};

// W blocks on their way: weights, their importance, and the runs.
template <int n, int parts>
struct Blocks {
    static constexpr int runs = 256 / n;
    vf x[256], w[256];
    Ternary<n, parts> run[runs];
    vf d, inverse;  // of the steps
    vi none;        // lanes of zeros

    void search(const Tile& tile, const Tile* importances, const Neighbours& book, float smallest) {
        load_columns(tile, 0, 256, x);
        if (importances) load_columns(*importances, 0, 256, w);
        vf squares{}, largest{};
        for (int i = 0; i < 256; ++i) squares += x[i] * x[i];
        const vf variance = squares * (2.f / 256);
        for (int i = 0; i < 256; ++i) {
            const vf square = x[i] * x[i];
            w[i] = importances ? w[i] * vsqrt(variance + square) : square;
        }
        for (int r = 0; r < runs; ++r) {
            run[r].search(book, x + n * r, w + n * r, smallest, (1u << tile.live) - 1);
            largest = vmax(largest, run[r].scale);
        }
        none = largest == 0.f;
        d = largest / 15.f;
        inverse = 1.f / d;
    }

    vi step(int r) const {
        return ~none & imax(splat(0), imin(splat(7), nearest(0.5f * (inverse * run[r].scale - 1.f))));
    }

    // Number of each group's point; point 0 for an empty run.
    void points(const Neighbours& book, vi* point) const {
        for (int r = 0; r < runs; ++r)
            for (int g = 0; g < n / 8; ++g) take_point<Grid>(book, run[r].code[g], point[n / 8 * r + g]);
    }
};

template <class F>
KVANT_INLINE void for_each_block(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out,
                                 int bytes, F f) {
    for_each_tile(x, 256, out, bytes, rows * n / 256, [&](const Tile& tile) {
        Tile importances = tile;
        if (importance)
            for (int k = 0; k < W; ++k) importances.x[k] = importance + (tile.x[k] - x) % n;
        f(tile, importance ? &importances : nullptr);
    });
}

}  // namespace

// A half, the low bits of 32 indices, and per run four times three more bits, a step of 3 bits and the shift.
void encode_iq1_s_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    const Neighbours& book = neighbours(Codebook::iq1);
    for_each_block(x, n, rows, importance, out, 50, [&](const Tile& tile, const Tile* importances) {
        Blocks<32, 1> blocks;
        blocks.search(tile, importances, book, 1e-12f);
        vi point[32], low[32], high[8], words[12];
        blocks.points(book, point);
        for (int i = 0; i < 32; ++i) low[i] = point[i] & 255;
        for (int r = 0; r < 8; ++r) {
            const vi down = ~blocks.none & blocks.run[r].down;
            high[r] = blocks.step(r) << 12 | down << 15;
            for (int i = 0; i < 4; ++i) high[r] |= (point[4 * r + i] >> 8) << (3 * i);
        }
        pack_bytes(low, 32, words);
        for (int i = 0; i < 4; ++i) words[8 + i] = high[2 * i] | high[2 * i + 1] << 16;
        store_half(tile, 0, select(blocks.none, splat(0), to_half(blocks.d * 1.125f)));
        store_words(tile, 2, words, 12);
    });
}

// The low bits of 32 indices; for each three more bits and the shift; 16 steps of 3 bits, and 4 times 4 bits of a half.
void encode_iq1_m(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    const Neighbours& book = neighbours(Codebook::iq1);
    for_each_block(x, n, rows, importance, out, 56, [&](const Tile& tile, const Tile* importances) {
        Blocks<16, 2> blocks;
        blocks.search(tile, importances, book, 1e-7f);
        vi point[32], low[32], high[16], scales[4] = {}, words[14];
        blocks.points(book, point);
        vf sum_qx{}, sum_q2{};
        for (int r = 0; r < 16; ++r) {
            const Ternary<16, 2>& run = blocks.run[r];
            const vi step = blocks.step(r), down = ~blocks.none & run.down;
            scales[r / 4] |= step << (3 * (r % 4));
            high[r] = point[2 * r] >> 8 | (point[2 * r + 1] >> 8) << 4 | (down & 1) << 3 | (down >> 1) << 7;
            for (int i = 0; i < 16; ++i) {
                const vf q = run.level(i / 8, i % 8) * to_float(2 * step + 1), w = blocks.w[16 * r + i];
                sum_qx += w * q * blocks.x[16 * r + i];
                sum_q2 += w * q * q;
            }
        }
        const vf d = select(sum_q2 > 0.f, sum_qx / sum_q2, blocks.d);
        const vi half = select(blocks.none, splat(0), to_half(d * 1.1125f));
        for (int i = 0; i < 32; ++i) low[i] = point[i] & 255;
        for (int i = 0; i < 4; ++i) scales[i] |= ((half >> (4 * i)) & 15) << 12;
        pack_bytes(low, 32, words);
        pack_bytes(high, 16, words + 8);
        for (int i = 0; i < 2; ++i) words[12 + i] = scales[2 * i] | scales[2 * i + 1] << 16;
        store_words(tile, 0, words, 14);
    });
}

}  // namespace kvant::KVANT_NS
