// Python bindings: check shapes, pick the instruction-set level, release the GIL, spread rows over threads.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvant/dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

std::vector<std::string> isa_levels() {
    std::vector<std::string> names;
    for (const Level& level : levels())
        if (level.usable) names.push_back(level.name);
    return names;
}

template <class T> using Rows = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Importance = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(const TypeKernels& type, int64_t rows, int64_t n, int64_t data_rows, int64_t data_bytes) {
    if (n % type.block_length != 0) throw std::invalid_argument("row length is not whole blocks");
    if (data_rows != rows || data_bytes != n / type.block_length * type.block_bytes)
        throw std::invalid_argument("the array of blocks does not fit the array of weights");
}

void encode(int ggml_id, const std::string& isa, const Rows<const float>& x,
            const std::optional<Importance>& importance, const Rows<uint8_t>& out, int threads) {
    const TypeKernels& type = find(isa, ggml_id);
    const int64_t rows = x.shape(0), n = x.shape(1), row_bytes = out.shape(1);
    check(type, rows, n, out.shape(0), row_bytes);
    if (importance && (int64_t)importance->shape(0) != n)
        throw std::invalid_argument("importance does not fit the rows");
    const bool weighted = importance && type.encode_weighted;
    const EncodeFn kernel = weighted ? type.encode_weighted : type.encode;
    if (!kernel) throw std::invalid_argument("no native encoder for this type");
    const float* source = x.data();
    const float* weights = weighted ? importance->data() : nullptr;
    uint8_t* target = out.data();
    nb::gil_scoped_release unlocked;
    over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
        kernel(source + first * n, n, end - first, weights, target + first * row_bytes);
    });
}

void decode(int ggml_id, const std::string& isa, const Rows<const uint8_t>& data, const Rows<float>& out, int threads) {
    const TypeKernels& type = find(isa, ggml_id);
    const int64_t rows = out.shape(0), n = out.shape(1), row_bytes = data.shape(1);
    check(type, rows, n, data.shape(0), row_bytes);
    if (!type.decode) throw std::invalid_argument("no native decoder for this type");
    const uint8_t* source = data.data();
    float* target = out.data();
    nb::gil_scoped_release unlocked;
    over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
        type.decode(source + first * row_bytes, n, end - first, target + first * n);
    });
}

// (name, ggml id, block length, block bytes, encodes, encodes with importance, decodes) per type.
nb::list types() {
    nb::list result;
    const Table table = baseline::table();
    for (int i = 0; i < table.count; ++i) {
        const TypeKernels& t = table.types[i];
        result.append(nb::make_tuple(t.name, t.ggml_id, t.block_length, t.block_bytes, t.encode != nullptr,
                                     t.encode_weighted != nullptr, t.decode != nullptr));
    }
    return result;
}

}  // namespace
}  // namespace kvant

void bind_strings(nanobind::module_& m);
void bind_tables(nanobind::module_& m);
void bind_transcode(nanobind::module_& m);
void bind_fit(nanobind::module_& m);
void bind_linalg(nanobind::module_& m);
void bind_curvature(nanobind::module_& m);
void bind_rowwise(nanobind::module_& m);
void bind_observer(nanobind::module_& m);

NB_MODULE(_ext, m) {
    m.doc() = "Native kernels of kvant.";
    m.def("isa_levels", &kvant::isa_levels, "Instruction-set levels this machine can run, slowest first.");
    m.def("types", &kvant::types,
          "Per type: name, ggml id, block length, block bytes, encodes, encodes with importance, decodes.");
    m.def("encode", &kvant::encode, "ggml_id"_a, "isa"_a, "x"_a.noconvert(), "importance"_a.none(), "out"_a.noconvert(),
          "threads"_a, "Encode float32 rows into `out`, uint8 [rows, bytes per row].");
    m.def("decode", &kvant::decode, "ggml_id"_a, "isa"_a, "data"_a.noconvert(), "out"_a.noconvert(), "threads"_a,
          "Decode rows of blocks into `out`, float32 [rows, n].");
    bind_strings(m);
    bind_tables(m);
    bind_transcode(m);
    bind_fit(m);
    bind_linalg(m);
    bind_curvature(m);
    bind_rowwise(m);
    bind_observer(m);
}
