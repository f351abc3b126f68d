// Work across the lanes of a vector, for kernels that hold one block in a few vectors: narrowing, and largest lanes.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

// C's float -> int as x86 does it: toward zero, and the lowest integer for NaN and what does not fit.
KVANT_INLINE int32_t truncated(float v) { return v >= -2147483648.f && v < 2147483648.f ? (int32_t)v : INT32_MIN; }

// C's roundf, halves away from zero, then `truncated`.
KVANT_INLINE int32_t rounded_away(float v) { return truncated(v + (v < 0 ? -0.49999997f : 0.49999997f)); }
// The same for lanes with |v| < 2^31; adding the float below 1/2 cannot reach the next integer from below it.
KVANT_INLINE vi rounded_away(vf v) {
    const vi away = (as_int(v) & (int)0x80000000) | as_int(splat(0.49999997f));
    return to_int(v + as_float(away));
}

// Bit k: lane k is negative.
KVANT_INLINE uint32_t sign_bits(vi a) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)a);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)a);
#elif defined(__SSE2__)
    return (uint32_t)_mm_movemask_ps((__m128)a);
#else
    uint32_t bits = 0;
    for (int k = 0; k < W; ++k) bits |= (uint32_t)(a[k] < 0) << k;
    return bits;
#endif
}

// Sixteen lanes (16 / W vectors), each -128 .. 127 or each 0 .. 255, as bytes.
template <bool is_signed>
KVANT_INLINE void store_bytes(uint8_t* p, const vi* a) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)a[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)a[0], (__m256i)a[1]), 0xd8);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128((__m128i*)p, is_signed ? _mm_packs_epi16(low, high) : _mm_packus_epi16(low, high));
#elif defined(__SSE2__)
    const __m128i low = _mm_packs_epi32((__m128i)a[0], (__m128i)a[1]),
                  high = _mm_packs_epi32((__m128i)a[2], (__m128i)a[3]);
    _mm_storeu_si128((__m128i*)p, is_signed ? _mm_packs_epi16(low, high) : _mm_packus_epi16(low, high));
#else
    for (int i = 0; i < 16; ++i) p[i] = (uint8_t)a[i / W][i % W];
#endif
}

// largest[k] = the largest lane of v[k], 16 vectors: a transposition that keeps only the larger of each pair.
KVANT_INLINE void largest_lanes(const vi* v, vi* largest) {
    for (int part = 0; part < 16 / W; ++part) {
        vf a[W];
        for (int k = 0; k < W; ++k) a[k] = as_float(v[part * W + k]);
        for (int count = W / 2; count >= 1; count /= 2) {
            for (int i = 0; i < count; ++i) {
                vf low, high;
                detail::interleave(a[i], a[i + count], low, high);
                a[i] = as_float(imax(as_int(low), as_int(high)));
            }
        }
        largest[part] = as_int(a[0]);
    }
}

}  // namespace kvant::KVANT_NS
