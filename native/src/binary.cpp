// Q1_0 (a sign per weight) and Q2_0 (-1, 0, 1, 2 times the scale). Lane = block.
// Source: ggml-quants.c `quantize_row_q1_0_ref`, `quantize_row_q2_0_ref`.
#include "kvant/half.h"
#include "kvant/kernels.h"
#include "kvant/lanes.h"
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {

void encode_q1_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 128, out, 18, rows * n / 128, [](const Tile& tile) {
        vf columns[128], sum = vf{};
        vi words[4] = {};
        load_columns(tile, 0, 128, columns);
        for (int i = 0; i < 128; ++i) {
            sum += vabs(columns[i]);
            words[i / 32] |= (columns[i] >= 0.f) & (int)(1u << (i % 32));
        }
        store_half(tile, 0, to_half(sum / 128.f));
        store_words(tile, 2, words, 4);
    });
}

void encode_q2_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 64, out, 18, rows * n / 64, [](const Tile& tile) {
        vf columns[64], largest = vf{};
        vi words[4] = {};
        load_columns(tile, 0, 64, columns);
        for (int i = 0; i < 64; ++i) largest = vmax(vabs(columns[i]), largest);
        const vf id = select(largest > 0.f, 1.f / largest, vf{});
        for (int i = 0; i < 64; ++i) {
            const vf v = columns[i] * id;
            const vi fits = vabs(v) < 2147483648.f;  // what does not fit, NaN included, takes code 0
            const vi q = imin(imax(rounded_away(select(fits, v, splat(-1.f))) + 1, vi{}), splat(3));
            words[i / 16] |= q << (2 * (i % 16));
        }
        store_half(tile, 0, to_half(largest));
        store_words(tile, 2, words, 4);
    });
}

}  // namespace kvant::KVANT_NS
