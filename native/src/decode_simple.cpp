// Decoders of the types whose codes need no codebook: legacy, ternary, microscaled, binary and IQ4. The compiler turns
// the inner loops into vectors. Byte offsets and formulas: src/kvant/kernels/reference, block by block the same.
#include "kvant/codebooks.h"
#include "kvant/convert.h"
#include "kvant/groups.h"
#include "kvant/microscale.h"

namespace kvant::KVANT_NS {

#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

namespace {

using codebooks::e2m1_values;
using codebooks::iq4nl_values;

// Call f(block, weights) for every block.
template <int length, int bytes, class F>
KVANT_INLINE void for_each_block(const uint8_t* data, int64_t n, int64_t rows, float* out, F f) {
    const int64_t count = rows * n / length;
    for (int64_t i = 0; i < count; ++i) f(data + i * bytes, out + i * length);
}

// Sixteen bytes of codes, low halves first, with fifth bits unless `fifth` is null: f(codes of weights at .. at + G -
// 1, at).
template <class F>
KVANT_INLINE void for_each_group(const uint8_t* packed, const uint8_t* fifth, F f) {
    for (int at = 0; at < 32; at += G) {
        const group_i bytes = load_group(packed + at % 16);
        group_i codes = at < 16 ? bytes & 15 : bytes >> 4;
        if (fifth) codes |= bit_mask(fifth[at / 8], at % 8) & 16;
        f(codes, at);
    }
}

// Sixteen levels by code, `half` bytes: low halves first.
template <int half>
KVANT_INLINE void levels(const uint8_t* codes, const int8_t* values, float d, float* y) {
    for (int j = 0; j < half; ++j) {
        y[j] = (float)values[codes[j] & 15] * d;
        y[j + half] = (float)values[codes[j] >> 4] * d;
    }
}

// `digits` base-3 digits of each of `count` bytes, most significant first.
template <int count, int digits>
KVANT_INLINE float* trits(const uint8_t* codes, float d, float* y) {
    uint8_t power = 1;
    for (int i = 0; i < digits; ++i, power *= 3) {
        for (int j = 0; j < count; ++j) {
            const uint8_t turned = (uint8_t)(codes[j] * power);
            *y++ = (float)((turned * 3 >> 8) - 1) * d;
        }
    }
    return y;
}

}  // namespace

KVANT_DECODER(decode_q4_0) {
    for_each_block<32, 18>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for_each_group(b + 2, nullptr, [&](group_i q, int at) { store_group(y + at, to_floats(q - 8) * d); });
    });
}

KVANT_DECODER(decode_q4_1) {
    for_each_block<32, 20>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b), m = half_at(b + 2);
        for_each_group(b + 4, nullptr, [&](group_i q, int at) { store_group(y + at, to_floats(q) * d + m); });
    });
}

KVANT_DECODER(decode_q5_0) {
    for_each_block<32, 22>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for_each_group(b + 6, b + 2, [&](group_i q, int at) { store_group(y + at, to_floats(q - 16) * d); });
    });
}

KVANT_DECODER(decode_q5_1) {
    for_each_block<32, 24>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b), m = half_at(b + 2);
        for_each_group(b + 8, b + 4, [&](group_i q, int at) { store_group(y + at, to_floats(q) * d + m); });
    });
}

KVANT_DECODER(decode_q8_0) {
    for_each_block<32, 34>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int j = 0; j < 32; ++j) y[j] = (float)(int8_t)b[2 + j] * d;
    });
}

KVANT_DECODER(decode_iq4_nl) {
    for_each_block<32, 18>(data, n, rows, out,
                           [](const uint8_t* b, float* y) { levels<16>(b + 2, iq4nl_values.at, half_at(b), y); });
}

KVANT_DECODER(decode_iq4_xs) {
    for_each_block<256, 136>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 8; ++i) {
            const int low = b[4 + i / 2] >> (4 * (i % 2)) & 15, high = b[2 + i / 4] >> (2 * (i % 4)) & 3;
            levels<16>(b + 8 + 16 * i, iq4nl_values.at, d * (float)((low | high << 4) - 32), y + 32 * i);
        }
    });
}

KVANT_DECODER(decode_tq1_0) {
    for_each_block<256, 54>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b + 52);
        y = trits<32, 5>(b, d, y);
        y = trits<16, 5>(b + 32, d, y);
        trits<4, 4>(b + 48, d, y);
    });
}

KVANT_DECODER(decode_tq2_0) {
    for_each_block<256, 66>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b + 64);
        for (int i = 0; i < 8; ++i) {
            for (int j = 0; j < 32; ++j) y[32 * i + j] = (float)((b[32 * (i / 4) + j] >> (2 * (i % 4)) & 3) - 1) * d;
        }
    });
}

KVANT_DECODER(decode_mxfp4) {
    for_each_block<32, 17>(data, n, rows, out,
                           [](const uint8_t* b, float* y) { levels<16>(b + 1, e2m1_values.at, half_power(b[0]), y); });
}

KVANT_DECODER(decode_nvfp4) {
    for_each_block<64, 36>(data, n, rows, out, [](const uint8_t* b, float* y) {
        for (int i = 0; i < 4; ++i) levels<8>(b + 4 + 8 * i, e2m1_values.at, half_e4m3(b[i]), y + 16 * i);
    });
}

KVANT_DECODER(decode_q1_0) {
    for_each_block<128, 18>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 8; ++j) y[8 * i + j] = b[2 + i] >> j & 1 ? d : -d;
        }
    });
}

KVANT_DECODER(decode_q2_0) {
    for_each_block<64, 18>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 16; ++i) {
            for (int j = 0; j < 4; ++j) y[4 * i + j] = (float)((b[2 + i] >> (2 * j) & 3) - 1) * d;
        }
    });
}

}  // namespace kvant::KVANT_NS
