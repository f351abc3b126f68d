// From one block type to another in one pass: decode a tile of weights that stays in the cache, refuse NaN and
// infinity, encode it. The float32 rows are never in memory as a whole. A finite weight can still be too large for the
// float16 it is scaled by: a tile with one above 65504 is decoded again and refused if that gives no finite weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <cfloat>
#include <cstring>
#include <memory>
#include <optional>

#include "kvant/dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace kvant {
namespace {

constexpr int64_t tile_weights = 4096;  // 16 KB of floats: whole blocks of every type, and sixteen of the longest
constexpr int64_t tile_rows = 16;       // with importance a tile is whole rows, one per lane
constexpr int32_t infinity_bits = 0x7f800000;
constexpr int32_t largest_half_bits = 0x477fe000;  // 65504

struct Job {
    const TypeKernels& source;
    const TypeKernels& target;
    EncodeFn encode;
    int64_t (*first_beyond)(const float* x, int64_t count, int32_t limit);
    const float* importance;
    const uint8_t* data;
    uint8_t* out;
    int64_t n;
    int32_t refused_bits;  // of the smallest magnitude that is refused before it is encoded

    const uint8_t* source_at(int64_t weight) const { return data + weight / source.block_length * source.block_bytes; }
    uint8_t* target_at(int64_t weight) const { return out + weight / target.block_length * target.block_bytes; }
};

void lower_to(std::atomic<int64_t>& least, int64_t value) {
    int64_t seen = least.load();
    while (value < seen && !least.compare_exchange_weak(seen, value)) {
    }
}

// Index of the first weight that cannot be encoded: not finite, or (after encoding) too large for the target.
int64_t first_refused(const Job& job, int64_t n, int64_t rows, float* tile, uint8_t* encoded) {
    const int64_t large = job.first_beyond(tile, n * rows, largest_half_bits);
    if (large >= 0) {
        const int64_t bad = job.first_beyond(tile, n * rows, job.refused_bits);
        if (bad >= 0) return bad;
    }
    job.encode(tile, n, rows, job.importance, encoded);
    if (large < 0) return -1;
    job.target.decode(encoded, n, rows, tile);
    return job.first_beyond(tile, n * rows, infinity_bits);
}

// Transcode `rows` rows of `n` weights (importance: of each column) from weight `first` on; false after a refused
// weight.
bool transcode_tile(const Job& job, int64_t first, int64_t n, int64_t rows, float* tile, std::atomic<int64_t>& bad) {
    job.source.decode(job.source_at(first), n, rows, tile);
    const int64_t at = first_refused(job, n, rows, tile, job.target_at(first));
    if (at >= 0) lower_to(bad, first + at);
    return at < 0;
}

void transcode_rows(const Job& job, int64_t first_row, int64_t end_row, std::atomic<int64_t>& bad) {
    const int64_t largest = job.importance ? std::min(tile_rows, end_row - first_row) * job.n : tile_weights;
    std::unique_ptr<float[]> memory(new float[largest + 16]);
    void* aligned = memory.get();
    std::size_t space = (largest + 16) * sizeof(float);
    float* tile = static_cast<float*>(std::align(64, largest * sizeof(float), aligned, space));
    if (job.importance) {
        for (int64_t row = first_row; row < end_row; row += tile_rows) {
            const int64_t rows = std::min(tile_rows, end_row - row);
            if (!transcode_tile(job, row * job.n, job.n, rows, tile, bad)) return;
        }
        return;
    }
    const int64_t end = end_row * job.n;
    for (int64_t at = first_row * job.n; at < end; at += tile_weights) {
        if (!transcode_tile(job, at, std::min(tile_weights, end - at), 1, tile, bad)) return;
    }
}

template <class T> using Rows = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Importance = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int64_t transcode(int source_id, int target_id, const std::string& isa, const Rows<const uint8_t>& data,
                  const std::optional<Importance>& importance, const Rows<uint8_t>& out, int64_t n, int threads,
                  float largest) {
    const Table table = find_table(isa);
    const TypeKernels &source = find(table, source_id), &target = find(table, target_id);
    if (n <= 0 || n % source.block_length || n % target.block_length) {
        throw std::invalid_argument("row length is not whole blocks");
    }
    const int64_t rows = data.shape(0);
    if ((int64_t)out.shape(0) != rows || (int64_t)data.shape(1) != n / source.block_length * source.block_bytes ||
        (int64_t)out.shape(1) != n / target.block_length * target.block_bytes) {
        throw std::invalid_argument("the arrays of blocks do not fit the row length");
    }
    if (importance && (int64_t)importance->shape(0) != n)
        throw std::invalid_argument("importance does not fit the rows");
    const bool weighted = importance && target.encode_weighted;
    const EncodeFn encode = weighted ? target.encode_weighted : target.encode;
    if (!source.decode || !encode) throw std::invalid_argument("no native decoder or encoder for these types");
    int32_t largest_bits;
    std::memcpy(&largest_bits, &largest, sizeof largest);
    const Job job{source,      target,     encode, table.first_beyond, weighted ? importance->data() : nullptr,
                  data.data(), out.data(), n,      largest_bits + 1};
    std::atomic<int64_t> bad{INT64_MAX};
    {
        nb::gil_scoped_release unlocked;
        over_rows(rows, n, threads, [&](int64_t first, int64_t end) {
            if (first * n < bad.load()) transcode_rows(job, first, end, bad);
        });
    }
    return bad == INT64_MAX ? -1 : bad.load();
}

}  // namespace
}  // namespace kvant

void bind_transcode(nb::module_& m) {
    m.def("transcode", &kvant::transcode, "source_id"_a, "target_id"_a, "isa"_a, "data"_a.noconvert(),
          "importance"_a.none(), "out"_a.noconvert(), "n"_a, "threads"_a, "largest"_a = FLT_MAX,
          "Encode rows of one type as another into `out`; the index of the first weight refused, or -1.");
}
