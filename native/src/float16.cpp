// F32, F16 and BF16: rows of single values. Source: ggml-impl.h `ggml_compute_fp32_to_fp16`,
// `ggml_compute_fp32_to_bf16`.
#include "kvant/convert.h"
#include "kvant/kernels.h"

namespace kvant::KVANT_NS {

namespace {

template <class Store>
KVANT_INLINE void write_halves(const float* x, int64_t count, uint8_t* out, Store put) {
    int64_t i = 0;
    for (; i + W <= count; i += W) put(out + 2 * i, load(x + i));
    if (i == count) return;
    float rest[W] = {};
    uint8_t halves[2 * W];
    memcpy(rest, x + i, (count - i) * 4);
    put(halves, load(rest));
    memcpy(out + 2 * i, halves, (count - i) * 2);
}

template <class Load>
KVANT_INLINE void read_halves(const uint8_t* data, int64_t count, float* out, Load get) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(out + i, get(data + 2 * i));
    if (i == count) return;
    uint8_t halves[2 * W] = {};
    float rest[W];
    memcpy(halves, data + 2 * i, (count - i) * 2);
    store(rest, get(halves));
    memcpy(out + i, rest, (count - i) * 4);
}

}  // namespace

void encode_f32(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) { memcpy(out, x, n * rows * 4); }
void decode_f32(const uint8_t* data, int64_t n, int64_t rows, float* out) { memcpy(out, data, n * rows * 4); }

void encode_f16(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    write_halves(x, n * rows, out, [](uint8_t* p, vf a) { store_f16(p, a); });
}
void decode_f16(const uint8_t* data, int64_t n, int64_t rows, float* out) {
    read_halves(data, n * rows, out, [](const uint8_t* p) { return load_f16(p); });
}

void encode_bf16(const float* x, int64_t n, int64_t rows, const float*, uint8_t* out) {
    write_halves(x, n * rows, out, [](uint8_t* p, vf a) { store_bf16(p, a); });
}
void decode_bf16(const uint8_t* data, int64_t n, int64_t rows, float* out) {
    read_halves(data, n * rows, out, [](const uint8_t* p) { return load_bf16(p); });
}

// Index of the first weight whose magnitude has at least the bits `limit` (infinity's: NaN and infinity), or -1.
int64_t first_beyond(const float* x, int64_t count, int32_t limit) {
    constexpr int64_t run = 16 * W;
    int64_t i = 0;
    for (; i + run <= count; i += run) {
        vi largest = {};
        for (int k = 0; k < 16; ++k) largest = imax(largest, as_int(load(x + i + k * W)) & 0x7fffffff);
        if (any(largest >= limit)) break;
    }
    for (; i < count; ++i) {
        int32_t bits;
        memcpy(&bits, x + i, 4);
        if ((bits & 0x7fffffff) >= limit) return i;
    }
    return -1;
}

}  // namespace kvant::KVANT_NS
