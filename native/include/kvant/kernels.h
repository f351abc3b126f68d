// The table of kernels: what each block type can do at each instruction-set level.
//
// How a kernel is written
//   * Kernel sources (KVANT_KERNELS in CMakeLists.txt) are compiled once per level, with KVANT_NS naming the level.
//     Everything in them lives in `namespace kvant::KVANT_NS`; helpers are `static inline` or templates in that
//     namespace. They must not instantiate anything of the standard library (not even std::min): the linker would keep
//     one copy of it, perhaps the AVX-512 one, and an older CPU would stop there.
//   * Lanes are blocks. Vector lane k works on block k, so each lane does the reference's float operations in the
//     reference's order, and the bytes are the same at every level and the same as ggml's. Never sum across lanes;
//     never replace a division by a multiplication; no fused multiply-add (the build turns contraction off).
//   * `for_each_tile` (tiles.h) walks over the blocks W at a time and hands out W input and W output pointers;
//     `load_columns` transposes W x n floats so that vector i holds weight i of all W blocks; `store_words` transposes
//     back. A tile that is not full repeats its last block and drops the copies.
//   * W is 16 (AVX-512), 8 (AVX2) or 4 (SSE2, NEON): see simd.h for the vector types and the few operations that
//     are not arithmetic.
//
// To add a block type: a struct in blocks.h, a function in a source file, its declaration and its row in table.cpp.
#pragma once
#include <cstddef>
#include <cstdint>

namespace kvant {

// Encode `rows` rows of `n` weights. `importance` holds n weights of the error, one per column; null in plain encoders.
using EncodeFn = void (*)(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out);
// Decode `rows` rows of `n` weights.
using DecodeFn = void (*)(const uint8_t* data, int64_t n, int64_t rows, float* out);

struct TypeKernels {
    const char* name;
    int ggml_id;
    int block_length;  // weights
    int block_bytes;
    EncodeFn encode;           // null: not native
    EncodeFn encode_weighted;  // null: importance has no effect on this type
    DecodeFn decode;           // null: not native
};

struct Table {
    const TypeKernels* types;
    int count;
    // Index of the first weight whose magnitude has at least the bits `limit`, or -1.
    int64_t (*first_beyond)(const float* x, int64_t count, int32_t limit);
};

// One table per level; a level that was not compiled for this architecture does not exist.
namespace baseline {
Table table();
}
namespace avx2 {
Table table();
}
namespace avx512 {
Table table();
}

}  // namespace kvant
