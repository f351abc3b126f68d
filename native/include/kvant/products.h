// Products of matrices of any size: packed in chunks that bound the memory, tiles of the output spread over threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "kvant/linalg.h"
#include "kvant/parallel.h"

namespace kvant {

template <class T>
class AlignedArray {
public:
    explicit AlignedArray(int64_t size) : data_(new (std::align_val_t(64)) T[size]) {}
    T* get() const { return data_.get(); }

private:
    struct Delete {
        void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<T[], Delete> data_;
};

template <class T, class C> struct Product {
    Operand<T> a, b;  // m and n rows of k steps each: c[i][j] is the sum over k of a(i, k) b(j, k)
    int64_t m, n, k;
    C* c;
    int64_t stride;
    bool overwrite = false;  // instead of adding to c
    bool subtract = false;
    bool lower = false;   // only tiles that touch the diagonal or lie below it; m = n
    bool mirror = false;  // and copy them above the diagonal
};

namespace detail {

constexpr int64_t chunk_rows = 20 * tile_size, chunk_steps = 8 * panel_steps;  // packed at a time: 31 MB of floats

inline int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }

// Rows of an operand as panels of k, each of them micro-panels of `width` rows: panel p begins at p * panel_steps *
// padded.
template <class T>
void pack_rows(void (*pack)(const Operand<T>&, int64_t, int64_t, bool, T*), int64_t width, const Operand<T>& rows,
               int64_t count, int64_t k, bool negate, int threads, T* out) {
    const int64_t padded = round_up(count, width);
    over_items(padded / width, threads, [&](int64_t item) {
        const int64_t row = item * width;
        for (int64_t s = 0; s < k; s += panel_steps) {
            const int64_t steps = std::min(panel_steps, k - s);
            const Operand<T> at{rows.data + row * rows.row_stride + s * rows.step_stride, rows.row_stride,
                                rows.step_stride};
            pack(at, std::min(width, count - row), steps, negate, out + s * padded + row * steps);
        }
    });
}

template <class C>
void mirror_tile(C* c, int64_t stride, int64_t row, int64_t column, int64_t rows, int64_t cols) {
    for (int64_t j = column; j < column + cols; ++j)
        for (int64_t i = std::max(row, j + 1); i < row + rows; ++i) c[j * stride + i] = c[i * stride + j];
}

}  // namespace detail

template <class T, class C>
void multiply(const ProductKernels<T, C>& kernels, const Product<T, C>& x, int threads) {
    using namespace detail;
    if (x.m == 0 || x.n == 0) return;
    if (x.overwrite && x.k == 0)
        for (int64_t i = 0; i < x.m; ++i) std::fill_n(x.c + i * x.stride, x.n, C(0));
    if (x.k == 0) return;
    const int64_t steps = std::min(x.k, chunk_steps);
    const auto room = [&](int64_t rows, int64_t width) { return round_up(std::min(rows, chunk_rows), width) * steps; };
    const AlignedArray<T> packed_a(room(x.m, kernels.mr)), packed_b(room(x.n, kernels.nr));
    const auto at = [](const Operand<T>& rows, int64_t row, int64_t s) {
        return Operand<T>{rows.data + row * rows.row_stride + s * rows.step_stride, rows.row_stride, rows.step_stride};
    };
    for (int64_t s = 0; s < x.k; s += steps) {
        const int64_t k = std::min(steps, x.k - s);
        for (int64_t j = 0; j < x.n; j += chunk_rows) {
            const int64_t n = std::min(chunk_rows, x.n - j), padded_n = round_up(n, kernels.nr);
            pack_rows(kernels.pack_b, kernels.nr, at(x.b, j, s), n, k, false, threads, packed_b.get());
            for (int64_t i = x.lower ? j : 0; i < x.m; i += chunk_rows) {
                const int64_t m = std::min(chunk_rows, x.m - i), padded_m = round_up(m, kernels.mr);
                pack_rows(kernels.pack_a, kernels.mr, at(x.a, i, s), m, k, x.subtract, threads, packed_a.get());
                const int64_t down = (m + tile_size - 1) / tile_size, across = (n + tile_size - 1) / tile_size;
                over_items(down * across, threads, [&](int64_t item) {
                    const int64_t row = item % down * tile_size, column = item / down * tile_size;
                    if (x.lower && i + row < j + column) return;
                    const int64_t rows = std::min(tile_size, m - row), cols = std::min(tile_size, n - column);
                    C* c = x.c + (i + row) * x.stride + j + column;
                    for (int64_t p = 0; p < k; p += panel_steps) {
                        const int64_t panel = std::min(panel_steps, k - p);
                        kernels.multiply(packed_a.get() + p * padded_m + row * panel,
                                         packed_b.get() + p * padded_n + column * panel, panel, rows, cols, c, x.stride,
                                         x.overwrite && s + p == 0);
                    }
                    if (x.mirror && s + k == x.k) mirror_tile(x.c, x.stride, i + row, j + column, rows, cols);
                });
            }
        }
    }
}

}  // namespace kvant
