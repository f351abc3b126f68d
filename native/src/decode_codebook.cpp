// Decoders of the codebook types IQ1_S .. IQ3_S. Byte offsets and formulas: src/kvant/kernels/reference/codebook.py,
// block by block the same.
#include "kvant/codebooks.h"
#include "kvant/convert.h"
#include "kvant/groups.h"

namespace kvant::KVANT_NS {

#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

namespace {

template <int bytes, class F>
KVANT_INLINE void for_each_block(const uint8_t* data, int64_t n, int64_t rows, float* out, F f) {
    const int64_t count = rows * n / 256;
    for (int64_t i = 0; i < count; ++i) f(data + i * bytes, out + i * 256);
}

KVANT_INLINE uint32_t word(const uint8_t* p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}

KVANT_INLINE uint32_t half_word(const uint8_t* p) {
    uint16_t w;
    memcpy(&w, p, 2);
    return w;
}

// y = ±d * point, eight weights; bit j of `signs` turns weight j.
KVANT_INLINE void put(float d, const uint8_t* point, uint32_t signs, float* y) {
    for (int at = 0; at < 8; at += G) {
        const group_i turned = bit_mask(signs, at) & INT32_MIN;
        store_group(y + at, (group_f)((group_i)(d * to_floats(load_group(point + at))) ^ turned));
    }
}

// y = ±d * point, eight weights from two points of four.
KVANT_INLINE void put(float d, const uint8_t* first, const uint8_t* second, uint32_t signs, float* y) {
    uint8_t point[8];
    memcpy(point, first, 4);
    memcpy(point + 4, second, 4);
    put(d, point, signs, y);
}

// y = d * (point ± 1/8), eight weights of -1, 0 or 1. `negative` is 0 or 1; a branch on it would be a coin toss.
KVANT_INLINE void put_shifted(float d, uint32_t index, uint32_t negative, float* y) {
    const float delta = codebooks::iq1_delta * (float)(1 - 2 * (int32_t)negative);
    for (int at = 0; at < 8; at += G) {
        const group_i point = load_group(codebooks::iq1s.at + 8 * index + at);
        store_group(y + at, d * (to_floats((point ^ 0x80) - 0x80) + delta));
    }
}

}  // namespace

KVANT_DECODER(decode_iq2_xxs) {
    for_each_block<66>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 8; ++i) {
            const uint8_t* index = b + 2 + 8 * i;
            const uint32_t packed = word(index + 4);
            const float scale = d * (0.5f + (float)(packed >> 28)) * 0.25f;
            for (int l = 0; l < 4; ++l) {
                const uint32_t signs = codebooks::even_signs.at[packed >> (7 * l) & 127];
                put(scale, codebooks::iq2xxs.at + 8 * index[l], signs, y + 32 * i + 8 * l);
            }
        }
    });
}

KVANT_DECODER(decode_iq2_xs) {
    for_each_block<74>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 32; ++i) {
            const uint32_t code = half_word(b + 2 + 2 * i);
            const float scale = d * (0.5f + (float)(b[66 + i / 4] >> (4 * (i % 4 / 2)) & 15)) * 0.25f;
            put(scale, codebooks::iq2xs.at + 8 * (code & 511), codebooks::even_signs.at[code >> 9], y + 8 * i);
        }
    });
}

KVANT_DECODER(decode_iq2_s) {
    for_each_block<82>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 32; ++i) {
            const uint32_t index = b[2 + i] | (uint32_t)(b[66 + i / 4] >> (2 * (i % 4)) & 3) << 8;
            const float scale = d * (0.5f + (float)(b[74 + i / 4] >> (4 * (i % 4 / 2)) & 15)) * 0.25f;
            put(scale, codebooks::iq2s.at + 8 * index, b[34 + i], y + 8 * i);
        }
    });
}

KVANT_DECODER(decode_iq3_xxs) {
    for_each_block<98>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 32; ++i) {
            const uint32_t packed = word(b + 66 + 4 * (i / 4));
            const float scale = d * (0.5f + (float)(packed >> 28)) * 0.5f;
            const uint32_t signs = codebooks::even_signs.at[packed >> (7 * (i % 4)) & 127];
            put(scale, codebooks::iq3xxs.at + 4 * b[2 + 2 * i], codebooks::iq3xxs.at + 4 * b[3 + 2 * i], signs,
                y + 8 * i);
        }
    });
}

KVANT_DECODER(decode_iq3_s) {
    for_each_block<110>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 32; ++i) {
            const uint32_t high = b[66 + i / 4] >> (2 * (i % 4));
            const uint32_t first = b[2 + 2 * i] | (high & 1) << 8, second = b[3 + 2 * i] | (high & 2) << 7;
            const float scale = d * (float)(1 + 2 * (b[106 + i / 8] >> (4 * (i % 8 / 4)) & 15));
            put(scale, codebooks::iq3s.at + 4 * first, codebooks::iq3s.at + 4 * second, b[74 + i], y + 8 * i);
        }
    });
}

KVANT_DECODER(decode_iq1_s) {
    for_each_block<50>(data, n, rows, out, [](const uint8_t* b, float* y) {
        const float d = half_at(b);
        for (int i = 0; i < 32; ++i) {
            const uint32_t packed = half_word(b + 34 + 2 * (i / 4));
            const uint32_t index = b[2 + i] | (packed >> (3 * (i % 4)) & 7) << 8;
            put_shifted(d * (float)(2 * (packed >> 12 & 7) + 1), index, packed >> 15, y + 8 * i);
        }
    });
}

KVANT_DECODER(decode_iq1_m) {
    for_each_block<56>(data, n, rows, out, [](const uint8_t* b, float* y) {
        uint32_t packed[4];
        for (int i = 0; i < 4; ++i) packed[i] = half_word(b + 48 + 2 * i);
        const float d = half_value(
            (uint16_t)(packed[0] >> 12 | (packed[1] >> 8 & 0xf0) | (packed[2] >> 4 & 0xf00) | (packed[3] & 0xf000)));
        for (int i = 0; i < 32;
             ++i) {  // scales of 3 bits cover two groups; index bits and sign of a group are a nibble
            const uint32_t scale = packed[i / 8] >> (3 * (i % 8 / 2)) & 7, nibble = b[32 + i / 2] >> (4 * (i % 2)) & 15;
            put_shifted(d * (float)(2 * scale + 1), b[i] | (nibble & 7) << 8, nibble >> 3, y + 8 * i);
        }
    });
}

}  // namespace kvant::KVANT_NS
