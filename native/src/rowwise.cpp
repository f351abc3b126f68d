// Sums and exponentials over rows, lanes along the row: what a transformer needs beside matrix products.
#include "kvant/rowwise.h"

#include "kvant/simd.h"

namespace kvant::KVANT_NS {
namespace {

constexpr int lanes = 16, parts = lanes / W;
typedef double vd __attribute__((vector_size(W * 8)));

KVANT_INLINE vd widen(vf a) { return __builtin_convertvector(a, vd); }

// exp(x) for x <= 0: x = n ln 2 + r, |r| <= ln(2) / 2, and Taylor's polynomial of degree 7 for exp(r), 5e-9 off at
// most. Zero where the result would be subnormal.
KVANT_INLINE vf exp_negative(vf x) {
    constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, least = -87.3365448f;
    const vf shifted = x * log2e + magic, n = shifted - magic;
    const vf r = (x - n * ln2_high) - n * ln2_low;
    vf y = splat(1.f / 5040);
    constexpr float taylor[] = {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, 0.5f, 1.f, 1.f};
    KVANT_UNROLL(7) for (int i = 0; i < 7; ++i) y = y * r + taylor[i];
    const vf power = as_float((vi)(((vu)as_int(shifted) << 23) + 0x3f800000u));  // unsigned: wraps where x < least
    return select(x < least, splat(0.f), y * power);
}

// What is left of a row behind its last whole 16, with `fill` behind that.
KVANT_INLINE void load_tail(const float* from, int64_t count, float fill, float* to) {
    for (int i = 0; i < lanes; ++i) to[i] = i < count ? from[i] : fill;
}

struct Sum {
    vd lane[parts] = {};

    double total() const {
        double all[lanes];
        memcpy(all, lane, sizeof all);
        for (int width = lanes / 2; width > 0; width /= 2)
            for (int i = 0; i < width; ++i) all[i] += all[i + width];
        return all[0];
    }
};

void dot(const float* a, const float* b, int64_t rows, int64_t n, double* out) {
    for (int64_t row = 0; row < rows; ++row, a += n, b += n) {
        Sum sum;
        const auto add = [&](const float* u, const float* v) {
            KVANT_UNROLL(4)
            for (int p = 0; p < parts; ++p) sum.lane[p] += widen(load(u + p * W)) * widen(load(v + p * W));
        };
        const int64_t whole = n / lanes * lanes;
        for (int64_t i = 0; i < whole; i += lanes) add(a + i, b + i);
        if (whole < n) {
            float u[lanes], v[lanes];
            load_tail(a + whole, n - whole, 0, u);
            load_tail(b + whole, n - whole, 0, v);
            add(u, v);
        }
        out[row] = sum.total();
    }
}

float highest(const float* x, int64_t n) {
    vf most[parts];
    const int64_t whole = n / lanes * lanes;
    float tail[lanes];
    load_tail(x + whole, n - whole, -__builtin_inff(), tail);
    for (int p = 0; p < parts; ++p) most[p] = load(tail + p * W);
    for (int64_t i = 0; i < whole; i += lanes)
        KVANT_UNROLL(4) for (int p = 0; p < parts; ++p) most[p] = vmax(most[p], load(x + i + p * W));
    memcpy(tail, most, sizeof tail);
    for (int i = 1; i < lanes; ++i) tail[0] = tail[i] > tail[0] ? tail[i] : tail[0];
    return tail[0];
}

void softmax_row(float* x, int64_t n) {
    const vf most = splat(highest(x, n));
    Sum sum;
    const auto raise = [&](float* at) {
        KVANT_UNROLL(4) for (int p = 0; p < parts; ++p) {
            const vf e = exp_negative(load(at + p * W) - most);
            store(at + p * W, e);
            sum.lane[p] += widen(e);
        }
    };
    const int64_t whole = n / lanes * lanes, left = n - whole;
    for (int64_t i = 0; i < whole; i += lanes) raise(x + i);
    float tail[lanes];
    if (left) {
        load_tail(x + whole, left, -__builtin_inff(), tail);
        raise(tail);
    }
    const float scale = (float)(1 / sum.total());
    for (int64_t i = 0; i < whole; i += W) store(x + i, load(x + i) * scale);
    for (int64_t i = 0; i < left; ++i) x[whole + i] = tail[i] * scale;
}

void softmax(float* x, int64_t first, int64_t rows, int64_t n, int64_t period) {
    for (int64_t row = 0; row < rows; ++row, x += n) {
        int64_t count = n;
        if (period) {
            const int64_t seen = (first + row) % period + 1;
            count = seen < n ? seen : n;
        }
        softmax_row(x, count);
        memset(x + count, 0, (n - count) * sizeof(float));
    }
}

// Of exp(-|x|), so that nothing overflows.
KVANT_INLINE vf sigmoid(vf x) {
    const vf e = exp_negative(as_float(as_int(x) | (int)0x80000000));
    return select(x < 0, e, splat(1.f)) / (1 + e);
}

void sigmoid(const float* x, int64_t count, float* out) {
    const int64_t whole = count / W * W;
    for (int64_t i = 0; i < whole; i += W) store(out + i, sigmoid(load(x + i)));
    if (whole == count) return;
    float tail[lanes];
    load_tail(x + whole, count - whole, 0, tail);
    store(tail, sigmoid(load(tail)));
    memcpy(out + whole, tail, (count - whole) * sizeof(float));
}

}  // namespace

RowwiseKernels rowwise_kernels() { return {dot, softmax, sigmoid}; }

}  // namespace kvant::KVANT_NS
