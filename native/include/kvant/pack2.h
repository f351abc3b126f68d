// Two-bit codes of 256 weights, as Q2_K and Q3_K store them: per half, byte i holds weights i, i + 32, i + 64, i + 96.
#pragma once
#include "kvant/tiles.h"

namespace kvant::KVANT_NS {

// Takes the low two bits of each code; writes 16 words.
KVANT_INLINE void pack_pairs(const vi* codes, vi* words) {
    for (int half = 0; half < 2; ++half) {
        const vi* q = codes + 128 * half;
        vi bytes[32];
        for (int i = 0; i < 32; ++i)
            bytes[i] = (q[i] & 3) | ((q[i + 32] & 3) << 2) | ((q[i + 64] & 3) << 4) | ((q[i + 96] & 3) << 6);
        pack_bytes(bytes, 32, words + 8 * half);
    }
}

}  // namespace kvant::KVANT_NS
