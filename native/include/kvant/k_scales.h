// The 6-bit scales and minima of Q4_K and Q5_K: eight of each in 12 bytes.
#pragma once
#include "kvant/affine_search.h"
#include "kvant/half.h"

namespace kvant::KVANT_NS {

struct SubScale {
    vf scale, minimum;
};

struct KScales {
    vi d, dmin;  // halves
    vi bytes[12];

    // Words 0-3 of the block: d, dmin and the 12 bytes.
    KVANT_MEMBER void pack(vi* words) const {
        words[0] = d | (dmin << 16);
        for (int i = 0; i < 3; ++i) {
            const vi* b = bytes + 4 * i;
            words[1 + i] = b[0] | (b[1] << 8) | (b[2] << 16) | (b[3] << 24);
        }
    }

    // What a decoder will multiply sub-block j by, and subtract.
    KVANT_MEMBER SubScale stored(int j) const {
        const vi s = j < 4 ? bytes[j] & 63 : (bytes[j + 4] & 15) | ((bytes[j - 4] >> 6) << 4);
        const vi m = j < 4 ? bytes[j + 4] & 63 : (bytes[j + 4] >> 4) | ((bytes[j] >> 6) << 4);
        return {from_half(d) * to_float(s), from_half(dmin) * to_float(m)};
    }
};

// Lay out eight scales and minima, each a byte (only the low six bits are meant to be in use).
KVANT_INLINE KScales pack_scales(vi d, vi dmin, const vi* ls, const vi* lm) {
    KScales r;
    r.d = d;
    r.dmin = dmin;
    for (int j = 0; j < 4; ++j) {
        r.bytes[j] = (ls[j] | ((ls[j + 4] >> 4) << 6)) & 0xff;
        r.bytes[j + 4] = (lm[j] | ((lm[j + 4] >> 4) << 6)) & 0xff;
        r.bytes[j + 8] = (ls[j + 4] & 15) | ((lm[j + 4] & 15) << 4);
    }
    return r;
}

// Round the scales found without importance: each relative to the largest, in 63 steps.
static inline KScales round_scales(const Affine* found) {
    vf max_scale = vf{}, max_minimum = vf{};
    for (int j = 0; j < 8; ++j) {
        max_scale = vmax(found[j].scale, max_scale);
        max_minimum = vmax(found[j].minimum, max_minimum);
    }
    const vf inverse_scale = select(max_scale > 0.f, 63.f / max_scale, vf{});
    const vf inverse_minimum = select(max_minimum > 0.f, 63.f / max_minimum, vf{});
    vi ls[8], lm[8];
    for (int j = 0; j < 8; ++j) {
        ls[j] = imin(splat(63), nearest(inverse_scale * found[j].scale) & 0xff);
        lm[j] = imin(splat(63), nearest(inverse_minimum * found[j].minimum) & 0xff);
    }
    return pack_scales(to_half(max_scale / 63.f), to_half(max_minimum / 63.f), ls, lm);
}

}  // namespace kvant::KVANT_NS
