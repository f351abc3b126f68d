// Q3_K: w = (q - 4) d (s - 32); 16 sub-blocks of 16 weights, 6-bit s.
#include "kvant/blocks.h"
#include "kvant/half.h"
#include "kvant/pack2.h"
#include "kvant/symmetric_search.h"
#include "kvant/tiles.h"
#include "kvant/weights.h"

namespace kvant::KVANT_NS {
namespace {

// The scale of W sub-blocks of 16, for `groups` independent sub-blocks at once, so that their long chains of dependent
// operations overlap. Codes -4 .. 3 start at the plain range and move one at a time while the squared error weighted
// with x^2 falls, in up to five sweeps (ggml: make_q3_quants). `codes` get q + 4, or 0 in empty lanes.
template <int groups>
static inline void descend(const vf* x, vf* scales, vi* codes) {
    constexpr int n = 16, levels = 4;
    vf sum_lx[groups], sum_l2[groups];
    vf l[groups * n], w[groups * n];
    vi empty[groups];
    for (int g = 0; g < groups; ++g) {
        vf extreme;
        find_extreme<n>(x + n * g, extreme, empty[g]);
        const vf iscale = (float)-levels / extreme;
        sum_lx[g] = sum_l2[g] = vf{};
        for (int i = n * g; i < n * g + n; ++i) {
            l[i] = symmetric_round<false, levels>(iscale * x[i]);
            w[i] = x[i] * x[i];
            sum_lx[g] += w[i] * x[i] * l[i];
            sum_l2[g] += w[i] * l[i] * l[i];
        }
    }
    for (int sweep = 0; sweep < 5; ++sweep) {
        vi changed = splat(0);
        for (int i = 0; i < n; ++i) {
            for (int g = 0; g < groups; ++g) {
                const int at = n * g + i;
                const vf wx = w[at] * x[at];
                vf lx = sum_lx[g] - wx * l[at];
                vf l2 = sum_l2[g] - w[at] * l[at] * l[at];
                const vf fresh = symmetric_round<false, levels>(x[at] * l2 / lx);
                const vi possible = (lx > 0.f) & (fresh != l[at]);
                lx += wx * fresh;
                l2 += w[at] * fresh * fresh;
                const vi better = possible & (l2 > 0.f) & (lx * lx * sum_l2[g] > sum_lx[g] * sum_lx[g] * l2);
                l[at] = select(better, fresh, l[at]);
                sum_lx[g] = select(better, lx, sum_lx[g]);
                sum_l2[g] = select(better, l2, sum_l2[g]);
                changed |= better;
            }
        }
        if (!any(changed)) break;
    }
    for (int g = 0; g < groups; ++g) {
        scales[g] = select(~empty[g] & (sum_l2[g] > 0.f), sum_lx[g] / sum_l2[g], vf{});
        for (int i = n * g; i < n * g + n; ++i) codes[i] = select(empty[g], splat(0), to_int(l[i]) + levels);
    }
}

// Recode for the stored scales and lay out: 32 bytes of third bits, 64 of low pairs, 12 of scales, d.
// `codes` hold the search's codes, which sub-blocks whose stored scale is 0 keep. ls: 0 .. 63.
KVANT_INLINE void finish(const Tile& tile, const vf* x, vi* codes, const vi* ls, vi d_bits) {
    const vf d = from_half(d_bits);
    for (int j = 0; j < 16; ++j) {
        const vf scale = d * to_float(ls[j] - 32);
        const vi keep = scale == 0.f;
        for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = select(keep, codes[i], symmetric_recode<4>(x[i], scale));
    }
    vi words[27], third[32], packed[12];
    for (int i = 0; i < 32; ++i) {
        third[i] = splat(0);
        for (int k = 0; k < 8; ++k) third[i] |= (codes[32 * k + i] >> 2) << k;
    }
    for (int j = 0; j < 8; ++j) packed[j] = (ls[j] & 15) | ((ls[j + 8] & 15) << 4);
    for (int j = 0; j < 4; ++j)
        packed[j + 8] = (ls[j] >> 4) | ((ls[j + 4] >> 4) << 2) | ((ls[j + 8] >> 4) << 4) | ((ls[j + 12] >> 4) << 6);
    pack_bytes(third, 32, words);
    pack_pairs(codes, words + 8);
    pack_bytes(packed, 12, words + 24);
    store_words(tile, 0, words, 27);
    store_half(tile, 108, d_bits);
}

}  // namespace

void encode_q3_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, sizeof(block_q3_K), rows * n / 256, [](const Tile& tile) {
        constexpr int groups = 2;
        vf columns[256], scales[16];
        vi codes[256], ls[16];
        load_columns(tile, 0, 256, columns);
        for (int j = 0; j < 16; j += groups) descend<groups>(columns + 16 * j, scales + j, codes + 16 * j);
        vf top = vf{}, extreme = vf{};
        for (int j = 0; j < 16; ++j) {
            const vf magnitude = vabs(scales[j]);
            extreme = select(magnitude > top, scales[j], extreme);
            top = vmax(magnitude, top);
        }
        const vi some = extreme != 0.f;
        const vf iscale = -32.f / extreme;
        for (int j = 0; j < 16; ++j) {
            const vi wrapped =
                (nearest(iscale * scales[j]) << 24) >> 24;  // the reference keeps 8 bits before it clamps
            ls[j] = some & (imax(splat(-32), imin(splat(31), wrapped)) + 32);
        }
        finish(tile, columns, codes, ls, to_half(select(some, 1.f / iscale, vf{})));
    });
}

void encode_q3_k_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_row_tile(x, n, rows, out, 256, sizeof(block_q3_K), [&](const Tile& tile, int64_t block) {
        vf columns[256], w[16], scales[16], sums[16];
        vi codes[256], ls[16];
        load_columns(tile, 0, 256, columns);
        const vf variance = 2.f * sum_of_squares(columns, 256) / 256.f;
        for (int j = 0; j < 16; ++j) {
            sums[j] = weigh<16>(columns + 16 * j, importance + 256 * block + 16 * j, variance, w);
            const Symmetric found = search_symmetric<16, 4>(columns + 16 * j, w);
            scales[j] = found.scale;
            for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = symmetric_code<4>(found, columns[i]);
        }
        const Symmetric found = search_symmetric<16, 32>(scales, sums);
        for (int j = 0; j < 16; ++j) ls[j] = symmetric_code<32>(found, scales[j]);
        finish(tile, columns, codes, ls, to_half(found.scale));
    });
}

}  // namespace kvant::KVANT_NS
