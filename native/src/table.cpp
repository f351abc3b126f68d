// The kernels of one instruction-set level. A new type: one declaration and one row.
#include "kvant/blocks.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

#define KVANT_ENCODER(name) void name(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out)
#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

KVANT_ENCODER(encode_q4_k);

namespace {
constexpr TypeKernels types[] = {
    // name, ggml id, weights, bytes, encode, encode with importance, decode
    {"Q4_K", 12, 256, sizeof(block_q4_K), encode_q4_k, nullptr, nullptr},
};
}  // namespace

Table table() { return {types, sizeof types / sizeof types[0]}; }

}  // namespace kvant::KVANT_NS
