// Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 without importance: scales from extremes, codes by rounding.
// Source: ggml-quants.c `quantize_row_q4_0_ref` and its siblings.
//
// Sixteen blocks at a time: a block is a few vectors, their extremes are reduced together, and the scales of all
// sixteen are one computation. Extremes are found as integers, whose order is that of the magnitudes and which no NaN
// can hide from. A group with a NaN, an infinity, or a scale so small that its inverse overflows takes the scalar
// `*_ref` code.
#include "kvant/blocks.h"
#include "kvant/convert.h"
#include "kvant/kernels.h"
#include "kvant/lanes.h"

namespace kvant::KVANT_NS {

namespace {

constexpr int group = 16;      // blocks whose scales are computed together
constexpr int parts = 32 / W;  // vectors per block
constexpr int sets = group / W;
constexpr float largest_float = 3.402823466e38f;
constexpr float smallest_plain = 1e-30f;  // scales from here up have a finite inverse
constexpr int sign_bit = (int)0x80000000;

KVANT_INLINE bool plain(vf scale_from) {
    const vi zero = scale_from == 0.f;
    return all(zero | ((vabs(scale_from) >= smallest_plain) & (vabs(scale_from) <= largest_float)));
}

KVANT_INLINE vf inverse(vf d) { return select(d != 0.f, 1.f / d, vf{}); }
KVANT_INLINE float inverse(float d) { return d != 0.f ? 1.f / d : 0.f; }

// Scales of the sixteen blocks, lane = block, and what their encoding needs.
struct Scales {
    alignas(64) float inverse[group];
    alignas(64) float low[group];
    alignas(64) int32_t d[group], m[group];  // halves
};

// --- scalar reference
// -------------------------------------------------------------------------------------------------

float first_largest_ref(const float* x) {
    float amax = 0.f, max = 0.f;
    for (int j = 0; j < 32; ++j) {
        const float a = __builtin_fabsf(x[j]);
        if (amax < a) {
            amax = a;
            max = x[j];
        }
    }
    return max;
}

void put_codes_ref(const int32_t* q, uint8_t* fifth, uint8_t* codes) {
    uint32_t bits = 0;
    for (int j = 0; j < 32; ++j) bits |= (uint32_t)(q[j] >> 4 & 1) << j;
    if (fifth) memcpy(fifth, &bits, 4);
    for (int j = 0; j < 16; ++j) codes[j] = (uint8_t)((q[j] & 15) | (q[j + 16] & 15) << 4);
}

template <int levels>
void symmetric_ref(const float* x, uint8_t* d_out, uint8_t* fifth, uint8_t* codes) {
    const float d = first_largest_ref(x) / -levels, id = inverse(d);
    const uint16_t half = half_bits_of(d);
    int32_t q[32];
    for (int j = 0; j < 32; ++j) {
        const int code = (int8_t)truncated(x[j] * id + (levels + 0.5f));
        q[j] = code < 2 * levels - 1 ? code : 2 * levels - 1;
    }
    memcpy(d_out, &half, 2);
    put_codes_ref(q, fifth, codes);
}

template <int levels>
void affine_ref(const float* x, uint8_t* d_out, uint8_t* fifth, uint8_t* codes) {
    float low = largest_float, high = -largest_float;
    for (int j = 0; j < 32; ++j) {
        if (x[j] < low) low = x[j];
        if (x[j] > high) high = x[j];
    }
    const float d = (high - low) / levels, id = inverse(d);
    const uint16_t half[2] = {half_bits_of(d), half_bits_of(low)};
    int32_t q[32];
    for (int j = 0; j < 32; ++j) {
        const int32_t code = truncated((x[j] - low) * id + 0.5f);
        q[j] = levels == 15 ? ((int8_t)code < 15 ? (int8_t)code : 15) : (uint8_t)code;
    }
    memcpy(d_out, half, 4);
    put_codes_ref(q, fifth, codes);
}

void q8_0_ref(const float* x, uint8_t* out) {
    float amax = 0.f;
    for (int j = 0; j < 32; ++j) {
        const float a = __builtin_fabsf(x[j]);
        amax = amax > a ? amax : a;
    }
    const float d = amax / 127, id = inverse(d);
    const uint16_t half = half_bits_of(d);
    memcpy(out, &half, 2);
    for (int j = 0; j < 32; ++j) out[2 + j] = (uint8_t)rounded_away(x[j] * id);
}

// --- scales of sixteen blocks
// -----------------------------------------------------------------------------------------

// d = the value of largest magnitude / -levels. The first of two that differ only in sign counts.
template <int levels>
KVANT_INLINE bool symmetric_scales(const float* x, Scales& scales) {
    vi up[group], down[group], highest[sets], lowest[sets];
    for (int k = 0; k < group; ++k) {
        up[k] = as_int(load(x + 32 * k));
        down[k] = up[k] ^ sign_bit;
        for (int i = 1; i < parts; ++i) {
            const vi bits = as_int(load(x + 32 * k + i * W));
            up[k] = imax(up[k], bits);
            down[k] = imax(down[k], bits ^ sign_bit);
        }
    }
    largest_lanes(up, highest);
    largest_lanes(down, lowest);
    for (int s = 0; s < sets; ++s) {
        const vi positive = imax(highest[s], vi{}), negative = imax(lowest[s], vi{});
        vi largest = imax(positive, negative) | ((negative > positive) & sign_bit);
        const vi tie = (positive == negative) & (positive != 0);
        if (any(tie)) {
            for (int k = 0; k < W; ++k) {
                const float first = tie[k] ? first_largest_ref(x + 32 * (s * W + k)) : 0.f;
                int32_t bits;
                memcpy(&bits, &first, 4);
                if (tie[k]) largest[k] = bits;
            }
        }
        if (!plain(as_float(largest))) return false;
        const vf d = as_float(largest) / (float)-levels;
        store(scales.inverse + s * W, inverse(d));
        const vi half = to_half(d);
        memcpy(scales.d + s * W, &half, sizeof half);
    }
    return true;
}

// Integers in the order of the floats; its own inverse.
KVANT_INLINE vi ordered(vi bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

// d = (largest - smallest) / levels, m = smallest.
template <int levels>
KVANT_INLINE bool affine_scales(const float* x, Scales& scales) {
    vi up[group], down[group], highest[sets], lowest[sets];
    for (int k = 0; k < group; ++k) {
        up[k] = ordered(as_int(load(x + 32 * k)));
        down[k] = ~up[k];
        for (int i = 1; i < parts; ++i) {
            const vi bits = ordered(as_int(load(x + 32 * k + i * W)));
            up[k] = imax(up[k], bits);
            down[k] = imax(down[k], ~bits);
        }
    }
    largest_lanes(up, highest);
    largest_lanes(down, lowest);
    for (int s = 0; s < sets; ++s) {
        const vf high = as_float(ordered(highest[s])), low = as_float(ordered(~lowest[s]));
        const vf range = high - low;
        // The sign of a smallest zero is that of the first zero: scalar code finds it.
        const vi finite = (vabs(high) <= largest_float) & (vabs(low) <= largest_float);
        if (any(low == 0.f) || !all(finite) || !plain(range)) return false;
        const vf d = range / (float)levels;
        store(scales.inverse + s * W, inverse(d));
        store(scales.low + s * W, low);
        const vi d_half = to_half(d), m_half = to_half(low);
        memcpy(scales.d + s * W, &d_half, sizeof d_half);
        memcpy(scales.m + s * W, &m_half, sizeof m_half);
    }
    return true;
}

// --- codes
// ------------------------------------------------------------------------------------------------------------

KVANT_INLINE void put_half(uint8_t* p, int32_t bits) {
    const uint16_t half = (uint16_t)bits;
    memcpy(p, &half, 2);
}

// Codes of a block: fifth bits where asked for, then 16 bytes of nibbles.
template <bool five>
KVANT_INLINE void put_codes(vi* q, uint8_t* fifth, uint8_t* codes) {
    if (five) {
        uint32_t bits = 0;
        for (int i = 0; i < parts; ++i) bits |= sign_bits(q[i] << 27) << (i * W);
        memcpy(fifth, &bits, 4);
        for (int i = 0; i < parts; ++i) q[i] &= 15;
    }
    for (int i = 0; i < parts / 2; ++i) q[i] |= q[i + parts / 2] << 4;
    store_bytes<false>(codes, q);
}

template <int levels>
KVANT_INLINE void symmetric_codes(const float* x, const Scales& scales, int k, vi* q) {
    const vf id = splat(scales.inverse[k]);
    for (int i = 0; i < parts; ++i) {
        q[i] = imin(to_int(load(x + i * W) * id + (levels + 0.5f)), splat(2 * levels - 1));
    }
}

template <int levels>
KVANT_INLINE void affine_codes(const float* x, const Scales& scales, int k, vi* q) {
    const vf id = splat(scales.inverse[k]), low = splat(scales.low[k]);
    for (int i = 0; i < parts; ++i) {
        q[i] = to_int((load(x + i * W) - low) * id + 0.5f);
        if (levels == 15) q[i] = imin(q[i], splat(15));
    }
}

// Groups of sixteen through `wide`, which may refuse; what it refuses and the rest through `one`.
template <int bytes, class Wide, class One>
KVANT_INLINE void for_each_group(const float* x, int64_t count, uint8_t* out, Wide wide, One one) {
    for (int64_t first = 0; first < count; first += group) {
        const float* xs = x + 32 * first;
        uint8_t* outs = out + bytes * first;
        const bool whole = count - first >= group;
        if (whole && wide(xs, outs)) continue;
        const int64_t live = whole ? group : count - first;
        for (int64_t k = 0; k < live; ++k) one(xs + 32 * k, outs + bytes * k);
    }
}

}  // namespace

void encode_q4_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    const auto wide = [](const float* xs, uint8_t* outs) {
        Scales scales;
        if (!symmetric_scales<8>(xs, scales)) return false;
        for (int k = 0; k < group; ++k) {
            vi q[parts];
            symmetric_codes<8>(xs + 32 * k, scales, k, q);
            put_half(outs + 18 * k, scales.d[k]);
            put_codes<false>(q, nullptr, outs + 18 * k + 2);
        }
        return true;
    };
    const auto one = [](const float* xs, uint8_t* b) { symmetric_ref<8>(xs, b, nullptr, b + 2); };
    for_each_group<18>(x, rows * n / 32, out, wide, one);
}

void encode_q5_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    const auto wide = [](const float* xs, uint8_t* outs) {
        Scales scales;
        if (!symmetric_scales<16>(xs, scales)) return false;
        for (int k = 0; k < group; ++k) {
            vi q[parts];
            symmetric_codes<16>(xs + 32 * k, scales, k, q);
            put_half(outs + 22 * k, scales.d[k]);
            put_codes<true>(q, outs + 22 * k + 2, outs + 22 * k + 6);
        }
        return true;
    };
    const auto one = [](const float* xs, uint8_t* b) { symmetric_ref<16>(xs, b, b + 2, b + 6); };
    for_each_group<22>(x, rows * n / 32, out, wide, one);
}

