// Groups of eight bytes (four at the baseline level, where registers hold no more) and the weights they become.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

constexpr int G = W < 8 ? 4 : 8;

typedef float group_f __attribute__((vector_size(G * 4)));
typedef int32_t group_i __attribute__((vector_size(G * 4)));

// G bytes as integers. GCC 12 converts vectors of eight bytes through general registers, so x86 is spelt out.
KVANT_INLINE group_i load_group(const uint8_t* p) {
#if defined(__AVX2__)
    return (group_i)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#elif defined(__SSE2__)
    int32_t word;
    memcpy(&word, p, 4);
    const __m128i zero = _mm_setzero_si128();
    return (group_i)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(word), zero), zero);
#else
    group_i values;
    for (int i = 0; i < G; ++i) values[i] = p[i];
    return values;
#endif
}

KVANT_INLINE group_f to_floats(group_i a) { return __builtin_convertvector(a, group_f); }
KVANT_INLINE void store_group(float* p, group_f a) { memcpy(p, &a, sizeof a); }

// Masks: bit `first` + k of `bits` for weight k.
KVANT_INLINE group_i bit_mask(uint32_t bits, int first) {
#if defined(__AVX2__)
    const group_i bit = {1, 2, 4, 8, 16, 32, 64, 128};
#else
    const group_i bit = {1, 2, 4, 8};
#endif
    return ((int32_t)(bits >> first) & bit) == bit;
}

}  // namespace kvant::KVANT_NS
