// Types whose codes are numbers on a grid, as the fitting kernel sees them: which levels codes stand for, and which
// scales a block can store.
#pragma once
#include "kvant/fit_rows.h"
#include "kvant/microscale.h"

namespace kvant::KVANT_NS {
namespace {

// Levels low .. high in steps of 1. First guesses at a scale bring the largest weight to `reach` and to what is around
// it in steps of `spread`.
template <int low_, int high_>
struct Even {
    static constexpr float low = low_, high = high_, step = 1, reach = low, spread = 0.11f;
    static KVANT_MEMBER vf nearest_level(vf t) { return nearest_clamped(t, low, high); }
    static int code(float level) { return (int)level - low_; }
};

// Where levels are few, the best scale leaves the largest weights far out: half a level to three.
template <int low_, int high_>
struct Few : Even<low_, high_> {
    static constexpr float reach = 1.78f, spread = 0.16f;
};

// Levels of a table, rising; `step` is their distance, about, and `spread` is given in hundredths.
template <const auto& values, int step_, int spread_>
struct Uneven {
    static constexpr int count = sizeof values / sizeof values[0];
    static constexpr float low = values[0], high = values[count - 1], step = step_, reach = low,
                           spread = spread_ / 100.f;
    static KVANT_MEMBER vf nearest_level(vf t) {
        vf level = splat(values[0]);
        for (int i = 1; i < count; ++i) level = select(t > 0.5f * (values[i - 1] + values[i]), splat(values[i]), level);
        return level;
    }
    static int code(float level) {
        int i = 0;
        while (i < count - 1 && values[i] != level) ++i;
        return i;
    }
};

// The sixteen levels of IQ4_NL and IQ4_XS. Source: ggml-common.h `kvalues_iq4nl`.
constexpr float iq4_levels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// Those of MXFP4 and NVFP4, zero once. Source: ggml-common.h `kvalues_mxfp4`.
constexpr float e2m1_levels[] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
constexpr float sign_levels[] = {-1, 1};

// A scale stored as a half. `wider` is a little more, by > 0, or less of it.
struct Half {
    static constexpr bool is_coarse = false;
    static KVANT_MEMBER vf nearest(vf scale) { return half_of(scale); }
    template <class L>
    static KVANT_MEMBER vf wider(vf scale, int by) {
        return scale * (float)(1 + 0.35 * by * L::step / (L::high - L::low));
    }
    static KVANT_MEMBER vi code(vf scale) { return to_half(scale); }
};

// MXFP4's: 2^(e - 128), the closer of two neighbours.
struct Power {
    static constexpr bool is_coarse = true;
    static KVANT_MEMBER vf nearest(vf scale) {
        const vf limited = vmin(vmax(scale, splat(0x1p-126f)), splat(0x1p124f));
        return as_float((as_int(limited) + 0x00400000) & 0x7f800000);
    }
    template <class L>
    static KVANT_MEMBER vf wider(vf scale, int by) {
        return nearest(by == 1 ? 2.f * scale : by == 2 ? 4.f * scale : by == -1 ? 0.5f * scale : 0.25f * scale);
    }
    static KVANT_MEMBER vi code(vf scale) { return (as_int(scale) >> 23) + 1; }
};

// NVFP4's: half of an unsigned E4M3.
struct Micro {
    static constexpr bool is_coarse = true;
    static KVANT_MEMBER vf value(vi code) {
        const vi exponent = code >> 3, mantissa = code & 7;
        const vf normal = to_float(8 + mantissa) * as_float((exponent - 11 + 127) << 23);
        return select(exponent == 0, to_float(mantissa) * 0x1p-10f, normal);
    }
    static KVANT_MEMBER vi code(vf scale) { return to_e4m3(2.f * scale); }
    static KVANT_MEMBER vf nearest(vf scale) { return value(code(scale)); }
    template <class L>
    static KVANT_MEMBER vf wider(vf scale, int by) {
        return value(imin(imax(code(scale) + by, splat(0)), splat(0x7e)));
    }
};

// weight = scale * level + offset. Blocks of one run store a scale, and where there is an offset both, as halves;
// others store d, dmin and integers; with a float32 scale (`wide`) the offset is minus the scale times an integer zero
// point.
template <class Levels_, int run_, int runs_, bool has_offset_, int scale_low_ = 0, int scale_high_ = 0,
          int minimum_high_ = 0, bool wide_ = false, class Scale_ = Half>
struct Type {
    using Levels = Levels_;
    using Scale = Scale_;
    static constexpr int run = run_, runs = runs_, scale_low = scale_low_, scale_high = scale_high_;
    static constexpr int minimum_high = minimum_high_, length = run_ * runs_;
    static constexpr bool has_offset = has_offset_, direct = runs_ == 1, wide = wide_;
};
template <class Levels, int run, class Scale = Half> using Plain = Type<Levels, run, 1, false, 0, 0, 0, false, Scale>;
using Q1_0 = Plain<Uneven<sign_levels, 1, 11>, 128>;
using Q2_0 = Plain<Few<-1, 2>, 64>;
using TQ = Plain<Few<-1, 1>, 256>;  // TQ1_0 and TQ2_0 hold the same numbers
using Q4_0 = Plain<Even<-8, 7>, 32>;
using Q4_1 = Type<Even<0, 15>, 32, 1, true>;
using Q5_0 = Plain<Even<-16, 15>, 32>;
using Q5_1 = Type<Even<0, 31>, 32, 1, true>;
using Q8_0 = Plain<Even<-128, 127>, 32>;
using IQ4_NL = Plain<Uneven<iq4_levels, 16, 176>, 32>;
using MXFP4 = Plain<Uneven<e2m1_levels, 2, 80>, 32, Power>;
using NVFP4 = Plain<Uneven<e2m1_levels, 2, 80>, 16, Micro>;
using Q2_K = Type<Even<0, 3>, 16, 16, true, 0, 15, 15>;
using Q3_K = Type<Even<-4, 3>, 16, 16, false, -32, 31>;
using Q4_K = Type<Even<0, 15>, 32, 8, true, 0, 63, 63>;
using Q5_K = Type<Even<0, 31>, 32, 8, true, 0, 63, 63>;
using Q6_K = Type<Even<-32, 31>, 16, 16, false, -128, 127>;
using IQ4_XS = Type<Uneven<iq4_levels, 16, 176>, 32, 8, false, -32, 31>;
template <int bits, int group>
using Affine = Type<Even<0, (1 << bits) - 1>, group, 1, true>;  // MLX's
// ONNX Runtime's MatMulNBits. Source: ContribOperators.md `com.microsoft.MatMulNBits`.
template <int bits, int block> using Symmetric =
    Type<Even<-(1 << (bits - 1)), (1 << (bits - 1)) - 1>, block, 1, false, 0, 0, 0, true>;
template <int bits, int block> using Asymmetric = Type<Even<0, (1 << bits) - 1>, block, 1, true, 0, 0, 0, true>;

}  // namespace
}  // namespace kvant::KVANT_NS
