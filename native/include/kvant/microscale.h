// Shared scales of MXFP4 (a power of two, E8M0) and NVFP4 (unsigned E4M3). Both tables of values are doubled, so
// decoders multiply by half the scale. Source: ggml-impl.h `ggml_e8m0_to_fp32_half`, `ggml_ue4m3_to_fp32`,
// `ggml_fp32_to_ue4m3`.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

// 2^(e - 128).
KVANT_INLINE float half_power(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Half the value of an E4M3 code; 0x7f counts as 0. Eight significand steps per binade, the first binade without a
// leading 1.
KVANT_INLINE float half_e4m3(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if (code == 0x7f) return 0.f;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    const uint32_t bits = (uint32_t)(exponent - 11 + 127) << 23;
    float step;
    memcpy(&step, &bits, 4);
    return (float)(8 + mantissa) * step;
}

// Unsigned E4M3 code of each lane, halves upward; 448 and more saturate at 0x7e, what is not above 0 (NaN too) becomes
// 0.
KVANT_INLINE vi to_e4m3(vf x) {
    const vi positive = x > 0.f;
    x = select(positive, x, vf{});
    x = select(x > 448.f, splat(448.f), x);
    const vi bits = as_int(x);
    const vi exponent = (bits >> 23) - 120;
    const vi tiny = imin(to_int(select(exponent <= 0, x, vf{}) * 512.f + 0.5f), splat(7));
    const vi normal = ((exponent << 3) | (bits >> 20 & 7)) + (bits >> 19 & 1);
    return select(exponent <= 0, tiny, select(normal >= (15 << 3), splat(0x7e), normal));
}

}  // namespace kvant::KVANT_NS
