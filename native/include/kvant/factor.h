// The Cholesky factor of a matrix of any size, joined from blocks.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "kvant/products.h"

namespace kvant {

// h = L L^T in place, lower; zero above. Panels of columns: factor the diagonal block, solve the rows below it, take
// their products out of what is left. Returns the column whose pivot is not positive, or -1.
//
// Those products are all but the whole work. `in_floats` has them take the panel rounded to floats, sums of one panel
// in floats too, and adds these up in doubles: half the time, for an error of some 1e-7 of the diagonal elements.
inline int64_t factor(const LinearKernels& kernels, double* h, int64_t n, int threads, bool in_floats = false) {
    std::vector<double> columns(factor_width * factor_width);
    std::vector<float> rounded(in_floats && n > factor_width ? (n - factor_width) * factor_width : 0);
    for (int64_t first = 0; first < n; first += factor_width) {
        const int64_t width = std::min(factor_width, n - first), next = first + width, below = n - next;
        double* block = h + first * n + first;
        const int64_t bad = kernels.factors.cholesky(block, width, n);
        if (bad >= 0) return first + bad;
        for (int64_t i = 0; i < width; ++i)
            for (int64_t j = 0; j <= i; ++j) columns[j * width + i] = block[i * n + j];
        constexpr int64_t piece = 32;
        over_items((below + piece - 1) / piece, threads, [&](int64_t item) {
            const int64_t row = item * piece, rows = std::min(piece, below - row);
            double* x = block + (width + row) * n;
            kernels.factors.solve(columns.data(), width, x, n, rows);
            if (!in_floats) return;
            for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < width; ++j) rounded[(row + i) * width + j] = (float)x[i * n + j];
        });
        const auto take_out = [&](const auto& kernel, auto* data, int64_t stride) {
            using T = std::remove_const_t<std::remove_pointer_t<decltype(data)>>;
            const Operand<T> solved{data, stride, 1};
            Product<T, double> product{
                .a = solved, .b = solved, .m = below, .n = below, .k = width, .c = h + next * n + next, .stride = n};
            product.subtract = product.lower = true;
            multiply(kernel, product, threads);
        };
        if (in_floats) take_out(kernels.widening, rounded.data(), width);
        else take_out(kernels.wide, block + width * n, n);
    }
    for (int64_t i = 0; i < n; ++i) std::fill(h + i * n + i + 1, h + (i + 1) * n, 0.0);
    return -1;
}

}  // namespace kvant
