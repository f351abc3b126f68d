// TQ1_0 and TQ2_0: 256 weights of -d, 0 or d with d the largest magnitude. Lane = block.
// Source: ggml-quants.c `quantize_row_tq1_0_ref`, `quantize_row_tq2_0_ref`.
#include "kvant/half.h"
#include "kvant/kernels.h"
#include "kvant/lanes.h"
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {

namespace {

// Scale as half bits, and codes 0, 1, 2 of the columns. NaN and infinity become code 1, as lroundf's lowest long does.
KVANT_INLINE vi trits(const vf* x, vi* codes) {
    vf largest = vf{};
    for (int i = 0; i < 256; ++i) largest = vmax(largest, vabs(x[i]));
    const vf id = select(largest != 0.f, 1.f / largest, vf{});
    for (int i = 0; i < 256; ++i) {
        const vf v = x[i] * id;
        const vi fits = vabs(v) < 2147483648.f;
        codes[i] = rounded_away(select(fits, v, vf{})) + 1;
    }
    return to_half(largest);
}

// A byte of `digits` base-3 digits, the first most significant: ceil(number * 256 / 243), so that decoders need no
// division.
template <int digits>
KVANT_INLINE vi packed(const vi* codes, int stride) {
    vi number = {};
    for (int i = 0; i < 5; ++i) number = number * 3 + (i < digits ? codes[i * stride] : vi{});
    number &= 255;
    // (256 number + 242) / 243 = number + (13 number + 242) / 243; the quotient of what is below 4096 by a
    // multiplication.
    return (number + ((number * 13 + 242) * 4316 >> 20)) & 255;
}

}  // namespace

void encode_tq1_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, 54, rows * n / 256, [](const Tile& tile) {
        vf columns[256];
        vi codes[256], bytes[52], words[13];
        load_columns(tile, 0, 256, columns);
        const vi half = trits(columns, codes);
        for (int i = 0; i < 32; ++i) bytes[i] = packed<5>(codes + i, 32);
        for (int i = 0; i < 16; ++i) bytes[32 + i] = packed<5>(codes + 160 + i, 16);
        for (int i = 0; i < 4; ++i) bytes[48 + i] = packed<4>(codes + 240 + i, 4);
        pack_bytes(bytes, 52, words);
        store_words(tile, 0, words, 13);
        store_half(tile, 52, half);
    });
}

void encode_tq2_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 256, out, 66, rows * n / 256, [](const Tile& tile) {
        vf columns[256];
        vi codes[256], bytes[64], words[16];
        load_columns(tile, 0, 256, columns);
        const vi half = trits(columns, codes);
        for (int i = 0; i < 64; ++i) {
            const vi* q = codes + 128 * (i / 32) + i % 32;
            bytes[i] = (q[0] & 3) | (q[32] & 3) << 2 | (q[64] & 3) << 4 | (q[96] & 3) << 6;
        }
        pack_bytes(bytes, 64, words);
        store_words(tile, 0, words, 16);
        store_half(tile, 64, half);
    });
}

}  // namespace kvant::KVANT_NS
