// Rows of float16 and bfloat16 to and from float32, and single halves: with the F16C unit where there is one.
//
// Results equal ggml's: round to nearest even, every NaN written as sign | 0x7e00 (F16) or made quiet (BF16),
// every NaN read made quiet with its payload kept.
#pragma once
#include "kvant/half.h"
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

KVANT_INLINE float half_value(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    const uint32_t rest = (uint32_t)(h & 0x7fff) << 13;
    float value;
    memcpy(&value, &rest, 4);
    value *= 0x1p112f;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (rest >= 0x0f800000) bits |= rest > 0x0f800000 ? 0x7fc00000 : 0x7f800000;
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&value, &bits, 4);
    return value;
#endif
}

KVANT_INLINE float half_at(const uint8_t* p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half_value(h);
}

// The low 16 bits of each lane, in order.
KVANT_INLINE void store_low_halves(uint8_t* p, vi a) {
#if defined(__AVX512F__)
    const __m256i packed = _mm512_cvtepi32_epi16((__m512i)a);
    memcpy(p, &packed, 32);
#elif defined(__AVX2__)
    const __m256i words = _mm256_and_si256((__m256i)a, _mm256_set1_epi32(0xffff));
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    memcpy(p, &packed, 16);
#elif defined(__SSE2__)
    const __m128i words =
        _mm_srai_epi32(_mm_slli_epi32((__m128i)a, 16), 16);  // so that signed saturation keeps the bits
    _mm_storel_epi64((__m128i*)p, _mm_packs_epi32(words, words));
#else
    for (int k = 0; k < W; ++k) {
        const uint16_t value = (uint16_t)a[k];
        memcpy(p + 2 * k, &value, 2);
    }
#endif
}

KVANT_INLINE vi load_low_halves(const uint8_t* p) {
#if defined(__SSE2__) && !defined(__AVX2__)
    return (vi)_mm_unpacklo_epi16(_mm_loadl_epi64((const __m128i*)p), _mm_setzero_si128());
#else
    uint16_t half[W];
    memcpy(half, p, sizeof half);
    vi a;
    for (int k = 0; k < W; ++k) a[k] = half[k];
    return a;
#endif
}

KVANT_INLINE uint16_t half_bits_of(float a) { return (uint16_t)to_half(splat(a))[0]; }

KVANT_INLINE vf load_f16(const uint8_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    const vi bits = load_low_halves(p);
    const vi quiet = select((bits & 0x7fff) > 0x7c00, splat(0x00400000), vi{});
    return as_float(as_int(from_half(bits)) | quiet);
#endif
}

KVANT_INLINE void store_f16(uint8_t* p, vf a) {
#if defined(__F16C__)
    if (!any(a != a)) {
#if defined(__AVX512F__)
        _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)a, _MM_FROUND_TO_NEAREST_INT));
#else
        _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)a, _MM_FROUND_TO_NEAREST_INT));
#endif
        return;
    }
#endif
    store_low_halves(p, to_half(a));
}

KVANT_INLINE vf load_bf16(const uint8_t* p) {
#if defined(__AVX512F__)
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif defined(__AVX2__)
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    return as_float(load_low_halves(p) << 16);
#endif
}

KVANT_INLINE void store_bf16(uint8_t* p, vf a) {
    const vi bits = as_int(a);
    const vi high = (bits >> 16) & 0xffff;
    const vi rounded = (vi)(((vu)bits + 0x7fff + (vu)(high & 1)) >> 16);
    store_low_halves(p, select((bits & 0x7fffffff) > 0x7f800000, high | 64, rounded));
}

}  // namespace kvant::KVANT_NS
