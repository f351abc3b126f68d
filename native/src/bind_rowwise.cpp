// Bindings of sums and exponentials over rows: shapes are checked here, rows are spread over threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

#include "kvant/dispatch.h"
#include "kvant/rowwise.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

RowwiseKernels find_rowwise(const std::string& isa) {
    find_table(isa);  // refuses what this machine cannot run
#if defined(__x86_64__) || defined(_M_X64)
    if (isa == "avx512") return avx512::rowwise_kernels();
    if (isa == "avx2") return avx2::rowwise_kernels();
#endif
    return baseline::rowwise_kernels();
}

void check(bool fits) {
    if (!fits) throw std::invalid_argument("arrays do not fit one another");
}

void row_dot(const std::string& isa, const Matrix<const float>& a, const Matrix<const float>& b,
             const Vector<double>& out, int threads) {
    const RowwiseKernels kernels = find_rowwise(isa);
    const int64_t rows = a.shape(0), n = a.shape(1);
    check((int64_t)b.shape(0) == rows && (int64_t)b.shape(1) == n && (int64_t)out.shape(0) == rows);
    nb::gil_scoped_release unlocked;
    over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
        kernels.dot(a.data() + first * n, b.data() + first * n, end - first, n, out.data() + first);
    });
}

void softmax(const std::string& isa, const Matrix<float>& x, int64_t period, int threads) {
    const RowwiseKernels kernels = find_rowwise(isa);
    const int64_t rows = x.shape(0), n = x.shape(1);
    check(period >= 0);
    nb::gil_scoped_release unlocked;
    over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
        kernels.softmax(x.data() + first * n, first, end - first, n, period);
    });
}

void sigmoid(const std::string& isa, const Matrix<const float>& x, const Matrix<float>& out, int threads) {
    const RowwiseKernels kernels = find_rowwise(isa);
    const int64_t rows = x.shape(0), n = x.shape(1);
    check((int64_t)out.shape(0) == rows && (int64_t)out.shape(1) == n);
    nb::gil_scoped_release unlocked;
    over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
        kernels.sigmoid(x.data() + first * n, (end - first) * n, out.data() + first * n);
    });
}

}  // namespace
}  // namespace kvant

void bind_rowwise(nb::module_& m) {
    m.def("row_dot", &kvant::row_dot, "isa"_a, "a"_a.noconvert(), "b"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
          "Write the scalar product of each row of a with the same row of b, float64, into `out`.");
    m.def("softmax", &kvant::softmax, "isa"_a, "x"_a.noconvert(), "period"_a, "threads"_a,
          "Turn rows into probabilities in place; see kvant.kernels.rowwise.");
    m.def("sigmoid", &kvant::sigmoid, "isa"_a, "x"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
          "Write 1 / (1 + exp(-x)) into `out`.");
}
