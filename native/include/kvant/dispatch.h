// Instruction-set levels of this machine, kernels by type, and rows over threads: what bindings share.
#pragma once
#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvant/cpu.h"
#include "kvant/kernels.h"
#include "kvant/linalg.h"
#include "kvant/parallel.h"

namespace kvant {

struct Level {
    const char* name;
    bool usable;
    Table (*table)();
};

inline const std::vector<Level>& levels() {
#if defined(__x86_64__) || defined(_M_X64)
    static const CpuFeatures cpu = cpu_features();
    static const std::vector<Level> all{
        {"baseline", true, baseline::table}, {"avx2", cpu.avx2, avx2::table}, {"avx512", cpu.avx512, avx512::table}};
#else
    static const std::vector<Level> all{{"baseline", true, baseline::table}};
#endif
    return all;
}

inline Table find_table(const std::string& isa) {
    for (const Level& level : levels())
        if (level.usable && isa == level.name) return level.table();
    throw std::invalid_argument("instruction-set level not usable here: " + isa);
}

inline LinearKernels find_linear(const std::string& isa) {
    find_table(isa);  // refuses what this machine cannot run
#if defined(__x86_64__) || defined(_M_X64)
    if (isa == "avx512") return avx512::linear_kernels();
    if (isa == "avx2") return avx2::linear_kernels();
#endif
    return baseline::linear_kernels();
}

inline const TypeKernels& find(const Table& table, int ggml_id) {
    for (int i = 0; i < table.count; ++i)
        if (table.types[i].ggml_id == ggml_id) return table.types[i];
    throw std::invalid_argument("no native kernels for ggml type " + std::to_string(ggml_id));
}

inline const TypeKernels& find(const std::string& isa, int ggml_id) { return find(find_table(isa), ggml_id); }

// Smallest multiple of the lanes of any level that is at least `rows`.
inline int64_t whole_vectors(int64_t rows) { return (rows + 15) / 16 * 16; }

// Run work(first_row, end_row) over all rows, `piece` at a time, on up to `threads` threads (0: one per core).
template <class F>
void over_pieces(int64_t rows, int64_t piece, int threads, F work) {
    over_items((rows + piece - 1) / piece, threads,
               [&](int64_t i) { work(i * piece, std::min(rows, (i + 1) * piece)); });
}

// The same in pieces of whole vectors of rows that keep a thread busy for a while.
template <class F>
void over_rows(int64_t rows, int64_t n, int threads, F work) {
    constexpr int64_t piece_weights = 1 << 17;
    over_pieces(rows, whole_vectors(std::max<int64_t>(1, piece_weights / std::max<int64_t>(n, 1))), threads, work);
}

}  // namespace kvant
