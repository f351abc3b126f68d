// Binding of rounding under a full Hessian: shapes are checked here, rows are spread over threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "kvant/dispatch.h"
#include "kvant/fit.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {

namespace baseline {
const FitKernel* find_fit(int ggml_id);
}
namespace avx2 {
const FitKernel* find_fit(int ggml_id);
}
namespace avx512 {
const FitKernel* find_fit(int ggml_id);
}

namespace {

template <class T> using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Blocks = nb::ndarray<T, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

using FindFit = const FitKernel* (*)(int);

FindFit find_level(const std::string& isa) {
    find_table(isa);  // refuses what this machine cannot run
#if defined(__x86_64__) || defined(_M_X64)
    if (isa == "avx512") return avx512::find_fit;
    if (isa == "avx2") return avx2::find_fit;
#endif
    return baseline::find_fit;
}

// (ggml id, weights per run, weights per block) of the types that can be rounded under a Hessian.
nb::list fit_types() {
    nb::list result;
    for (int id = 0; id < 64; ++id)
        if (const FitKernel* k = baseline::find_fit(id)) result.append(nb::make_tuple(id, k->run, k->block_length));
    return result;
}

bool has_chunks(const Blocks<const float>& local, int64_t n) {
    return (int64_t)local.shape(0) == (n + fit_chunk - 1) / fit_chunk && (int64_t)local.shape(1) == fit_chunk &&
           (int64_t)local.shape(2) == fit_chunk;
}

struct AlignedDelete {
    void operator()(float* p) const { ::operator delete[](p, std::align_val_t(64)); }
};

void over_rows(const FitKernel& type, const FitProblem& problem, int64_t rows, const FitResult& result, int threads) {
    const int64_t floats = fit_scratch(problem.n);
    const int64_t share = whole_vectors((rows + thread_count(threads) - 1) / thread_count(threads));
    nb::gil_scoped_release unlocked;
    over_pieces(rows, std::clamp<int64_t>(share, 16, fit_rows), threads, [&](int64_t first, int64_t end) {
        const std::unique_ptr<float[], AlignedDelete> scratch(new (std::align_val_t(64)) float[floats]);
        type.fit(problem, first, end, scratch.get(), result);
    });
}

void fit(int ggml_id, const std::string& isa, const Matrix<const float>& weights, const Matrix<const float>& hessian,
         const Matrix<const float>& feedback, const Vector<const float>& curvature, const Blocks<const float>& local,
         int sweeps, const Matrix<uint8_t>& codes, const Matrix<int8_t>& scales, const Matrix<uint8_t>& minimums,
         const Matrix<uint16_t>& d, const Matrix<uint16_t>& dmin, const Vector<float>& loss, int threads) {
    const FitKernel* type = find_level(isa)(ggml_id);
    if (!type) throw std::invalid_argument("this type cannot be rounded under a Hessian");
    const int64_t rows = weights.shape(0), n = weights.shape(1);
    const auto has = [](const auto& array, int64_t a, int64_t b) {
        return (int64_t)array.shape(0) == a && (int64_t)array.shape(1) == b;
    };
    const int64_t runs = n / type->run, blocks = n / type->block_length;
    const bool super = type->run != type->block_length, minimum = type->has_minimum;
    if (n % type->block_length || !has(hessian, n, n) || !has(feedback, n, n) || (int64_t)curvature.shape(0) != n ||
        !has_chunks(local, n) || !has(codes, rows, n) || !has(d, rows, blocks) ||
        (minimum && !has(dmin, rows, blocks)) || (super && !has(scales, rows, runs)) ||
        (super && minimum && !has(minimums, rows, runs)) || (int64_t)loss.shape(0) != rows)
        throw std::invalid_argument("arrays do not fit one another");
    const FitProblem problem{n,     weights.data(), hessian.data(), feedback.data(), curvature.data(), local.data(),
                             sweeps};
    const FitResult result{codes.data(), scales.data(), minimums.data(), d.data(), dmin.data(), nullptr, loss.data()};
    over_rows(*type, problem, rows, result, threads);
}

// As `fit`, for ONNX's MatMulNBits: float32 scales, and zero points where they are not fixed.
void fit_nbits(int bits, int block, bool symmetric, const std::string& isa, const Matrix<const float>& weights,
               const Matrix<const float>& hessian, const Matrix<const float>& feedback,
               const Vector<const float>& curvature, const Blocks<const float>& local, int sweeps,
               const Matrix<uint8_t>& codes, const Matrix<float>& scales, const Matrix<uint8_t>& zeros,
               const Vector<float>& loss, int threads) {
    const FitKernel* type = find_level(isa)(nbits_id(bits, block, symmetric));
    if (!type) throw std::invalid_argument("this type cannot be rounded under a Hessian");
    const int64_t rows = weights.shape(0), n = weights.shape(1), blocks = n / block;
    const auto has = [](const auto& array, int64_t a, int64_t b) {
        return (int64_t)array.shape(0) == a && (int64_t)array.shape(1) == b;
    };
    if (n % block || !has(hessian, n, n) || !has(feedback, n, n) || (int64_t)curvature.shape(0) != n ||
        !has_chunks(local, n) || !has(codes, rows, n) || !has(scales, rows, blocks) ||
        (!symmetric && !has(zeros, rows, blocks)) || (int64_t)loss.shape(0) != rows)
        throw std::invalid_argument("arrays do not fit one another");
    const FitProblem problem{n,     weights.data(), hessian.data(), feedback.data(), curvature.data(), local.data(),
                             sweeps};
    const FitResult result{codes.data(), nullptr, zeros.data(), nullptr, nullptr, scales.data(), loss.data()};
    over_rows(*type, problem, rows, result, threads);
}

}  // namespace
}  // namespace kvant

void bind_fit(nb::module_& m) {
    m.def("fit", &kvant::fit, "ggml_id"_a, "isa"_a, "weights"_a.noconvert(), "hessian"_a.noconvert(),
          "feedback"_a.noconvert(), "curvature"_a.noconvert(), "local"_a.noconvert(), "sweeps"_a, "codes"_a.noconvert(),
          "scales"_a.noconvert(), "minimums"_a.noconvert(), "d"_a.noconvert(), "dmin"_a.noconvert(),
          "loss"_a.noconvert(), "threads"_a, "Round rows under a full Hessian; see kvant.kernels.fitting.");
    m.def("fit_nbits", &kvant::fit_nbits, "bits"_a, "block"_a, "symmetric"_a, "isa"_a, "weights"_a.noconvert(),
          "hessian"_a.noconvert(), "feedback"_a.noconvert(), "curvature"_a.noconvert(), "local"_a.noconvert(),
          "sweeps"_a, "codes"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert(), "loss"_a.noconvert(),
          "threads"_a, "Round rows under a full Hessian to MatMulNBits; see kvant.kernels.nbits.");
    m.def("fit_types", &kvant::fit_types, "(ggml id, weights per run, weights per block) of the types `fit` knows.");
}
