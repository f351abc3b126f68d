// Codebook types as the fitting kernels see them, and the search for the nearest point of a codebook in a metric.
#pragma once
#include "kvant/codebooks.h"
#include "kvant/fit_rows.h"

namespace kvant::KVANT_NS {
namespace {

constexpr int span = 8;  // weights whose signs are stored together

// weight = d / parts * (2 sc + 1) * level, sc 0 .. 15 for each run; `even`: of 8 weights an even number is negative.
template <const auto& codes_, const auto& values_, int levels_, int group_, int run_, int parts_, bool even_>
struct Type {
    static constexpr auto& codes = codes_;
    static constexpr auto& values = values_;
    static constexpr int points = sizeof codes / sizeof codes[0], levels = levels_, group = group_, run = run_;
    static constexpr int bits = levels == 8 ? 3 : 2, half = group / 2, halves = 1 << bits * half;
    static constexpr int runs = 256 / run, unit = even_ ? span : group;
    static constexpr float part = 1.f / parts_, top = 31;  // top: the highest 2 sc + 1
    static constexpr bool even = even_, shifted = false;
};

// weight = d * (2 sc + 1) * (level +- 1/8), sc 0 .. 7 for each run, level -1, 0 or 1; `unit` weights are shifted alike.
inline constexpr codebooks::Constants<std::int8_t, 4> signed_levels = {{-1, 0, 1, 0}};
template <int run_, int unit_>
struct Shifted : Type<codebooks::iq1s_codes, signed_levels, 3, 8, run_, 1, false> {
    static constexpr int unit = unit_;
    static constexpr float top = 15;
    static constexpr bool shifted = true;
};
using IQ1_S = Shifted<32, 32>;
using IQ1_M = Shifted<16, 8>;
using IQ3_S = Type<codebooks::iq3s_codes, codebooks::iq3s_levels, 8, 4, 32, 1, false>;
using IQ3_XXS = Type<codebooks::iq3xxs_codes, codebooks::iq3xxs_levels, 8, 4, 32, 4, true>;
using IQ2_S = Type<codebooks::iq2s_codes, codebooks::iq2_levels, 3, 8, 16, 8, false>;
using IQ2_XS = Type<codebooks::iq2xs_codes, codebooks::iq2_levels, 3, 8, 16, 8, true>;
using IQ2_XXS = Type<codebooks::iq2xxs_codes, codebooks::iq2_levels, 3, 8, 32, 8, true>;

// A codebook laid out for search. Points stand in the order of their codes, so those with the same upper half together.
template <class T>
struct Book {
    struct Point {
        uint16_t low;                // lower half of the code
        uint16_t residual[T::half];  // for its weights: weight * levels + level
    };
    Point point[T::points];
    bool stored[T::halves];  // whether a lower half occurs

