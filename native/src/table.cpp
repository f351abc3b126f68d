// The kernels of one instruction-set level. A new type: one declaration and one row.
#include "kvant/blocks.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

#define KVANT_ENCODER(name) void name(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out)
#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

KVANT_ENCODER(encode_q4_0_weighted);
KVANT_ENCODER(encode_q4_1_weighted);
KVANT_ENCODER(encode_q5_0_weighted);
KVANT_ENCODER(encode_q5_1_weighted);
KVANT_ENCODER(encode_q2_k);
KVANT_ENCODER(encode_q2_k_weighted);
KVANT_ENCODER(encode_q3_k);
KVANT_ENCODER(encode_q3_k_weighted);
KVANT_ENCODER(encode_q4_k);
KVANT_ENCODER(encode_q4_k_weighted);
KVANT_ENCODER(encode_q5_k);
KVANT_ENCODER(encode_q5_k_weighted);
KVANT_ENCODER(encode_q6_k);
KVANT_ENCODER(encode_q6_k_weighted);

namespace {
constexpr TypeKernels types[] = {
    // name, ggml id, weights, bytes, encode, encode with importance, decode
    {"Q4_0", 2, 32, sizeof(block_q4_0), nullptr, encode_q4_0_weighted, nullptr},
    {"Q4_1", 3, 32, sizeof(block_q4_1), nullptr, encode_q4_1_weighted, nullptr},
    {"Q5_0", 6, 32, sizeof(block_q5_0), nullptr, encode_q5_0_weighted, nullptr},
    {"Q5_1", 7, 32, sizeof(block_q5_1), nullptr, encode_q5_1_weighted, nullptr},
    {"Q2_K", 10, 256, sizeof(block_q2_K), encode_q2_k, encode_q2_k_weighted, nullptr},
    {"Q3_K", 11, 256, sizeof(block_q3_K), encode_q3_k, encode_q3_k_weighted, nullptr},
    {"Q4_K", 12, 256, sizeof(block_q4_K), encode_q4_k, encode_q4_k_weighted, nullptr},
    {"Q5_K", 13, 256, sizeof(block_q5_K), encode_q5_k, encode_q5_k_weighted, nullptr},
    {"Q6_K", 14, 256, sizeof(block_q6_K), encode_q6_k, encode_q6_k_weighted, nullptr},
};
}  // namespace

Table table() { return {types, sizeof types / sizeof types[0]}; }

}  // namespace kvant::KVANT_NS
