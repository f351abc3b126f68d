// Q6_K: w = (q - 32) d s; 16 sub-blocks of 16 weights, 8-bit s.
#include "kvant/blocks.h"
#include "kvant/half.h"
#include "kvant/symmetric_search.h"
#include "kvant/tiles.h"
#include "kvant/weights.h"

namespace kvant::KVANT_NS {
namespace {

// Codes 0 .. 63 of 256 weights, laid out: per half, 64 bytes of low nibbles; after both halves, 32 bytes each of high
// pairs.
KVANT_INLINE void pack(const vi* codes, vi* words) {
    for (int half = 0; half < 2; ++half) {
        const vi* q = codes + 128 * half;
        vi low[64], high[32];
        for (int i = 0; i < 32; ++i) {
            low[i] = (q[i] & 15) | ((q[i + 64] & 15) << 4);
            low[i + 32] = (q[i + 32] & 15) | ((q[i + 96] & 15) << 4);
            high[i] = (q[i] >> 4) | ((q[i + 32] >> 4) << 2) | ((q[i + 64] >> 4) << 4) | ((q[i + 96] >> 4) << 6);
        }
        pack_bytes(low, 64, words + 16 * half);
        pack_bytes(high, 32, words + 32 + 8 * half);
    }
}

KVANT_INLINE void finish(const Tile& tile, const vf* x, const Symmetric* found) {
    vf top = vf{}, extreme = vf{};
    for (int j = 0; j < 16; ++j) {
        const vf magnitude = vabs(found[j].scale);
        extreme = select(magnitude > top, found[j].scale, extreme);
        top = vmax(magnitude, top);
    }
    const vi live = ~(top < 1e-15f);
    const vf iscale = -128.f / extreme;
    const vi d_bits = to_half(1.f / iscale);
    const vf d = from_half(d_bits);
    vi scales[16], codes[256], words[52];
    for (int j = 0; j < 16; ++j) {
        scales[j] = imin(splat(127), nearest(iscale * found[j].scale)) & 0xff;
        const vf scale = d * to_float((scales[j] << 24) >> 24);
        for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = symmetric_recode<32>(x[i], scale);
        const vi keep = scale == 0.f;
        if (!any(keep)) continue;
        for (int i = 16 * j; i < 16 * j + 16; ++i)
            codes[i] = select(keep, symmetric_code<32>(found[j], x[i]), codes[i]);
    }
    pack(codes, words);
    pack_bytes(scales, 16, words + 48);
    for (int i = 0; i < 52; ++i) words[i] &= live;
    store_words(tile, 0, words, 52);
    store_half(tile, 208, d_bits & live);
}

}  // namespace

void encode_q6_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, sizeof(block_q6_K), rows * n / 256, [](const Tile& tile) {
        vf columns[256], w[16];
        load_columns(tile, 0, 256, columns);
        Symmetric found[16];
        for (int j = 0; j < 16; ++j) {
            for (int i = 0; i < 16; ++i) w[i] = columns[16 * j + i] * columns[16 * j + i];
            found[j] = search_symmetric<16, 32>(columns + 16 * j, w);
        }
        finish(tile, columns, found);
    });
}

void encode_q6_k_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_row_tile(x, n, rows, out, 256, sizeof(block_q6_K), [&](const Tile& tile, int64_t block) {
        vf columns[256], w[16];
        load_columns(tile, 0, 256, columns);
        Symmetric found[16];
        for (int j = 0; j < 16; ++j) {
            for (int i = 0; i < 16; ++i) w[i] = splat(importance[256 * block + 16 * j + i]);
            found[j] = search_symmetric<16, 32>(columns + 16 * j, w);
        }
        finish(tile, columns, found);
    });
}

}  // namespace kvant::KVANT_NS