void encode_q4_1(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    const auto wide = [](const float* xs, uint8_t* outs) {
        Scales scales;
        if (!affine_scales<15>(xs, scales)) return false;
        for (int k = 0; k < group; ++k) {
            vi q[parts];
            affine_codes<15>(xs + 32 * k, scales, k, q);
            put_half(outs + 20 * k, scales.d[k]);
            put_half(outs + 20 * k + 2, scales.m[k]);
            put_codes<false>(q, nullptr, outs + 20 * k + 4);
        }
        return true;
    };
    const auto one = [](const float* xs, uint8_t* b) { affine_ref<15>(xs, b, nullptr, b + 4); };
    for_each_group<20>(x, rows * n / 32, out, wide, one);
}

void encode_q5_1(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    const auto wide = [](const float* xs, uint8_t* outs) {
        Scales scales;
        if (!affine_scales<31>(xs, scales)) return false;
        for (int k = 0; k < group; ++k) {
            vi q[parts];
            affine_codes<31>(xs + 32 * k, scales, k, q);
            put_half(outs + 24 * k, scales.d[k]);
            put_half(outs + 24 * k + 2, scales.m[k]);
            put_codes<true>(q, outs + 24 * k + 4, outs + 24 * k + 8);
        }
        return true;
    };
    const auto one = [](const float* xs, uint8_t* b) { affine_ref<31>(xs, b, b + 4, b + 8); };
    for_each_group<24>(x, rows * n / 32, out, wide, one);
}

