// IQ3_XXS and IQ3_S: groups of four weights are points of eight levels, the scale of each 32 weights searched.
#include "kvant/grid_search.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

namespace {

struct Iq3Xxs : GridType<codebooks::iq3xxs_codes, Codebook::iq3_xxs, 8, 32, true> {
    static constexpr int trials = 31, first = -15;
    static constexpr float step = 0.2f, variance = 2.f / 256, smallest = 1e-8f, correction = 1.0125f;
    static constexpr Again again = Again::off_grid;
    static constexpr bool clears = true;
    static KVANT_MEMBER vf unweighted(vf, vf square) { return square; }
    static KVANT_MEMBER void start(Run<Iq3Xxs>& run, vf& reach, vi&) { start_at_highest(run, reach); }
};

struct Iq3S : GridType<codebooks::iq3s_codes, Codebook::iq3_s, 8, 32, false> {
    static constexpr int trials = 19, first = -9;
    static constexpr float step = 0.2f, variance = 2.f / 256, smallest = 0, correction = 1.033f;
    static constexpr Again again = Again::all_if_any;
    static constexpr bool clears = false;
    static KVANT_MEMBER vf unweighted(vf, vf square) { return square; }
    static KVANT_MEMBER void start(Run<Iq3S>& run, vf& reach, vi&) { start_at_highest(run, reach); }
};

// 64 indices of 8 bits, and per run four times seven signs and a step of 4 bits.
void lay_out(const Found<Iq3Xxs>& found, vi* words) {
    pack_bytes(found.point, 64, words);
    for (int r = 0; r < 8; ++r) {
        const vi* s = found.signs + 4 * r;
        words[16 + r] = s[0] | s[1] << 7 | s[2] << 14 | s[3] << 21 | found.step[r] << 28;
    }
}

// ggml passes over a run of zeros without leaving its place, so that what follows moves up, but for the ninth bits.
void close_gaps(const Found<Iq3S>& found, vi* low, vi* signs) {
    for (int k = 0; k < W; ++k) {
        int to = 0;
        for (int r = 0; r < 8; ++r) {
            if (found.empty[r][k]) continue;
            for (int i = 0; i < 8; ++i) low[8 * to + i][k] = low[8 * r + i][k];
            for (int i = 0; i < 4; ++i) signs[4 * to + i][k] = signs[4 * r + i][k];
            ++to;
        }
        for (int i = 8 * to; i < 64; ++i) low[i][k] = 0;
        for (int i = 4 * to; i < 32; ++i) signs[i][k] = 0;
    }
}

// Low bits of 64 indices, their ninth bits, 32 bytes of signs, 8 steps of 4 bits.
void lay_out(const Found<Iq3S>& found, vi* words) {
    vi low[64], signs[32], empty{};
    for (int i = 0; i < 64; ++i) low[i] = found.point[i] & 255;
    for (int i = 0; i < 32; ++i) signs[i] = found.signs[i];
    for (int r = 0; r < 8; ++r) empty |= found.empty[r];
    if (any(empty)) close_gaps(found, low, signs);
    pack_bytes(low, 64, words);
    words[16] = words[17] = words[26] = vi{};
    for (int i = 0; i < 64; ++i) words[16 + i / 32] |= (found.point[i] >> 8) << (i % 32);
    pack_bytes(signs, 32, words + 18);
    for (int r = 0; r < 8; ++r) words[26] |= found.step[r] << (4 * r);
}

}  // namespace

void encode_iq3_xxs(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_grid<Iq3Xxs, 98>(x, n, rows, importance, out, [](const auto& found, vi* words) { lay_out(found, words); });
}
void encode_iq3_s(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out) {
    encode_grid<Iq3S, 110>(x, n, rows, importance, out, [](const auto& found, vi* words) { lay_out(found, words); });
}

}  // namespace kvant::KVANT_NS
