// Diagonal blocks of a Cholesky factor and of its inverse, and the rows below a block; in doubles.
//
// Loops run over neighbouring elements, each of which has its own sum: a compiler may use any vectors for them.
#include "kvant/linalg.h"
#include "kvant/simd.h"

namespace kvant::KVANT_NS {
namespace {

// row[i] -= by * other[i]
KVANT_INLINE void subtract(double* row, double by, const double* other, int64_t count) {
    for (int64_t i = 0; i < count; ++i) row[i] -= by * other[i];
}

int64_t cholesky(double* a, int64_t n, int64_t stride) {
    double column[factor_width];
    for (int64_t j = 0; j < n; ++j) {
        const double pivot = a[j * stride + j];
        if (!(pivot > 0 && pivot < __builtin_inf())) return j;
        const double root = __builtin_sqrt(pivot);
        a[j * stride + j] = root;
        for (int64_t i = j + 1; i < n; ++i) column[i] = a[i * stride + j] / root;
        for (int64_t i = j + 1; i < n; ++i) {
            double* row = a + i * stride;
            row[j] = column[i];
            subtract(row + j + 1, column[i], column + j + 1, i - j);
        }
    }
    return -1;
}

void solve(const double* columns, int64_t n, double* x, int64_t stride, int64_t rows) {
    constexpr int64_t together = 4;  // rows, whose divisions overlap
    for (int64_t r = 0; r < rows; r += together) {
        const int64_t end = rows - r < together ? rows : r + together;
        for (int64_t j = 0; j < n; ++j)
            for (int64_t i = r; i < end; ++i) {
                double* row = x + i * stride;
                row[j] /= columns[j * n + j];
                subtract(row + j + 1, row[j], columns + j * n + j + 1, n - j - 1);
            }
    }
}

void invert(double* l, int64_t n, int64_t stride) {
    double sum[factor_width];
    for (int64_t i = 0; i < n; ++i) {
        double* row = l + i * stride;
        for (int64_t c = 0; c < n; ++c) sum[c] = c == i;
        for (int64_t k = 0; k < i; ++k) subtract(sum, row[k], l + k * stride, k + 1);
        const double pivot = row[i];
        for (int64_t c = 0; c < n; ++c) row[c] = c <= i ? sum[c] / pivot : 0;
    }
}

}  // namespace

FactorKernels factor_kernels() { return {cholesky, solve, invert}; }

}  // namespace kvant::KVANT_NS
