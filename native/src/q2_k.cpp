// Q2_K: w = q d s - dmin m; 16 sub-blocks of 16 weights, 4-bit s and m.
#include "kvant/affine_search.h"
#include "kvant/blocks.h"
#include "kvant/half.h"
#include "kvant/pack2.h"
#include "kvant/tiles.h"
#include "kvant/weights.h"

namespace kvant::KVANT_NS {
namespace {

template <bool weighted>
KVANT_INLINE void finish(const Tile& tile, const vf* x, const Affine* found, const vi* scales, vi d, vi dmin) {
    vi words[21], codes[256];
    for (int j = 0; j < 16; ++j) {
        const vf scale = from_half(d) * to_float(scales[j] & 15);
        const vf minimum = from_half(dmin) * to_float(scales[j] >> 4);
        affine_recode<16, 3, weighted>(x + 16 * j, found[j], scale, minimum, codes + 16 * j);
    }
    pack_bytes(scales, 16, words);
    pack_pairs(codes, words + 4);
    words[20] = d | (dmin << 16);
    store_words(tile, 0, words, 21);
}

// Round sixteen scales (or minima) relative to the largest; returns that over 15, or 0, as half bits.
template <class Get>
KVANT_INLINE vi round_relative(Get get, vi* codes) {
    vf top = vf{};
    for (int j = 0; j < 16; ++j) top = vmax(get(j), top);
    const vi some = top > 0.f;
    const vf iscale = 15.f / top;
    for (int j = 0; j < 16; ++j) codes[j] = some & nearest(iscale * get(j));
    return to_half(select(some, top / 15.f, vf{}));
}

}  // namespace

void encode_q2_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, sizeof(block_q2_K), rows * n / 256, [](const Tile& tile) {
        vf columns[256], w[32];
        load_columns(tile, 0, 256, columns);
        Affine found[16];
        for (int j = 0; j < 16; j += 2) {
            const vf* pair = columns + 16 * j;
            for (int i = 0; i < 32; ++i) w[i] = vabs(pair[i]);
            search_affine_pair<16, 3, true, false>(pair, w, pair + 16, w + 16, -0.5f, 0.1f, 15, found + j);
        }
        vi scales[16], minima[16];
        const vi d = round_relative([&](int j) { return found[j].scale; }, scales);
        const vi dmin = round_relative([&](int j) { return found[j].minimum; }, minima);
        for (int j = 0; j < 16; ++j) scales[j] = (scales[j] | (minima[j] << 4)) & 0xff;
        finish<false>(tile, columns, found, scales, d, dmin);
    });
}

void encode_q2_k_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_row_tile(x, n, rows, out, 256, sizeof(block_q2_K), [&](const Tile& tile, int64_t block) {
        vf columns[256], w[32];
        load_columns(tile, 0, 256, columns);
        const vf variance = sum_of_squares(columns, 256) / 256.f;
        Affine found[16];
        vf scales[16], minima[16], sums[16];
        for (int j = 0; j < 16; j += 2) {
            const vf* pair = columns + 16 * j;
            const float* pair_importance = importance + 256 * block + 16 * j;
            sums[j] = weigh<16>(pair, pair_importance, variance, w);
            sums[j + 1] = weigh<16>(pair + 16, pair_importance + 16, variance, w + 16);
            search_affine_pair<16, 3, false, true>(pair, w, pair + 16, w + 16, -0.9f, 0.05f, 36, found + j);
        }
        for (int j = 0; j < 16; ++j) {
            scales[j] = found[j].scale;
            minima[j] = found[j].minimum;
        }
        vi ls[16], lm[16];
        const vf d = search_scale<16, 15>(scales, sums, ls);
        const vf dmin = search_scale<16, 15>(minima, sums, lm);
        for (int j = 0; j < 16; ++j) ls[j] = (ls[j] | (lm[j] << 4)) & 0xff;
        finish<true>(tile, columns, found, ls, to_half(d), to_half(dmin));
    });
}

}  // namespace kvant::KVANT_NS
