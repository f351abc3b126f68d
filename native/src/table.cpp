// The kernels of one instruction-set level. A new type: one declaration and one row.
#include "kvant/blocks.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

#define KVANT_ENCODER(name) void name(const float* x, int64_t n, int64_t rows, const float* importance, uint8_t* out)
#define KVANT_DECODER(name) void name(const uint8_t* data, int64_t n, int64_t rows, float* out)

KVANT_ENCODER(encode_f32);
KVANT_ENCODER(encode_f16);
KVANT_ENCODER(encode_bf16);
KVANT_ENCODER(encode_q4_0);
KVANT_ENCODER(encode_q4_1);
KVANT_ENCODER(encode_q5_0);
KVANT_ENCODER(encode_q5_1);
KVANT_ENCODER(encode_q8_0);
KVANT_ENCODER(encode_iq1_s_weighted);
KVANT_ENCODER(encode_iq1_m);
KVANT_ENCODER(encode_iq2_xxs_weighted);
KVANT_ENCODER(encode_iq2_xs_weighted);
KVANT_ENCODER(encode_iq2_s);
KVANT_ENCODER(encode_iq3_xxs);
KVANT_ENCODER(encode_iq3_s);
KVANT_ENCODER(encode_iq4_nl);
KVANT_ENCODER(encode_iq4_nl_weighted);
KVANT_ENCODER(encode_iq4_xs);
KVANT_ENCODER(encode_iq4_xs_weighted);
KVANT_ENCODER(encode_tq1_0);
KVANT_ENCODER(encode_tq2_0);
KVANT_ENCODER(encode_mxfp4);
KVANT_ENCODER(encode_nvfp4);
KVANT_ENCODER(encode_q1_0);
KVANT_ENCODER(encode_q2_0);
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
KVANT_DECODER(decode_f32);
KVANT_DECODER(decode_f16);
KVANT_DECODER(decode_bf16);
KVANT_DECODER(decode_q4_0);
KVANT_DECODER(decode_q4_1);
KVANT_DECODER(decode_q5_0);
KVANT_DECODER(decode_q5_1);
KVANT_DECODER(decode_q8_0);
KVANT_DECODER(decode_q2_k);
KVANT_DECODER(decode_q3_k);
KVANT_DECODER(decode_q4_k);
KVANT_DECODER(decode_q5_k);
KVANT_DECODER(decode_q6_k);
KVANT_DECODER(decode_iq4_nl);
KVANT_DECODER(decode_iq4_xs);
KVANT_DECODER(decode_iq1_s);
KVANT_DECODER(decode_iq1_m);
KVANT_DECODER(decode_iq2_xxs);
KVANT_DECODER(decode_iq2_xs);
KVANT_DECODER(decode_iq2_s);
KVANT_DECODER(decode_iq3_xxs);
KVANT_DECODER(decode_iq3_s);
KVANT_DECODER(decode_tq1_0);
KVANT_DECODER(decode_tq2_0);
KVANT_DECODER(decode_mxfp4);
KVANT_DECODER(decode_nvfp4);
KVANT_DECODER(decode_q1_0);
KVANT_DECODER(decode_q2_0);

int64_t first_beyond(const float* x, int64_t count, int32_t limit);

namespace {
constexpr TypeKernels types[] = {
    // name, ggml id, weights, bytes, encode, encode with importance, decode
    {"F32", 0, 1, 4, encode_f32, nullptr, decode_f32},
    {"F16", 1, 1, 2, encode_f16, nullptr, decode_f16},
    {"BF16", 30, 1, 2, encode_bf16, nullptr, decode_bf16},
    {"Q4_0", 2, 32, sizeof(block_q4_0), encode_q4_0, encode_q4_0_weighted, decode_q4_0},
    {"Q4_1", 3, 32, sizeof(block_q4_1), encode_q4_1, encode_q4_1_weighted, decode_q4_1},
    {"Q5_0", 6, 32, sizeof(block_q5_0), encode_q5_0, encode_q5_0_weighted, decode_q5_0},
    {"Q5_1", 7, 32, sizeof(block_q5_1), encode_q5_1, encode_q5_1_weighted, decode_q5_1},
    {"Q8_0", 8, 32, sizeof(block_q8_0), encode_q8_0, nullptr, decode_q8_0},
    {"Q2_K", 10, 256, sizeof(block_q2_K), encode_q2_k, encode_q2_k_weighted, decode_q2_k},
    {"Q3_K", 11, 256, sizeof(block_q3_K), encode_q3_k, encode_q3_k_weighted, decode_q3_k},
    {"Q4_K", 12, 256, sizeof(block_q4_K), encode_q4_k, encode_q4_k_weighted, decode_q4_k},
    {"Q5_K", 13, 256, sizeof(block_q5_K), encode_q5_k, encode_q5_k_weighted, decode_q5_k},
    {"Q6_K", 14, 256, sizeof(block_q6_K), encode_q6_k, encode_q6_k_weighted, decode_q6_k},
    {"IQ4_NL", 20, 32, 18, encode_iq4_nl, encode_iq4_nl_weighted, decode_iq4_nl},
    {"IQ4_XS", 23, 256, 136, encode_iq4_xs, encode_iq4_xs_weighted, decode_iq4_xs},
    {"IQ1_S", 19, 256, 50, nullptr, encode_iq1_s_weighted, decode_iq1_s},
    {"IQ1_M", 29, 256, 56, encode_iq1_m, encode_iq1_m, decode_iq1_m},
    {"IQ2_XXS", 16, 256, 66, nullptr, encode_iq2_xxs_weighted, decode_iq2_xxs},
    {"IQ2_XS", 17, 256, 74, nullptr, encode_iq2_xs_weighted, decode_iq2_xs},
    {"IQ2_S", 22, 256, 82, encode_iq2_s, encode_iq2_s, decode_iq2_s},
    {"IQ3_XXS", 18, 256, 98, encode_iq3_xxs, encode_iq3_xxs, decode_iq3_xxs},
    {"IQ3_S", 21, 256, 110, encode_iq3_s, encode_iq3_s, decode_iq3_s},
    {"TQ1_0", 34, 256, 54, encode_tq1_0, nullptr, decode_tq1_0},
    {"TQ2_0", 35, 256, 66, encode_tq2_0, nullptr, decode_tq2_0},
    {"MXFP4", 39, 32, 17, encode_mxfp4, nullptr, decode_mxfp4},
    {"NVFP4", 40, 64, 36, encode_nvfp4, nullptr, decode_nvfp4},
    {"Q1_0", 41, 128, 18, encode_q1_0, nullptr, decode_q1_0},
    {"Q2_0", 42, 64, 18, encode_q2_0, nullptr, decode_q2_0},
};
}  // namespace

Table table() { return {types, sizeof types / sizeof types[0], first_beyond}; }

}  // namespace kvant::KVANT_NS
