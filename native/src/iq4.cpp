// IQ4_NL and IQ4_XS: codes into sixteen uneven values, the scale of each run of 32 weights searched. Lane = block.
// Source: ggml-quants.c `quantize_row_iq4_nl_impl`.
#include "kvant/codebooks.h"
#include "kvant/half.h"
#include "kvant/kernels.h"
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {

namespace {

using codebooks::iq4nl_values;

// Scales tried on either side of the one that puts the largest weight on the lowest value.
constexpr int tries = 7;
// Runs whose largest weight is below this get scale 0.
constexpr float smallest = 1e-15f;

// The nearest value is found by comparison with the midpoints. ggml compares the two distances; their subtractions are
// exact at and next to every midpoint, so both rules agree (a tie goes up), and NaN takes the highest code in both.
constexpr float value(int i) { return (float)iq4nl_values.at[i]; }
constexpr float midpoint(int i) { return (value(i - 1) + value(i)) / 2; }  // codes >= i are nearer from here up

#if defined(__AVX512F__)

// Binary search: three table look-ups by the bits found so far.
KVANT_INLINE __m512i nearest_code(__m512 x) {
#define AT(i) midpoint(i)
    const __m512 by_4 = _mm512_setr_ps(AT(2), 0, 0, 0, AT(6), 0, 0, 0, AT(10), 0, 0, 0, AT(14), 0, 0, 0);
    const __m512 by_2 =
        _mm512_setr_ps(AT(1), 0, AT(3), 0, AT(5), 0, AT(7), 0, AT(9), 0, AT(11), 0, AT(13), 0, AT(15), 0);
#undef AT
    const __mmask16 bit3 = _mm512_cmp_ps_mask(x, _mm512_set1_ps(midpoint(8)), _CMP_NLT_UQ);
    const __m512 quarter = _mm512_mask_blend_ps(bit3, _mm512_set1_ps(midpoint(4)), _mm512_set1_ps(midpoint(12)));
    const __mmask16 bit2 = _mm512_cmp_ps_mask(x, quarter, _CMP_NLT_UQ);
    __m512i code = _mm512_maskz_mov_epi32(bit3, _mm512_set1_epi32(8));
    code = _mm512_mask_or_epi32(code, bit2, code, _mm512_set1_epi32(4));
    const __mmask16 bit1 = _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(code, by_4), _CMP_NLT_UQ);
    code = _mm512_mask_or_epi32(code, bit1, code, _mm512_set1_epi32(2));
    const __mmask16 bit0 = _mm512_cmp_ps_mask(x, _mm512_permutexvar_ps(code, by_2), _CMP_NLT_UQ);
    return _mm512_mask_or_epi32(code, bit0, code, _mm512_set1_epi32(1));
}

KVANT_INLINE vi code_of(vf x) { return (vi)nearest_code((__m512)x); }

KVANT_INLINE vf value_of(vf x) {
    const __m512 values =
        _mm512_setr_ps(value(0), value(1), value(2), value(3), value(4), value(5), value(6), value(7), value(8),
                       value(9), value(10), value(11), value(12), value(13), value(14), value(15));
    return (vf)_mm512_permutexvar_ps(nearest_code((__m512)x), values);
}

#elif defined(__AVX2__)

// Binary search by tables of eight. The masks are -1, so indices count down: entry (8 - k) % 8 belongs to k.
struct Found {
    __m256i pair;  // -(code / 2)
    __m256 upper;  // mask: code is odd
};

KVANT_INLINE Found nearest_code(__m256 x) {
    const __m256 by_4 = _mm256_setr_ps(midpoint(2), 0, 0, 0, 0, midpoint(14), midpoint(10), midpoint(6));
    const __m256 by_2 = _mm256_setr_ps(midpoint(1), midpoint(15), midpoint(13), midpoint(11), midpoint(9), midpoint(7),
                                       midpoint(5), midpoint(3));
    const __m256 bit3 = _mm256_cmp_ps(x, _mm256_set1_ps(midpoint(8)), _CMP_NLT_UQ);
    const __m256 quarter = _mm256_blendv_ps(_mm256_set1_ps(midpoint(4)), _mm256_set1_ps(midpoint(12)), bit3);
    const __m256i bit2 = _mm256_castps_si256(_mm256_cmp_ps(x, quarter, _CMP_NLT_UQ));
    __m256i at = _mm256_castps_si256(bit3);
    at = _mm256_add_epi32(_mm256_add_epi32(at, at), bit2);
    const __m256i bit1 = _mm256_castps_si256(_mm256_cmp_ps(x, _mm256_permutevar8x32_ps(by_4, at), _CMP_NLT_UQ));
    at = _mm256_add_epi32(_mm256_add_epi32(at, at), bit1);
    return {at, _mm256_cmp_ps(x, _mm256_permutevar8x32_ps(by_2, at), _CMP_NLT_UQ)};
}

KVANT_INLINE vi code_of(vf x) {
    const Found found = nearest_code((__m256)x);
    return -((vi)found.pair + (vi)found.pair + (vi)found.upper);
}

KVANT_INLINE vf value_of(vf x) {
    const __m256 even =
        _mm256_setr_ps(value(0), value(14), value(12), value(10), value(8), value(6), value(4), value(2));
    const __m256 odd =
        _mm256_setr_ps(value(1), value(15), value(13), value(11), value(9), value(7), value(5), value(3));
    const Found found = nearest_code((__m256)x);
    const __m256 low = _mm256_permutevar8x32_ps(even, found.pair), high = _mm256_permutevar8x32_ps(odd, found.pair);
    return (vf)_mm256_blendv_ps(low, high, found.upper);
}

#else

KVANT_INLINE vi code_of(vf x) {
    vi code = splat(15);
    for (int i = 1; i < 16; ++i) code += x < midpoint(i);
    return code;
}

// Sums of whole numbers below 256: exact.
KVANT_INLINE vf value_of(vf x) {
    vf q = splat(value(15));
    for (int i = 1; i < 16; ++i) q -= as_float((x < midpoint(i)) & as_int(splat(value(i) - value(i - 1))));
    return q;
}

#endif

struct Sums {
    vf qx, q2;  // sums of w q x and w q q
};

KVANT_INLINE Sums sums_at(const vf* x, const vf* w, vf inverse) {
    Sums sums = {};
    for (int i = 0; i < 32; ++i) {
        const vf q = value_of(inverse * x[i]);
        const vf wq = w[i] * q;
        sums.qx += wq * x[i];
        sums.q2 += wq * q;
    }
    return sums;
}

// The scale of each lane's 32 weights that loses least.
static inline vf search_scale(const vf* x, const vf* w) {
    vf largest = vf{}, extreme = vf{};
    for (int i = 0; i < 32; ++i) {
        const vf a = vabs(x[i]);
        const vi larger = a > largest;
        largest = select(larger, a, largest);
        extreme = select(larger, x[i], extreme);
    }
    vf scale = -extreme / value(0);
    Sums sums = sums_at(x, w, 1.f / scale);
    scale = select(sums.q2 > 0.f, sums.qx / sums.q2, vf{});
    vf best = scale * sums.qx;
    for (int step = -tries; step <= tries; ++step) {
        sums = sums_at(x, w, ((float)step + value(0)) / extreme);
        const vi better = (sums.q2 > 0.f) & (sums.qx * sums.qx > best * sums.q2);
        scale = select(better, sums.qx / sums.q2, scale);
        best = select(better, scale * sums.qx, best);
    }
    return select(largest < smallest, vf{}, scale);
}

// Weights in the error of the columns of W blocks of `length`: x^2, or importance * sqrt(2 mean x^2 + x^2).
struct Weighing {
    const float* x;
    int64_t n;
    const float* importance;

    static vf twice_mean_square(const vf* x, int length) {
        vf sum = vf{};
        for (int i = 0; i < length; ++i) sum += x[i] * x[i];
        return sum * (2.f / (float)length);
    }

    // The same blocks of `importance`.
    Tile importance_of(Tile tile) const {
        for (int k = 0; k < W; ++k) tile.x[k] = importance + (tile.x[k] - x) % n;
        return tile;
    }

    void weigh(const Tile& importances, int64_t offset, const vf* columns, vf twice_mean, vf* w) const {
        if (!importance) {
            for (int i = 0; i < 32; ++i) w[i] = columns[i] * columns[i];
            return;
        }
        load_columns(importances, offset, 32, w);
        for (int i = 0; i < 32; ++i) w[i] *= vsqrt(twice_mean + columns[i] * columns[i]);
    }
};

KVANT_INLINE vf inverse(vf d) { return select(d != 0.f, 1.f / d, vf{}); }

// Codes of 32 columns as four words of nibbles: low halves are weights 0 .. 15.
KVANT_INLINE void pack_codes(const vf* x, vf factor, vi* words) {
    vi bytes[16];
    for (int i = 0; i < 16; ++i) bytes[i] = code_of(factor * x[i]) | code_of(factor * x[i + 16]) << 4;
    pack_bytes(bytes, 16, words);
}

void encode_nl(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    const Weighing weighing{x, n, importance};
    for_each_tile(x, 32, out, 18, rows * n / 32, [&](const Tile& tile) {
        vf columns[32], w[32];
        vi words[4];
        load_columns(tile, 0, 32, columns);
        const vf twice_mean = Weighing::twice_mean_square(columns, 32);
        weighing.weigh(importance ? weighing.importance_of(tile) : tile, 0, columns, twice_mean, w);
        const vf scale = search_scale(columns, w);
        pack_codes(columns, inverse(scale), words);
        store_half(tile, 0, to_half(scale));
        store_words(tile, 2, words, 4);
    });
}

// Scales of eight runs as six-bit codes (0 .. 63 for -32 .. 31) times d.
struct RunScales {
    vf d;
    vi codes[8];

    explicit RunScales(const vf* scales) {
        vf largest = vf{}, extreme = vf{};
        for (int i = 0; i < 8; ++i) {
            const vi larger = vabs(scales[i]) > largest;
            largest = select(larger, vabs(scales[i]), largest);
            extreme = select(larger, scales[i], extreme);
        }
        d = -extreme / 32.f;
        const vf id = inverse(d);
        for (int i = 0; i < 8; ++i) codes[i] = imax(splat(-32), imin(splat(31), nearest(id * scales[i]))) + 32;
    }

    vf stored(int i) const { return d * to_float(codes[i] - 32); }

    void pack(vi* words) const {
        vi high = {}, low = {};
        for (int i = 0; i < 8; ++i) {
            low |= (codes[i] & 15) << (4 * i);
            high |= (codes[i] >> 4) << (2 * i);
        }
        words[0] = to_half(d) | high << 16;
        words[1] = low;
    }
};

void encode_xs(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    const Weighing weighing{x, n, importance};
    for_each_tile(x, 256, out, 136, rows * n / 256, [&](const Tile& tile) {
        vf columns[256], w[32], scales[8];
        vi words[34];
        load_columns(tile, 0, 256, columns);
        const Tile importances = importance ? weighing.importance_of(tile) : tile;
        const vf twice_mean = Weighing::twice_mean_square(columns, 256);
        for (int i = 0; i < 8; ++i) {
            weighing.weigh(importances, 32 * i, columns + 32 * i, twice_mean, w);
            scales[i] = search_scale(columns + 32 * i, w);
        }
        const RunScales stored(scales);
        stored.pack(words);
        for (int i = 0; i < 8; ++i) pack_codes(columns + 32 * i, inverse(stored.stored(i)), words + 2 + 4 * i);
        store_words(tile, 0, words, 34);
    });
}

}  // namespace

void encode_iq4_nl(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    encode_nl(x, n, rows, nullptr, out);
}
void encode_iq4_nl_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_nl(x, n, rows, importance, out);
}
void encode_iq4_xs(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    encode_xs(x, n, rows, nullptr, out);
}
void encode_iq4_xs_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_xs(x, n, rows, importance, out);
}

}  // namespace kvant::KVANT_NS
