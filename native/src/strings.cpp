// Bounds of the length-prefixed strings of a GGUF array: each length says where the next one is, so NumPy cannot walk
// them, and Python needs 100 ns a step. Every step is checked against the end of the buffer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <cstring>

namespace nb = nanobind;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Offsets = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr uint64_t kPrefixBytes = 8;

uint64_t load_le64(const uint8_t* from) {
    uint64_t value = 0;
    for (unsigned i = 0; i < kPrefixBytes; ++i) value |= uint64_t{from[i]} << (8 * i);
    return value;
}

bool walk(const uint8_t* data, uint64_t size, uint64_t limit, int64_t* starts, int64_t* ends, uint64_t count) {
    uint64_t position = 0;
    for (uint64_t i = 0; i < count; ++i) {
        if (size - position < kPrefixBytes) return false;
        const uint64_t length = load_le64(data + position);
        position += kPrefixBytes;
        if (length > limit || length > size - position) return false;
        starts[i] = static_cast<int64_t>(position);
        position += length;
        ends[i] = static_cast<int64_t>(position);
    }
    return true;
}

bool string_bounds(Bytes data, uint64_t limit, Offsets starts, Offsets ends) {
    if (starts.shape(0) != ends.shape(0)) throw nb::value_error("starts and ends differ in length");
    nb::gil_scoped_release unlocked;
    return walk(data.data(), data.shape(0), limit, starts.data(), ends.data(), starts.shape(0));
}

}  // namespace

void bind_strings(nb::module_& m) {
    m.def("string_bounds", &string_bounds, nb::arg("data"), nb::arg("limit"), nb::arg("starts").noconvert(),
          nb::arg("ends").noconvert(),
          "Fill starts and ends with the bounds of strings that follow their uint64 lengths; False if one reaches too "
          "far.");
}
