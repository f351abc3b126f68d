// Q4_K and Q5_K: w = q d s - dmin m; 8 sub-blocks of 32 weights, 6-bit s and m.
#include "kvant/affine_search.h"
#include "kvant/blocks.h"
#include "kvant/k_scales.h"
#include "kvant/tiles.h"
#include "kvant/weights.h"

namespace kvant::KVANT_NS {
namespace {

// Codes of the eight sub-blocks, laid out: in each run of 64, low nibbles from the first half, high ones from the
// second. Q5_K's fifth bits come before the nibbles, two bits per run.
template <int levels, bool weighted>
KVANT_INLINE void finish(const Tile& tile, const vf* x, const Affine* found, const KScales& scales) {
    constexpr bool fifth = levels > 15;
    constexpr int first_nibble = fifth ? 12 : 4;
    vi words[44], high_bits[32];
    scales.pack(words);
    for (int j = 0; j < 8; j += 2) {
        vi a[32], b[32];
        const SubScale sa = scales.stored(j), sb = scales.stored(j + 1);
        affine_recode<32, levels, weighted>(x + 32 * j, found[j], sa.scale, sa.minimum, a);
        affine_recode<32, levels, weighted>(x + 32 * j + 32, found[j + 1], sb.scale, sb.minimum, b);
        for (int i = 0; i < 32; ++i) {
            if (fifth) {
                const vi bits = ((a[i] >> 4) | ((b[i] >> 4) << 1)) << j;
                high_bits[i] = j == 0 ? bits : high_bits[i] | bits;
            }
            a[i] = (a[i] & 15) | ((b[i] & 15) << 4);
        }
        pack_bytes(a, 32, words + first_nibble + 4 * j);
    }
    if (fifth) pack_bytes(high_bits, 32, words + 4);
    store_words(tile, 0, words, first_nibble + 32);
}

template <int levels, int block_bytes>
KVANT_INLINE void encode_plain(const float* x, int64_t blocks, uint8_t* out, float first, int steps) {
    for_each_tile(x, 256, out, block_bytes, blocks, [&](const Tile& tile) {
        vf columns[256];
        load_columns(tile, 0, 256, columns);
        Affine found[8];
        for (int j = 0; j < 8; j += 2) {
            const vf* pair = columns + 32 * j;
            vf w[64];
            for (int k = 0; k < 64; k += 32) {
                const vf average = vsqrt(sum_of_squares(pair + k, 32) / 32.f);
                for (int i = k; i < k + 32; ++i) w[i] = average + vabs(pair[i]);
            }
            search_affine_pair<32, levels, false, false>(pair, w, pair + 32, w + 32, first, 0.1f, steps, found + j);
        }
        finish<levels, false>(tile, columns, found, round_scales(found));
    });
}

template <int levels, int block_bytes>
KVANT_INLINE void encode_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_row_tile(x, n, rows, out, 256, block_bytes, [&](const Tile& tile, int64_t block) {
        vf columns[256];
        load_columns(tile, 0, 256, columns);
        const vf variance = 2.f * sum_of_squares(columns, 256) / 256.f;
        Affine found[8];
        vf scales[8], minima[8], sums[8];
        for (int j = 0; j < 8; j += 2) {
            const vf* pair = columns + 32 * j;
            const float* pair_importance = importance + 256 * block + 32 * j;
            vf w[64];
            sums[j] = weigh<32>(pair, pair_importance, variance, w);
            sums[j + 1] = weigh<32>(pair + 32, pair_importance + 32, variance, w + 32);
            search_affine_pair<32, levels, false, true>(pair, w, pair + 32, w + 32, -0.9f, 0.05f, 36, found + j);
        }
        for (int j = 0; j < 8; ++j) {
            scales[j] = found[j].scale;
            minima[j] = found[j].minimum;
        }
        vi ls[8], lm[8];
        const vf d = search_scale<8, 63>(scales, sums, ls);
        const vf dmin = search_scale<8, 63>(minima, sums, lm);
        if (levels == 31) {
            for (int j = 0; j < 8; ++j) {
                ls[j] = imin(splat(63), ls[j]);
                lm[j] = imin(splat(63), lm[j]);
            }
        }
        finish<levels, true>(tile, columns, found, pack_scales(to_half(d), to_half(dmin), ls, lm));
    });
}

}  // namespace

void encode_q4_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    encode_plain<15, sizeof(block_q4_K)>(x, rows * n / 256, out, -1.f, 20);
}

void encode_q4_k_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_weighted<15, sizeof(block_q4_K)>(x, n, rows, importance, out);
}

void encode_q5_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    encode_plain<31, sizeof(block_q5_K)>(x, rows * n / 256, out, -0.5f, 15);
}

void encode_q5_k_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_weighted<31, sizeof(block_q5_K)>(x, n, rows, importance, out);
}

}  // namespace kvant::KVANT_NS
