// Factoring a Hessian for rounding with error feedback: H = U D U^T, U upper triangular with ones on its diagonal.
//
// The factor takes the place of the lower triangle: row k, column j < k, becomes U[j][k], which is what an error in column
// j asks of column k; D comes apart. Columns go from the last to the first, a panel at a time. Every element is
// reduced in the order of the columns, whatever the level and the number of threads.
#include "kvant/fit.h"
#include "kvant/simd.h"

namespace kvant::KVANT_NS {
namespace {

constexpr int D = W / 2;  // doubles per vector
typedef double vd __attribute__((vector_size(W * 4)));

KVANT_INLINE vd load(const double* p) { vd a; memcpy(&a, p, sizeof a); return a; }
KVANT_INLINE void store(double* p, vd a) { memcpy(p, &a, sizeof a); }

// row[i] -= by * other[i] for i < count.
KVANT_INLINE void subtract(double* row, double by, const double* other, int64_t count) {
    int64_t i = 0;
    for (; i + D <= count; i += D) store(row + i, load(row + i) - by * load(other + i));
    for (; i < count; ++i) row[i] -= by * other[i];
}

}  // namespace

// Factor the panel of columns [first, end); returns the column whose pivot is not positive, or -1.
int64_t factor_panel(double* h, int64_t n, int64_t first, int64_t end, double* diagonal) {
    for (int64_t k = end - 1; k >= first; --k) {
        double* row = h + k * n;
        for (int64_t m = end - 1; m > k; --m) subtract(row, diagonal[m] * h[m * n + k], h + m * n, k + 1);
        diagonal[k] = row[k];
        if (!(row[k] > 0)) return k;
        for (int64_t j = 0; j < k; ++j) row[j] /= diagonal[k];
        row[k] = 1;
    }
    return -1;
}

// Take a factored panel out of rows [from, to), all before it.
void factor_trailing(double* h, int64_t n, int64_t first, int64_t end, const double* diagonal, int64_t from, int64_t to) {
    constexpr int64_t columns = 256;
    for (int64_t block = 0; block < to; block += columns) {
        for (int64_t j = from > block ? from : block; j < to; ++j) {
            double* row = h + j * n;
            const int64_t stop = block + columns < j + 1 ? block + columns : j + 1;
            int64_t i = block;
            for (; i + 4 * D <= stop; i += 4 * D) {
                vd a[4];
                for (int c = 0; c < 4; ++c) a[c] = load(row + i + c * D);
                for (int64_t m = end - 1; m >= first; --m) {
                    const double by = diagonal[m] * h[m * n + j];
                    for (int c = 0; c < 4; ++c) a[c] -= by * load(h + m * n + i + c * D);
                }
                for (int c = 0; c < 4; ++c) store(row + i + c * D, a[c]);
            }
            for (; i < stop; ++i) {
                double a = row[i];
                for (int64_t m = end - 1; m >= first; --m) a -= (diagonal[m] * h[m * n + j]) * h[m * n + i];
                row[i] = a;
            }
        }
    }
}

}  // namespace kvant::KVANT_NS
