// Which instruction-set levels this processor and its operating system can run.
#pragma once
#include <cstdint>
#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#endif

namespace kvant {

struct CpuFeatures {
    bool avx2, avx512;
};

#if defined(__x86_64__) || defined(_M_X64)
// Source: Intel SDM vol. 2A CPUID (leaves 1 and 7), vol. 1 ch. 13 XGETBV. The operating system must save the registers.
inline CpuFeatures cpu_features() {
    const auto bits = [](uint32_t value, uint32_t mask) { return (value & mask) == mask; };
    uint32_t a = 0, b = 0, c = 0, d = 0;
    constexpr uint32_t osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bits(c, osxsave | avx | f16c)) return {false, false};
    uint32_t saved, high;
    __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    constexpr uint32_t ymm = 0x6, zmm = 0xe6;  // SSE and AVX state; and masks, upper halves, upper sixteen
    if (!bits(saved, ymm) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {false, false};
    constexpr uint32_t avx2 = 1u << 5, avx512 = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    return {bits(b, avx2), bits(saved, zmm) && bits(b, avx2 | avx512)};
}
#endif

}  // namespace kvant
