// Bindings of matrix products and Cholesky factors: shapes are checked here, the work is joined from blocks.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kvant/dispatch.h"
#include "kvant/factor.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

template <class T> using Stack = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(bool fits) {
    if (!fits) throw std::invalid_argument("matrices do not fit one another");
}

// out = op(a) op(b) for every pair of a stack, where op transposes what memory holds the other way round.
void matmul(const std::string& isa, const Stack<const float>& a, bool transpose_a, const Stack<const float>& b,
            bool transpose_b, const Stack<float>& out, int threads) {
    const LinearKernels kernels = find_linear(isa);
    const int64_t count = a.shape(0), m = a.shape(1 + transpose_a), k = a.shape(2 - transpose_a),
                  n = b.shape(2 - transpose_b);
    check((int64_t)b.shape(1 + transpose_b) == k && (int64_t)out.shape(1) == m && (int64_t)out.shape(2) == n);
    check((int64_t)b.shape(0) == count && (int64_t)out.shape(0) == count);
    nb::gil_scoped_release unlocked;
    const auto one = [&](int64_t i, int workers) {
        Product<float, float> product{.a = {a.data() + i * m * k, transpose_a ? 1 : k, transpose_a ? m : 1},
                                      .b = {b.data() + i * k * n, transpose_b ? k : 1, transpose_b ? 1 : n},
                                      .m = m,
                                      .n = n,
                                      .k = k,
                                      .c = out.data() + i * m * n,
                                      .stride = n};
        product.overwrite = true;
        multiply(kernels.single, product, workers);
    };
    if (count == 1) return one(0, threads);
    over_items(count, threads, [&](int64_t i) { one(i, 1); });
}

template <class C>
void gram(const std::string& isa, const Matrix<const float>& x, const Matrix<C>& out, int threads) {
    const LinearKernels kernels = find_linear(isa);
    const int64_t k = x.shape(0), n = x.shape(1);
    check((int64_t)out.shape(0) == n && (int64_t)out.shape(1) == n);
    Product<float, C> product{
        .a = {x.data(), 1, n}, .b = {x.data(), 1, n}, .m = n, .n = n, .k = k, .c = out.data(), .stride = n};
    product.lower = product.mirror = true;
    nb::gil_scoped_release unlocked;
    if constexpr (std::is_same_v<C, float>) multiply(kernels.single, product, threads);
    else multiply(kernels.widening, product, threads);
}

// L becomes its inverse in place. Rows in blocks: of row block r what is stored left of the diagonal is the sum over
// block columns c done so far of L[r][c] X[c]; when all are in, X[r] is -X[r][r] times it.
void invert(const LinearKernels& kernels, double* l, int64_t n, int threads) {
    for (int64_t first = 0; first < n; first += factor_width) {
        const int64_t width = std::min(factor_width, n - first), next = first + width, below = n - next;
        double *row = l + first * n, *block = row + first;
        kernels.factors.invert(block, width, n);
        Product<double, double> product{
            .a = {block, n, 1}, .b = {row, 1, n}, .m = width, .n = first, .k = width, .c = row, .stride = n};
        product.subtract = product.overwrite = true;
        multiply(kernels.wide, product, threads);
        const Operand<double> column{block + width * n, n, 1};
        product = {.a = column, .b = {row, 1, n}, .m = below, .n = first, .k = width, .c = l + next * n, .stride = n};
        multiply(kernels.wide, product, threads);
        product = {
            .a = column, .b = {block, 1, n}, .m = below, .n = width, .k = width, .c = block + width * n, .stride = n};
        product.overwrite = true;
        multiply(kernels.wide, product, threads);
    }
}

int64_t cholesky(const std::string& isa, const Matrix<double>& h, bool inverse, int threads) {
    const LinearKernels kernels = find_linear(isa);
    const int64_t n = h.shape(0);
    check((int64_t)h.shape(1) == n);
    nb::gil_scoped_release unlocked;
    const int64_t bad = factor(kernels, h.data(), n, threads);
    if (bad < 0 && inverse) invert(kernels, h.data(), n, threads);
    return bad;
}

}  // namespace
}  // namespace kvant

void bind_linalg(nb::module_& m) {
    m.def("matmul", &kvant::matmul, "isa"_a, "a"_a.noconvert(), "transpose_a"_a, "b"_a.noconvert(), "transpose_b"_a,
          "out"_a.noconvert(), "threads"_a, "Write the products of two stacks of float32 matrices into `out`.");
    m.def("gram32", &kvant::gram<float>, "isa"_a, "x"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
          "Add x^T x to a symmetric float32 matrix.");
    m.def("gram64", &kvant::gram<double>, "isa"_a, "x"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
          "Add x^T x to a symmetric float64 matrix.");
    m.def("cholesky", &kvant::cholesky, "isa"_a, "h"_a.noconvert(), "inverse"_a, "threads"_a,
          "Factor a float64 matrix in place, or its factor's inverse; the column without a positive pivot, or -1.");
}
