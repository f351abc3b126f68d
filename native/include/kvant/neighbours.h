// Which points of a codebook a group of weights may become, by the levels that its weights are nearest to.
//
// ggml rounds the weights of a group to levels one by one. If they are then no point of the codebook, it tries the
// points nearest to them: all at the smallest few distances, nearest first and then in the order of the codebook
// (ggml-quants.c `iq2xs_init_impl`, `iq3xs_init_impl`). The order counts where two points have the same error.
#pragma once
#include <cstdint>

namespace kvant {

// Groups of eight weights of three levels, or four weights of eight.
enum class Codebook { iq1, iq2_xxs, iq2_xs, iq2_s, iq3_xxs, iq3_s };

struct Cell {
    uint32_t first;  // its neighbours begin here
    uint16_t count;  // 0: the levels are a point
    uint16_t point;  // which one
};

struct Neighbours {
    const Cell* cells;       // by levels, as a number in base 3 or 8, lowest weight first
    const uint16_t* points;  // neighbours as numbers of points
    const uint16_t* codes;   // the same as codes of codebooks.h; 16 may be read from any neighbour on
};

// Built when first asked for, in any thread; takes at most some 40 ms. Throws std::bad_alloc.
const Neighbours& neighbours(Codebook codebook);

}  // namespace kvant
