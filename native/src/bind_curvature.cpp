// Bindings of what makes second moments ready for rounding: mixed, damped, factored, all over threads and in no more
// memory than the factor in doubles beside one matrix of floats.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvant/dispatch.h"
#include "kvant/factor.h"
#include "kvant/fit.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Blocks = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Moment = nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(bool fits) {
    if (!fits) throw std::invalid_argument("matrices do not fit one another");
}

// The sum of second moments, each over its own divisor.
class Mixture {
public:
    Mixture(const nb::list& moments, const std::vector<double>& divisors, int64_t n) : divisors_(divisors) {
        check(moments.size() == divisors.size());
        for (nb::handle one : moments) {
            const auto moment = nb::cast<Moment>(one);
            check((int64_t)moment.shape(0) == n && (int64_t)moment.shape(1) == n);
            wide_.push_back(moment.dtype() == nb::dtype<double>());
            check(wide_.back() || moment.dtype() == nb::dtype<float>());
            data_.push_back(moment.data());
        }
    }

    // to[j] = element (row, j), for j from `first` on.
    void row(int64_t n, int64_t row, int64_t first, double* to) const {
        std::fill(to + first, to + n, 0.0);
        for (size_t m = 0; m < data_.size(); ++m) {
            if (wide_[m]) add(static_cast<const double*>(data_[m]) + row * n, divisors_[m], first, n, to);
            else add(static_cast<const float*>(data_[m]) + row * n, divisors_[m], first, n, to);
        }
    }

private:
    template <class T> static void add(const T* from, double divisor, int64_t first, int64_t n, double* to) {
        for (int64_t j = first; j < n; ++j) to[j] += (double)from[j] / divisor;
    }

    std::vector<double> divisors_;
    std::vector<bool> wide_;
    std::vector<const void*> data_;
};

constexpr int64_t band = 32;  // rows of a piece of work

template <class F>
void over_bands(int64_t n, int threads, F work) {
    over_items((n + band - 1) / band, threads,
               [&](int64_t item) { work(item * band, std::min(n, (item + 1) * band)); });
}

std::vector<double> divisors_of(const nb::list& list) {
    std::vector<double> all;
    for (nb::handle one : list) all.push_back(nb::cast<double>(one));
    return all;
}

// Factor the mixture, `more` added to its diagonal, columns from the last to the first: h = L L^T for the mixture
// turned round. Only what lies above its diagonal is read. Returns the column whose pivot is not positive, or -1; -2
// where an element is not finite.
int64_t factor_mixture(const std::string& isa, const nb::list& moments, const nb::list& divisors, double more,
                       const Matrix<double>& h, bool in_floats, int threads) {
    const LinearKernels kernels = find_linear(isa);
    const int64_t n = h.shape(0);
    check((int64_t)h.shape(1) == n);
    const Mixture mixture(moments, divisors_of(divisors), n);
    nb::gil_scoped_release unlocked;
    std::atomic<bool> is_finite{true};
    over_bands(n, threads, [&](int64_t first, int64_t end) {
        std::vector<double> row(n);
        for (int64_t i = first; i < end; ++i) {
            mixture.row(n, i, i, row.data());
            row[i] += more;
            double* to = h.data() + (n - 1 - i) * n;
            double zero = 0;  // NaN as soon as an element is not finite
            for (int64_t j = i; j < n; ++j) {
                to[n - 1 - j] = row[j];
                zero += row[j] - row[j];
            }
            if (zero != 0) is_finite = false;
        }
    });
    if (!is_finite) return -2;
    const int64_t bad = factor(kernels, h.data(), n, threads, in_floats);
    return bad < 0 ? bad : n - 1 - bad;
}

// The mixture, `more` added to its diagonal, in floats; what lies below its diagonal mirrors what lies above.
void round_mixture(const nb::list& moments, const nb::list& divisors, double more, const Matrix<float>& out,
                   int threads) {
    const int64_t n = out.shape(0);
    check((int64_t)out.shape(1) == n);
    const Mixture mixture(moments, divisors_of(divisors), n);
    nb::gil_scoped_release unlocked;
    over_bands(n, threads, [&](int64_t first, int64_t end) {
        std::vector<double> row(n);
        for (int64_t i = first; i < end; ++i) {
            mixture.row(n, i, i, row.data());
            row[i] += more;
            for (int64_t j = i; j < n; ++j) out(i, j) = (float)row[j];
        }
        for (int64_t j = first; j < n; ++j)
            for (int64_t i = first; i < std::min(end, j); ++i) out(j, i) = out(i, j);
    });
}

// Of the factor L of `factor_mixture`: H = U D U^T with U upper triangular and ones on its diagonal. `feedback` gets U
// above the diagonal and on it, and U^T below; `cost` gets D; `local`, for each chunk of columns, its block of
// U D U^T with the sum over its own columns only.
void split_factor(const Matrix<const double>& l, const Matrix<float>& feedback, const Vector<float>& cost,
                  const Blocks<float>& local, int threads) {
    const int64_t n = l.shape(0), chunks = local.shape(0), width = local.shape(1);
    check((int64_t)l.shape(1) == n && (int64_t)feedback.shape(0) == n && (int64_t)feedback.shape(1) == n);
    check((int64_t)cost.shape(0) == n && (int64_t)local.shape(2) == width && width == fit_chunk);
    check(chunks == (n + width - 1) / width);
    nb::gil_scoped_release unlocked;
    std::vector<double> scale(n);
    for (int64_t j = 0; j < n; ++j) {
        scale[j] = l(n - 1 - j, n - 1 - j);
        cost(j) = (float)(scale[j] * scale[j]);
    }
    over_bands(n, threads, [&](int64_t first, int64_t end) {
        for (int64_t i = first; i < end; ++i)
            for (int64_t j = i; j < n; ++j) feedback(i, j) = (float)(l(n - 1 - i, n - 1 - j) / scale[j]);
        for (int64_t j = first; j < n; ++j)
            for (int64_t i = first; i < std::min(end, j); ++i) feedback(j, i) = feedback(i, j);
    });
    over_items(chunks, threads, [&](int64_t chunk) {
        const int64_t first = chunk * width, count = std::min(width, n - first);
        std::fill_n(&local(chunk, 0, 0), width * width, 0.f);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t j = 0; j <= i; ++j) {
                double sum = 0;
                for (int64_t k = i; k < count; ++k)
                    sum += (double)feedback(first + i, first + k) * cost(first + k) * feedback(first + j, first + k);
                local(chunk, i, j) = local(chunk, j, i) = (float)sum;
            }
    });
}

}  // namespace
}  // namespace kvant

void bind_curvature(nb::module_& m) {
    m.def("factor_mixture", &kvant::factor_mixture, "isa"_a, "moments"_a, "divisors"_a, "more"_a, "h"_a.noconvert(),
          "in_floats"_a, "threads"_a,
          "Factor a sum of second moments, damped and turned round; the column without a positive pivot, -1, or -2 "
          "where one is not finite.");
    m.def("round_mixture", &kvant::round_mixture, "moments"_a, "divisors"_a, "more"_a, "out"_a.noconvert(), "threads"_a,
          "Write a sum of second moments, damped, in floats.");
    m.def("split_factor", &kvant::split_factor, "l"_a.noconvert(), "feedback"_a.noconvert(), "cost"_a.noconvert(),
          "local"_a.noconvert(), "threads"_a, "What rounding reads of a factor; see kvant.kernels.fitting.");
}
