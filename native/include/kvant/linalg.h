// Matrix products and Cholesky factors whose bytes depend on shapes alone: the kernels that native/src/products.h
// joins.
//
// An element of a product is reduced over k in panels of 256: a panel is a sum from zero in the order of k, one rounded
// product and one rounded sum at a time, and panels are added in their order. Lanes are output columns, so neither the
// width of a vector nor the tile nor the thread can change a bit.
#pragma once
#include <cstdint>

namespace kvant {

constexpr int64_t panel_steps = 256;   // of the sum over k
constexpr int64_t tile_size = 192;     // rows and columns of a tile of the output; whole micro-tiles at every level
constexpr int64_t factor_width = 192;  // columns of a panel of a Cholesky factor; one panel of the sum

// Rows to be multiplied: element (i, k) is data[i * row_stride + k * step_stride].
template <class T> struct Operand {
    const T* data;
    int64_t row_stride, step_stride;
};

// Micro-tiles are mr x nr. `pack_a` and `pack_b` lay `count` <= mr or nr rows out as [k][mr] or [k][nr], zeros beyond
// `count`, every element negated if asked. `multiply` takes packed micro-panels one behind another and adds their
// product to rows x cols of c, or overwrites them.
template <class T, class C> struct ProductKernels {
    int mr, nr;
    void (*pack_a)(const Operand<T>& rows, int64_t count, int64_t k, bool negate, T* out);
    void (*pack_b)(const Operand<T>& rows, int64_t count, int64_t k, bool negate, T* out);
    void (*multiply)(const T* a, const T* b, int64_t k, int64_t rows, int64_t cols, C* c, int64_t stride,
                     bool overwrite);
};

// Factors of one diagonal block, n <= factor_width, lower and in place; rows are `stride` apart.
struct FactorKernels {
    // a = L L^T; returns the column whose pivot is not a positive finite number, or -1.
    int64_t (*cholesky)(double* a, int64_t n, int64_t stride);
    // Each of `rows` rows of x, `stride` apart, becomes x L^-T; columns[j * n + i] is L[i][j].
    void (*solve)(const double* columns, int64_t n, double* x, int64_t stride, int64_t rows);
    // L becomes its inverse, and what is above the diagonal zero.
    void (*invert)(double* l, int64_t n, int64_t stride);
};

struct LinearKernels {
    ProductKernels<float, float> single;
    ProductKernels<float, double> widening;  // panels summed in float, added up in double
    ProductKernels<double, double> wide;
    FactorKernels factors;
};

namespace baseline {
LinearKernels linear_kernels();
}
namespace avx2 {
LinearKernels linear_kernels();
}
namespace avx512 {
LinearKernels linear_kernels();
}

}  // namespace kvant
