// Q4_K: w = q d s - dmin m; 8 sub-blocks of 32 weights, 6-bit s and m.
#include "kvant/blocks.h"
#include "kvant/half.h"
#include "kvant/k_scales.h"
#include "kvant/search.h"
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {

namespace {

// Codes of sub-block j from the stored scales; a sub-block whose scale is 0 keeps the search's codes.
KVANT_INLINE void recode(const vf* x, const Affine& found, const SubScale& stored, vi* codes) {
    for (int i = 0; i < 32; ++i) {
        codes[i] = imax(splat(0), imin(splat(15), nearest((x[i] + stored.minimum) / stored.scale)));
    }
    const vi keep = stored.scale == 0.f;
    if (any(keep)) {
        for (int i = 0; i < 32; ++i) codes[i] = select(keep, affine_code<15>(found, x[i]), codes[i]);
    }
}

KVANT_INLINE void finish(const Tile& tile, const vf* x, const Affine* found, const KScales& scales) {
    vi words[36];
    scales.pack(words);
    for (int j = 0; j < 8; j += 2) {
        vi low[32], high[32];
        recode(x + 32 * j, found[j], scales.stored(j), low);
        recode(x + 32 * j + 32, found[j + 1], scales.stored(j + 1), high);
        for (int i = 0; i < 32; ++i) low[i] |= high[i] << 4;
        for (int i = 0; i < 8; ++i) words[4 + 4 * j + i] = pack4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
    }
    store_words(tile, 0, words, 36);
}

}  // namespace

void encode_q4_k(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, sizeof(block_q4_K), rows * n / 256, [](const Tile& tile) {
        vf columns[256];
        load_columns(tile, 0, 256, columns);
        Affine found[8];
        for (int j = 0; j < 8; ++j) {
            const vf* xj = columns + 32 * j;
            vf weights[32], sum = vf{};
            for (int i = 0; i < 32; ++i) sum += xj[i] * xj[i];
            const vf average = vsqrt(sum / 32.f);
            for (int i = 0; i < 32; ++i) weights[i] = average + vabs(xj[i]);
            found[j] = search_affine<32, 15, false>(xj, weights, -1.f, 0.1f, 20);
        }
        finish(tile, columns, found, round_scales(found));
    });
}

}  // namespace kvant::KVANT_NS
