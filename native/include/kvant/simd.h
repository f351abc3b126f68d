// Vectors of W floats or 32-bit integers: GCC/Clang vector extensions, and the few operations these lack.
//
// Every operation is the IEEE one (divisions and roots are exact, nothing is fused), so a lane computes what scalar
// code computes. `vmin(a, b)` is `a < b ? a : b` and `vmax(a, b)` is `a > b ? a : b`, NaN included.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

#ifndef KVANT_NS
#error "KVANT_NS names the instruction-set level this source is compiled for"
#endif
#define KVANT_UNROLL(n) KVANT_PRAGMA(GCC unroll n)
#define KVANT_PRAGMA(text) _Pragma(#text)
#define KVANT_MEMBER inline __attribute__((always_inline))
#define KVANT_INLINE static KVANT_MEMBER

namespace kvant::KVANT_NS {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));

KVANT_INLINE vf splat(float a) { return a - vf{}; }
KVANT_INLINE vi splat(int a) { return a - vi{}; }
KVANT_INLINE vi as_int(vf a) { return (vi)a; }
KVANT_INLINE vf as_float(vi a) { return (vf)a; }
KVANT_INLINE vf to_float(vi a) { return __builtin_convertvector(a, vf); }
KVANT_INLINE vi to_int(vf a) { return __builtin_convertvector(a, vi); }  // toward zero; |a| < 2^31
KVANT_INLINE vf load(const float* p) {
    vf a;
    memcpy(&a, p, sizeof a);
    return a;
}
KVANT_INLINE void store(float* p, vf a) { memcpy(p, &a, sizeof a); }
KVANT_INLINE vf vabs(vf a) { return as_float(as_int(a) & 0x7fffffff); }

// Masks: -1 or 0 per lane.
KVANT_INLINE vf select(vi mask, vf a, vf b) { return mask ? a : b; }
KVANT_INLINE vi select(vi mask, vi a, vi b) { return mask ? a : b; }
KVANT_INLINE vi imin(vi a, vi b) { return a < b ? a : b; }
KVANT_INLINE vi imax(vi a, vi b) { return a > b ? a : b; }

#if defined(__AVX512F__)
KVANT_INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
KVANT_INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
KVANT_INLINE vf vsqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
KVANT_INLINE bool any(vi mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
KVANT_INLINE bool all(vi mask) { return _mm512_movepi32_mask((__m512i)mask) == 0xffff; }
#elif defined(__AVX2__)
KVANT_INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
KVANT_INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
KVANT_INLINE vf vsqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
KVANT_INLINE bool any(vi mask) { return _mm256_movemask_ps((__m256)mask) != 0; }
KVANT_INLINE bool all(vi mask) { return _mm256_movemask_ps((__m256)mask) == 0xff; }
#elif defined(__SSE2__)
KVANT_INLINE vf vmin(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
KVANT_INLINE vf vmax(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
KVANT_INLINE vf vsqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
KVANT_INLINE bool any(vi mask) { return _mm_movemask_ps((__m128)mask) != 0; }
KVANT_INLINE bool all(vi mask) { return _mm_movemask_ps((__m128)mask) == 0xf; }
#else
KVANT_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
KVANT_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
KVANT_INLINE vf vsqrt(vf a) {
    for (int i = 0; i < W; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
KVANT_INLINE bool any(vi mask) {
    int r = 0;
    for (int i = 0; i < W; ++i) r |= mask[i];
    return r != 0;
}
KVANT_INLINE bool all(vi mask) {
    int r = -1;
    for (int i = 0; i < W; ++i) r &= mask[i];
    return r != 0;
}
#endif

// Round to the nearest integer, ties to even, as ggml's nearest_int does: exact for |a| <= 4194303, and outside
// of that (or for NaN) the same wrapped value.
constexpr float magic = 12582912.f;  // 1.5 * 2^23
KVANT_INLINE vi nearest(vf a) { return (as_int(a + magic) & 0x007fffff) - 0x00400000; }

// Round and clamp to [low, high]. Equals clamping nearest(a) while |a| <= 4194303: a + magic is then a positive float,
// and those compare as integers do, for which there are more execution units.
KVANT_INLINE vf nearest_clamped(vf a, float low, float high) {
#if defined(__AVX2__)
    const vi bits = as_int(a + magic);
    return as_float(imin(imax(bits, as_int(splat(magic + low))), as_int(splat(magic + high)))) - magic;
#else
    return vmin(vmax(a + magic, splat(magic + low)), splat(magic + high)) - magic;
#endif
}

// The same with only the upper bound.
KVANT_INLINE vf nearest_below(vf a, float high) {
#if defined(__AVX2__)
    return as_float(imin(as_int(a + magic), as_int(splat(magic + high)))) - magic;
#else
    return vmin(a + magic, splat(magic + high)) - magic;
#endif
}

// Transpose W vectors in place: out[i][k] = in[k][i].
namespace detail {
KVANT_INLINE void interleave(vf a, vf b, vf& low, vf& high) {
#if defined(__AVX512F__)
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}
}  // namespace detail

KVANT_INLINE void transpose(vf* a) {
    vf b[W];
    for (int step = 1; step < W; step *= 2) {
        for (int i = 0; i < W / 2; ++i) detail::interleave(a[i], a[i + W / 2], b[2 * i], b[2 * i + 1]);
        for (int i = 0; i < W; ++i) a[i] = b[i];
    }
}

}  // namespace kvant::KVANT_NS
