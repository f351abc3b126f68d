// float32 <-> float16 (IEEE binary16), a vector at a time and one at a time: round to nearest, ties to even.
//
// A NaN becomes sign | 0x7e00, as in ggml, at every level.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

// Halves in the low 16 bits of each lane.
KVANT_INLINE vi to_half(vf a) {
    const vi bits = as_int(a);
    const vi sign = (bits >> 16) & 0x8000;
    const vi magnitude = bits & 0x7fffffff;
    // Adding a power of two 13 binades up lets the float unit round to 10 bits; the smallest normal half is the floor.
    const vi exponent = imax(magnitude & 0x7f800000, splat(0x38800000));
    // Four times the value (so that the exponent's low five bits come out right), with what is too large made infinite.
    const vf scaled = (as_float(magnitude) * 0x1p112f) * 0x1p-110f;
    const vi raised = (vi)((vu)exponent + (15u << 23));  // unsigned: beyond every float for infinity and NaN
    const vi rounded = as_int(as_float(raised) + scaled);
    const vi half = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
    return sign | select(magnitude > 0x7f800000, splat(0x7e00), half);
}

KVANT_INLINE vf from_half(vi h) {
    const vi sign = (h & 0x8000) << 16;
    const vi rest = (h & 0x7fff) << 13;
    // Normal: move the exponent's bias by a multiplication, exact also for subnormal halves; all-ones stays all-ones.
    const vf normal = as_float(rest) * 0x1p112f;
    const vi special = as_int(normal) | 0x7f800000;
    return as_float(sign | select(rest >= (0x7c00 << 13), special, as_int(normal)));
}

}  // namespace kvant::KVANT_NS