void encode_q8_0(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    const auto wide = [](const float* xs, uint8_t* outs) {
        vi magnitude[group], largest[sets];
        for (int k = 0; k < group; ++k) {
            magnitude[k] = as_int(load(xs + 32 * k)) & 0x7fffffff;
            for (int i = 1; i < parts; ++i) {
                magnitude[k] = imax(magnitude[k], as_int(load(xs + 32 * k + i * W)) & 0x7fffffff);
            }
        }
        largest_lanes(magnitude, largest);
        Scales scales;
        for (int s = 0; s < sets; ++s) {
            if (!plain(as_float(largest[s]))) return false;
            const vf d = as_float(largest[s]) / 127.f;
            store(scales.inverse + s * W, inverse(d));
            const vi half = to_half(d);
            memcpy(scales.d + s * W, &half, sizeof half);
        }
        for (int k = 0; k < group; ++k) {
            vi q[parts];
            for (int i = 0; i < parts; ++i) q[i] = rounded_away(load(xs + 32 * k + i * W) * splat(scales.inverse[k]));
            put_half(outs + 34 * k, scales.d[k]);
            store_bytes<true>(outs + 34 * k + 2, q);
            store_bytes<true>(outs + 34 * k + 18, q + parts / 2);
        }
        return true;
    };
    for_each_group<34>(x, rows * n / 32, out, wide, [](const float* xs, uint8_t* b) { q8_0_ref(xs, b); });
}

}  // namespace kvant::KVANT_NS