    static constexpr Book make() {
        Book book{};
        for (int k = 0; k < T::points; ++k) {
            Point& p = book.point[k];
            p.low = (uint16_t)(T::codes[k] & (T::halves - 1));
            book.stored[p.low] = true;
            for (int i = 0; i < T::half; ++i)
                p.residual[i] = (uint16_t)(i * T::levels + (p.low >> (T::bits * i) & ((1 << T::bits) - 1)));
        }
        return book;
    }
};
template <class T> constexpr Book<T> book = Book<T>::make();

// Error of half a point whose weights leave r: sum over its pairs of r_i m_ij r_j, off-diagonal elements doubled in c.
template <class T>
KVANT_INLINE vf half_error(const vf* r, int digits, const float* m, int stride, const vf (*c)[T::group], int first) {
    vf total{}, left[T::half];
    for (int i = 0; i < T::half; ++i) {
        left[i] = r[(first + i) * T::levels + (digits >> (T::bits * i) & ((1 << T::bits) - 1))];
        vf row = m[(first + i) * (stride + 1)] * left[i];
        for (int j = 0; j < i; ++j) row += c[first + j][first + i] * left[j];
        total += left[i] * row;
    }
    return total;
}

// The point t, signs given, for which (z - s t) m (z - s t)^T is least; returns that error. m has rows of `stride`.
template <class T>
vf nearest_point(const vf* z, const vf* sign, const float* m, int64_t stride, vf s, vf* t) {
    constexpr int G = T::group, h = T::half, L = T::levels, mask = (1 << T::bits) - 1;
    vf r[G * L], c[G][G], low[T::halves];
    for (int i = 0; i < G; ++i) {
        const vf to = sign[i] * z[i];
        for (int l = 0; l < L; ++l) r[i * L + l] = to - s * (float)T::values.at[l];
        for (int j = i + 1; j < G; ++j) c[i][j] = (2.f * m[i * stride + j]) * (sign[i] * sign[j]);
    }
    for (int q = 0; q < T::halves; ++q)
        if (book<T>.stored[q]) low[q] = half_error<T>(r, q, m, (int)stride, c, 0);
    vf best = splat(huge);
    vi code = splat((int)T::codes[0]);
    for (int k = 0; k < T::points;) {
        const int high = T::codes[k] / T::halves;
        const vf from = half_error<T>(r, high, m, (int)stride, c, h);
        vf y[h];
        for (int i = 0; i < h; ++i) {
            y[i] = vf{};
            for (int j = 0; j < h; ++j) y[i] += c[i][h + j] * r[(h + j) * L + (high >> (T::bits * j) & mask)];
        }
        for (; k < T::points && T::codes[k] / T::halves == high; ++k) {
            const auto& point = book<T>.point[k];
            vf error = low[point.low] + from;
            for (int i = 0; i < h; ++i) error += y[i] * r[point.residual[i]];
            const vi better = error < best;
            best = select(better, error, best);
            code = select(better, splat((int)T::codes[k]), code);
        }
    }
    for (int i = 0; i < G; ++i) {
        const vi digit = (code >> (T::bits * i)) & mask;
        vf level = splat((float)T::values.at[0]);
        for (int l = 1; l < L; ++l) level = select(digit == l, splat((float)T::values.at[l]), level);
        t[i] = sign[i] * level;
    }
    return best;
}

// As `nearest_point`, of a codebook without signs whose levels are all shifted by as much.
template <class T>
KVANT_INLINE vf nearest_shifted(const vf* z, const float* m, int64_t stride, vf s, vf shift, vf* t) {
    vf to[T::group], sign[T::group];
    for (int i = 0; i < T::group; ++i) to[i] = z[i] - s * shift, sign[i] = splat(1.f);
    const vf error = nearest_point<T>(to, sign, m, stride, s, t);
    for (int i = 0; i < T::group; ++i) t[i] += shift;
    return error;
}
constexpr float shifts[2] = {codebooks::iq1_delta, -codebooks::iq1_delta};

// Shift of a level that has one.
KVANT_INLINE vf shift_of(vf t) { return t - nearest_clamped(t, -1, 1); }

KVANT_INLINE vf sign_of(vf a) { return select(a < 0.f, splat(-1.f), splat(1.f)); }

// Turn signs that are better the other way, each in its turn, the point held.
template <class T>
KVANT_INLINE void turn_signs(const vf* z, const float* m, int64_t stride, vf s, vf* t, vf& error) {
    constexpr int G = T::group;
    vf rest[G];
    for (int i = 0; i < G; ++i) {
        rest[i] = vf{};
        for (int j = 0; j < G; ++j) rest[i] += m[i * stride + j] * (z[j] - s * t[j]);
    }
    for (int i = 0; i < G; ++i) {
        const vf step = 2.f * (s * t[i]);
        const vf change = step * (2.f * rest[i] + m[i * stride + i] * step);
        const vi better = change < 0.f;
        const vf by = select(better, step, vf{});
        error += select(better, change, vf{});
        t[i] = select(better, -t[i], t[i]);
        for (int k = 0; k < G; ++k) rest[k] += m[k * stride + i] * by;
    }
}

// Where an odd number of a unit's signs is negative, turn the one that costs least.
template <class T>
KVANT_INLINE void make_even(const vf* z, const float* m, vf s, vf* t) {
    constexpr int U = T::unit;
    vf least = splat(huge), product = splat(1.f);
    vi which{};
    for (int i = 0; i < U; ++i) {
        vf rest{};
        for (int j = 0; j < U; ++j) rest += m[i * U + j] * (z[j] - s * t[j]);
        const vf step = 2.f * (s * t[i]);
        const vf change = step * (2.f * rest + m[i * U + i] * step);
        const vi better = change < least;
        least = select(better, change, least);
        which = select(better, splat(i), which);
        product *= sign_of(t[i]);
    }
    for (int i = 0; i < U; ++i) t[i] = select((product < 0.f) & (which == i), -t[i], t[i]);
}

}  // namespace
}  // namespace kvant::KVANT_NS
