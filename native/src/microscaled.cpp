// MXFP4 and NVFP4: E2M1 codes under a shared scale that is itself 8 bits. Lane = block.
// Source: ggml-quants.c `quantize_row_mxfp4_ref`, `quantize_row_nvfp4_ref`.
#include "kvant/codebooks.h"
#include "kvant/half.h"
#include "kvant/kernels.h"
#include "kvant/microscale.h"
#include "kvant/tiles.h"

#include <math.h>

namespace kvant::KVANT_NS {

namespace {

// floor(log2(a)) as float log2 rounds it: just below a power of two the logarithm is already the integer above.
KVANT_INLINE int floor_log2(float a) {
    int32_t bits;
    memcpy(&bits, &a, 4);
    const bool clear = bits >= 0x00800000 && bits < 0x7f800000 && (bits & 0x7fffff) < 0x7fff00;
    if (clear) return (bits >> 23) - 127;
    return (int)floorf((float)log2((double)a));
}

// Shared exponent of each lane: floor(log2(largest)) + 125 modulo 256, 0 for zero and infinity.
KVANT_INLINE vi shared_exponent(vf largest) {
    vi e;
    for (int k = 0; k < W; ++k) {
        const bool usual = largest[k] > 0.f && largest[k] <= 3.402823466e38f;
        e[k] = usual ? (uint8_t)(floor_log2(largest[k]) + 125) : 0;
    }
    return e;
}

KVANT_INLINE vf largest_magnitude(const vf* x, int n) {
    vf largest = vf{};
    for (int i = 0; i < n; ++i) largest = vmax(vabs(x[i]), largest);
    return largest;
}

// Code of the nearest level of x: that of |x|, with the sign in bit 3. The lower code wins a tie; NaN takes code 0.
KVANT_INLINE vi nearest_level(vf x, const vf* levels) {
    const vf a = vabs(x);
    vf least = vabs(levels[0] - a);
    vi code = {};
    for (int i = 1; i < 8; ++i) {
        const vf error = vabs(levels[i] - a);
        const vi better = error < least;
        least = select(better, error, least);
        code = select(better, splat(i), code);
    }
    return code | ((x < 0.f) & (code > 0) & 8);
}

KVANT_INLINE void levels_of(vf d, vf* levels) {
    for (int i = 0; i < 8; ++i) levels[i] = (float)codebooks::e2m1_values.at[i] * d;
}

// Nibbles of columns i and i + half as words of four bytes.
template <int half>
KVANT_INLINE void pack_codes(const vi* codes, vi* words) {
    vi bytes[half];
    for (int i = 0; i < half; ++i) bytes[i] = codes[i] | codes[i + half] << 4;
    pack_bytes(bytes, half, words);
}

}  // namespace

void encode_mxfp4(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 32, out, 17, rows * n / 32, [](const Tile& tile) {
        vf columns[32], levels[8], d = {};
        vi codes[32], words[4];
        load_columns(tile, 0, 32, columns);
        const vi e = shared_exponent(largest_magnitude(columns, 32));
        for (int k = 0; k < W; ++k) d[k] = half_power((uint8_t)e[k]);
        levels_of(d, levels);
        for (int i = 0; i < 32; ++i) codes[i] = nearest_level(columns[i], levels);
        pack_codes<16>(codes, words);
        for (int k = 0; k < W; ++k) tile.out[k][0] = (uint8_t)e[k];
        store_words(tile, 1, words, 4);
    });
}

void encode_nvfp4(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    for_each_tile(x, 64, out, 36, rows * n / 64, [](const Tile& tile) {
        vf columns[64], levels[8], d = {};
        vi codes[16], words[9];
        load_columns(tile, 0, 64, columns);
        words[0] = vi{};
        for (int run = 0; run < 4; ++run) {
            const vi scale = to_e4m3(largest_magnitude(columns + 16 * run, 16) / 6.f);
            for (int k = 0; k < W; ++k) d[k] = half_e4m3((uint8_t)scale[k]);
            levels_of(d, levels);
            for (int i = 0; i < 16; ++i) codes[i] = nearest_level(columns[16 * run + i], levels);
            pack_codes<8>(codes, words + 1 + 2 * run);
            words[0] |= scale << (8 * run);
        }
        store_words(tile, 0, words, 9);
    });
}

}  // namespace kvant::KVANT_NS
