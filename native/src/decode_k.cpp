// Decoders of Q2_K .. Q6_K. The compiler turns the inner loops into vectors. Byte offsets and formulas:
// src/kvant/kernels/reference/kquants.py, block by block the same.
#include "kvant/blocks.h"
#include "kvant/convert.h"

namespace kvant::KVANT_NS {

#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

namespace {

template <class Block, class F>
KVANT_INLINE void for_each_block(const uint8_t* data, int64_t n, int64_t rows, float* out, F f) {
    const int64_t count = rows * n / 256;
    for (int64_t i = 0; i < count; ++i) {
        Block block;
        memcpy(&block, data + i * sizeof(Block), sizeof(Block));
        f(block, out + i * 256);
    }
}

// Six-bit scale and minimum of sub-block j from the twelve bytes of Q4_K and Q5_K.
struct Pair {
    float scale, minimum;
};
KVANT_INLINE Pair six_bit_pair(const uint8_t* packed, int j) {
    if (j < 4) return {(float)(packed[j] & 63), (float)(packed[j + 4] & 63)};
    const uint8_t low = packed[j + 4];
    return {(float)((low & 15) | (packed[j - 4] >> 6 << 4)), (float)((low >> 4) | (packed[j] >> 6 << 4))};
}

}  // namespace

KVANT_DECODER(decode_q2_k) {
    for_each_block<block_q2_K>(data, n, rows, out, [](const block_q2_K& b, float* y) {
        const float d = half_value(b.d), dmin = half_value(b.dmin);
        for (int i = 0; i < 16; ++i) {  // sub-blocks of 16: two per plane of 32 codes, four planes per 32 bytes
            const uint8_t* q = b.qs + 32 * (i / 8) + 16 * (i % 2);
            const int shift = 2 * (i % 8 / 2);
            const float scale = d * (float)(b.scales[i] & 15), minimum = dmin * (float)(b.scales[i] >> 4);
            for (int j = 0; j < 16; ++j) y[16 * i + j] = scale * (float)(q[j] >> shift & 3) - minimum;
        }
    });
}

KVANT_DECODER(decode_q3_k) {
    for_each_block<block_q3_K>(data, n, rows, out, [](const block_q3_K& b, float* y) {
        const float d = half_value(b.d);
        for (int i = 0; i < 16; ++i) {
            const uint8_t* q = b.qs + 32 * (i / 8) + 16 * (i % 2);
            const uint8_t* high = b.hmask + 16 * (i % 2);
            const int shift = 2 * (i % 8 / 2), plane = i / 2;
            const int low_scale = b.scales[i % 8] >> (4 * (i / 8)) & 15;
            const int high_scale = b.scales[8 + i % 4] >> (2 * (i / 4)) & 3;
            const float scale = d * (float)((low_scale | high_scale << 4) - 32);
            for (int j = 0; j < 16; ++j) {
                y[16 * i + j] = scale * (float)((q[j] >> shift & 3) + (high[j] >> plane & 1) * 4 - 4);
            }
        }
    });
}

KVANT_DECODER(decode_q4_k) {
    for_each_block<block_q4_K>(data, n, rows, out, [](const block_q4_K& b, float* y) {
        const float d = half_value(b.d), dmin = half_value(b.dmin);
        for (int i = 0; i < 8; ++i) {
            const Pair pair = six_bit_pair(b.scales, i);
            const float scale = d * pair.scale, minimum = dmin * pair.minimum;
            const uint8_t* q = b.qs + 32 * (i / 2);
            const int shift = 4 * (i % 2);
            for (int j = 0; j < 32; ++j) y[32 * i + j] = scale * (float)(q[j] >> shift & 15) - minimum;
        }
    });
}

KVANT_DECODER(decode_q5_k) {
    for_each_block<block_q5_K>(data, n, rows, out, [](const block_q5_K& b, float* y) {
        const float d = half_value(b.d), dmin = half_value(b.dmin);
        for (int i = 0; i < 8; ++i) {
            const Pair pair = six_bit_pair(b.scales, i);
            const float scale = d * pair.scale, minimum = dmin * pair.minimum;
            const uint8_t* q = b.qs + 32 * (i / 2);
            const int shift = 4 * (i % 2);
            for (int j = 0; j < 32; ++j) {
                y[32 * i + j] = scale * (float)((q[j] >> shift & 15) + (b.qh[j] >> i & 1) * 16) - minimum;
            }
        }
    });
}

KVANT_DECODER(decode_q6_k) {
    for_each_block<block_q6_K>(data, n, rows, out, [](const block_q6_K& b, float* y) {
        const float d = half_value(b.d);
        for (int i = 0; i < 16; ++i) {  // two halves of 128: 64 low bytes, 32 high bytes
            const uint8_t* low = b.ql + 64 * (i / 8) + 16 * (i % 4);
            const uint8_t* high = b.qh + 32 * (i / 8) + 16 * (i % 2);
            const int low_shift = 4 * (i % 8 / 4), high_shift = 2 * (i % 8 / 2);
            const float scale = d * (float)b.scales[i];
            for (int j = 0; j < 16; ++j) {
                y[16 * i + j] = scale * (float)(((low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4) - 32);
            }
        }
    });
}

}  // namespace kvant::KVANT_NS
