// Q4_0, Q4_1, Q5_0, Q5_1 with importance: 32 weights to a block, one searched scale (and minimum).
#include "kvant/affine_search.h"
#include "kvant/blocks.h"
#include "kvant/half.h"
#include "kvant/symmetric_search.h"
#include "kvant/tiles.h"
#include "kvant/weights.h"

namespace kvant::KVANT_NS {
namespace {

// A block of each of W rows: where it goes, its columns and their weights in the error.
struct Block {
    Tile tile;
    vf x[32], w[32];
};

// Lane = row: the variance that the weights need is the whole row's. Calls f(pair of blocks); a last odd block comes
// twice.
template <class F>
KVANT_INLINE void for_each_pair(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out,
                                int block_bytes, F f) {
    for_each_tile(x, n, out, n / 32 * block_bytes, rows, [&](const Tile& row) {
        vf columns[32], sum = vf{};
        for (int64_t i = 0; i < n; i += 32) {
            load_columns(row, i, 32, columns);
            sum = sum_of_squares(columns, 32, sum);
        }
        const vf variance = sum / (float)n;
        Block pair[2];
        for (int64_t b = 0; b < n / 32; b += 2) {
            for (int64_t k = 0; k < 2; ++k) {
                const int64_t at = b + k < n / 32 ? b + k : b;
                load_columns(row, 32 * at, 32, pair[k].x);
                weigh<32>(pair[k].x, importance + 32 * at, variance, pair[k].w);
                pair[k].tile = row.at(32 * at, block_bytes * at);
            }
            f(pair);
        }
    });
}

// Codes of a block as words: fifth bits if there are any, then sixteen bytes of nibbles. Returns the number of words.
template <bool fifth>
KVANT_INLINE int pack(const vi* codes, vi* words) {
    vi bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = (codes[i] & 15) | ((codes[i + 16] & 15) << 4);
    if (!fifth) {
        pack_bytes(bytes, 16, words);
        return 4;
    }
    vi high = splat(0);
    for (int i = 0; i < 32; ++i) high |= ((codes[i] >> 4) & 1) << i;
    words[0] = high;
    pack_bytes(bytes, 16, words + 1);
    return 5;
}

template <int levels, int block_bytes>
KVANT_INLINE void encode_symmetric(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_pair(x, n, rows, importance, out, block_bytes, [](const Block* pair) {
        for (int k = 0; k < 2; ++k) {
            const Block& block = pair[k];
            const Symmetric found = search_symmetric<32, levels>(block.x, block.w);
            vi codes[32], words[5];
            for (int i = 0; i < 32; ++i) codes[i] = symmetric_code<levels>(found, block.x[i]);
            store_half(block.tile, 0, to_half(found.scale));
            store_words(block.tile, 2, words, pack<(levels > 8)>(codes, words));
        }
    });
}

template <int levels, int block_bytes>
KVANT_INLINE void encode_affine(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    for_each_pair(x, n, rows, importance, out, block_bytes, [](const Block* pair) {
        Affine found[2];
        search_affine_pair<32, levels, false, true>(pair[0].x, pair[0].w, pair[1].x, pair[1].w, -0.9f, 0.05f, 36,
                                                    found);
        for (int k = 0; k < 2; ++k) {
            vi codes[32], words[6];
            for (int i = 0; i < 32; ++i) codes[i] = affine_code<levels, true>(found[k], pair[k].x[i]);
            words[0] = to_half(found[k].scale) | (to_half(-found[k].minimum) << 16);
            store_words(pair[k].tile, 0, words, 1 + pack<(levels > 15)>(codes, words + 1));
        }
    });
}

}  // namespace

void encode_q4_0_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_symmetric<8, sizeof(block_q4_0)>(x, n, rows, importance, out);
}

void encode_q5_0_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_symmetric<16, sizeof(block_q5_0)>(x, n, rows, importance, out);
}

void encode_q4_1_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_affine<15, sizeof(block_q4_1)>(x, n, rows, importance, out);
}

void encode_q5_1_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_affine<31, sizeof(block_q5_1)>(x, n, rows, importance, out);
}

}  // namespace kvant::KVANT_NS
