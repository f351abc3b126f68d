// Sums and exponentials over rows whose bytes depend on shapes alone: the kernels of native/src/rowwise.cpp.
//
// A sum over a row goes into 16 lanes, element i into lane i mod 16, in float64; lanes are then added in halves.
// Exponentials are polynomials in float32. Nothing is fused.
#pragma once
#include <cstdint>

namespace kvant {

struct RowwiseKernels {
    // out[r] is the sum over i of a[r][i] b[r][i], products exact.
    void (*dot)(const float* a, const float* b, int64_t rows, int64_t n, double* out);
    // Every row becomes exp(x) / its sum. With `period` row r counts its first (first + r) % period + 1 elements only;
    // others become zero.
    void (*softmax)(float* x, int64_t first, int64_t rows, int64_t n, int64_t period);
    // out = 1 / (1 + exp(-x))
    void (*sigmoid)(const float* x, int64_t count, float* out);
};

namespace baseline {
RowwiseKernels rowwise_kernels();
}
namespace avx2 {
RowwiseKernels rowwise_kernels();
}
namespace avx512 {
RowwiseKernels rowwise_kernels();
}

}  // namespace kvant
