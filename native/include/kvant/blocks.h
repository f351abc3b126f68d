// Block layouts. Source: ggml-common.h `block_*` (ggml 0.26). Halves are stored as their bits, little-endian.
#pragma once
#include <cstdint>

namespace kvant {

using half_bits = uint16_t;

// clang-format off: one row per block type

// Legacy types: 32 weights, one scale (and minimum).
struct block_q4_0 { half_bits d; uint8_t qs[16]; };                                    // 4.5 bpw: w = (q - 8) d
struct block_q4_1 { half_bits d, m; uint8_t qs[16]; };                                 // 5.0 bpw: w = q d + m
struct block_q5_0 { half_bits d; uint8_t qh[4]; uint8_t qs[16]; };                     // 5.5 bpw: w = (q - 16) d
struct block_q5_1 { half_bits d, m; uint8_t qh[4]; uint8_t qs[16]; };                  // 6.0 bpw: w = q d + m
struct block_q8_0 { half_bits d; int8_t qs[32]; };                                     // 8.5 bpw: w = q d
static_assert(sizeof(block_q4_0) == 18 && sizeof(block_q4_1) == 20);
static_assert(sizeof(block_q5_0) == 22 && sizeof(block_q5_1) == 24);
static_assert(sizeof(block_q8_0) == 34);

// K-quants: 256 weights in sub-blocks of 16 or 32, whose scales are themselves quantized.
struct block_q2_K { uint8_t scales[16]; uint8_t qs[64]; half_bits d, dmin; };          // 2.625 bpw: w = q d s - dmin m
struct block_q3_K { uint8_t hmask[32]; uint8_t qs[64]; uint8_t scales[12]; half_bits d; };  // 3.4375 bpw: w = (q - 4) d (s - 32)
struct block_q4_K { half_bits d, dmin; uint8_t scales[12]; uint8_t qs[128]; };         // 4.5 bpw: w = q d s - dmin m
struct block_q5_K { half_bits d, dmin; uint8_t scales[12]; uint8_t qh[32]; uint8_t qs[128]; };  // 5.5 bpw: w = q d s - dmin m
struct block_q6_K { uint8_t ql[128]; uint8_t qh[64]; int8_t scales[16]; half_bits d; };  // 6.5625 bpw: w = (q - 32) d s
static_assert(sizeof(block_q2_K) == 84 && sizeof(block_q3_K) == 110);
static_assert(sizeof(block_q4_K) == 144 && sizeof(block_q5_K) == 176);
static_assert(sizeof(block_q6_K) == 210);
// clang-format on

}  // namespace kvant
