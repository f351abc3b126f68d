// Weights of the error that the searches minimise.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

KVANT_INLINE vf sum_of_squares(const vf* x, int n, vf sum = vf{}) {
    for (int i = 0; i < n; ++i) sum += x[i] * x[i];
    return sum;
}

// w[i] = importance[i] * sqrt(variance + x[i]^2), the importance shared by all lanes. Returns their sum.
template <int n>
KVANT_INLINE vf weigh(const vf* x, const float* importance, vf variance, vf* w) {
    vf sum = vf{};
    for (int i = 0; i < n; ++i) {
        w[i] = importance[i] * vsqrt(variance + x[i] * x[i]);
        sum += w[i];
    }
    return sum;
}

}  // namespace kvant::KVANT_NS
