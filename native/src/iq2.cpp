// IQ2_XXS, IQ2_XS and IQ2_S: groups of eight weights are points of three levels, the scale of each 16 or 32 weights
// searched.
#include "kvant/grid_search.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

namespace {

struct Iq2Xxs : GridType<codebooks::iq2xxs_codes, Codebook::iq2_xxs, 3, 32, true> {
    static constexpr int trials = 13, first = -6, joined = 3;
    static constexpr float step = 0.1f, variance = 1.f / 256, smallest = 1e-15f, correction = 1.f;
    static constexpr Again again = Again::always;
    static constexpr bool clears = true;
    static KVANT_MEMBER vf unweighted(vf, vf square) { return square; }
    // The trials begin from the scale of codes 0 .. 4 with every point allowed.
    static KVANT_MEMBER void start(Run<Iq2Xxs>& run, vf& reach, vi& empty) {
        vi codes[32];
        run.scale = search_scale<32, 4>(run.x, run.w, codes);
        reach = run.scale * 3.f;
        empty |= reach <= 0.f;
    }
};

struct Iq2Xs : GridType<codebooks::iq2xs_codes, Codebook::iq2_xs, 3, 16, true> {
    static constexpr int trials = 19, first = -9, joined = 3;
    static constexpr float step = 0.1f, variance = 1.f / 256, smallest = 1e-15f, correction = 1.f;
    static constexpr Again again = Again::off_grid;
    static constexpr bool clears = true;
    static KVANT_MEMBER vf unweighted(vf, vf square) { return square; }
    static KVANT_MEMBER void start(Run<Iq2Xs>& run, vf& reach, vi&) { start_at_highest(run, reach); }
};

struct Iq2S : GridType<codebooks::iq2s_codes, Codebook::iq2_s, 3, 16, false> {
    static constexpr int trials = 19, first = -9;
    static constexpr float step = 0.1f, variance = 2.f / 256, smallest = 1e-8f, correction = 0.9875f;
    static constexpr Again again = Again::off_grid;
    static constexpr bool clears = false;
    static KVANT_MEMBER vf unweighted(vf variance, vf square) { return 0.25f * variance + square; }
    static KVANT_MEMBER void start(Run<Iq2S>& run, vf& reach, vi&) { start_at_highest(run, reach); }
};

// Sixteen steps of 4 bits.
KVANT_INLINE void pack_steps(const vi* step, vi* words) {
    vi bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = step[2 * i] | step[2 * i + 1] << 4;
    pack_bytes(bytes, 8, words);
}

// Per run four indices of 8 bits, then four times seven signs and a step of 4 bits.
void lay_out(const Found<Iq2Xxs>& found, vi* words) {
    for (int r = 0; r < 8; ++r) {
        const vi* s = found.signs + 4 * r;
        pack_bytes(found.point + 4 * r, 4, words + 2 * r);
        words[2 * r + 1] = s[0] | s[1] << 7 | s[2] << 14 | s[3] << 21 | found.step[r] << 28;
    }
}

// 32 times an index of 9 bits and seven signs; steps.
void lay_out(const Found<Iq2Xs>& found, vi* words) {
    for (int i = 0; i < 16; ++i) {
        const vi *p = found.point + 2 * i, *s = found.signs + 2 * i;
        words[i] = p[0] | s[0] << 9 | p[1] << 16 | s[1] << 25;
    }
    pack_steps(found.step, words + 16);
}

// Low bits of 32 indices, 32 bytes of signs, two more bits of the indices; steps.
void lay_out(const Found<Iq2S>& found, vi* words) {
    vi low[32];
    for (int i = 0; i < 32; ++i) low[i] = found.point[i] & 255;
    pack_bytes(low, 32, words);
    pack_bytes(found.signs, 32, words + 8);
    words[16] = words[17] = vi{};
    for (int i = 0; i < 32; ++i) words[16 + i / 16] |= (found.point[i] >> 8) << (2 * (i % 16));
    pack_steps(found.step, words + 18);
}

}  // namespace

void encode_iq2_xxs_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_grid<Iq2Xxs, 66>(x, n, rows, importance, out, [](const auto& found, vi* words) { lay_out(found, words); });
}
void encode_iq2_xs_weighted(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_grid<Iq2Xs, 74>(x, n, rows, importance, out, [](const auto& found, vi* words) { lay_out(found, words); });
}
void encode_iq2_s(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_grid<Iq2S, 82>(x, n, rows, importance, out, [](const auto& found, vi* words) { lay_out(found, words); });
}

}  // namespace kvant::KVANT_NS
