// Rounding under a full Hessian: what the kernels of native/src/fit.cpp take and give.
#pragma once
#include <cstdint>

namespace kvant {

// Columns that answer each other's errors at once; the others are told when all of them are done.
constexpr int64_t fit_chunk = 256;

// A matrix to be rounded: minimise (v - w) H (v - w)^T in every row.
struct FitProblem {
    int64_t n;               // weights per row, whole blocks
    const float* weights;    // [rows][n]
    const float* hessian;    // [n][n], symmetric positive definite
    const float* feedback;   // [n][n], symmetric: element (i, j), j < i, is what an error at column j asks of column i
    const float* curvature;  // [n], what an error at column j costs once all later columns have answered it
    const float* local;      // [chunks][fit_chunk][fit_chunk], what errors there cost once later chunks have answered
    int sweeps;              // passes of descent over all columns after the first rounding
};

// A rounded matrix as numbers; packing them is another's work. Runs are the parts of a block with a scale of their own.
struct FitResult {
    uint8_t* codes;  // [rows][n], from 0 on; codebook types: the level's number, plus 128 where the weight is negative
    int8_t* scales;  // [rows][runs], integer scales; untouched where the block has a single run
    uint8_t* minimums;  // [rows][runs], integer minimums; likewise
    uint16_t* d;        // [rows][blocks], float16
    uint16_t* dmin;     // [rows][blocks], float16; untouched where the type has no minimum
    float* wide;  // [rows][blocks], scales of ONNX's types, which are float32; their zero points are in `minimums`
    float* loss;  // [rows], the error that is left
};

// Rows that are worked on together: a piece of work has no more of them.
constexpr int64_t fit_rows = 64;

// Floats of scratch memory that `fit` needs for rows of n weights.
inline int64_t fit_scratch(int64_t n) {
    return (5 * n + 256 + 4 * (n / 16 + 1) + 2 * (n / 32 + 1)) * fit_rows + 24 * n + 64 + 256 + 16 * 256;
}

// Round rows [first, end), `fit_rows` at most.
using FitFn = void (*)(const FitProblem& problem, int64_t first, int64_t end, float* scratch, const FitResult& result);

// Types without a number in ggml: codes of `bits` bits, scale and offset as halves, `group` weights each.
constexpr int affine_id(int bits, int group) { return 100 * group + bits; }
// Number of an ONNX type, MatMulNBits, beside ggml's: bits, weights per block, and whether its zero point is fixed.
constexpr int nbits_id(int bits, int block, bool symmetric) {
    return 1 << 16 | bits << 12 | block << 1 | (int)symmetric;
}

struct FitKernel {
    int id, run, block_length;  // id: ggml's, or affine_id
    bool has_minimum;
    FitFn fit;
};

}  // namespace kvant
