// Products of packed matrices: micro-tiles of the output stay in registers, lanes are output columns.
#include "kvant/linalg.h"
#include "kvant/simd.h"

namespace kvant::KVANT_NS {
namespace {

// Rows and vectors of a micro-tile: accumulators, one row of b, a broadcast and a product fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int MR = 8, VECTORS = 3;
#else
constexpr int MR = 6, VECTORS = 2;
#endif

template <class T> struct Lanes {
    typedef T vector __attribute__((vector_size(W * 4)));
};
template <class T> using vec = typename Lanes<T>::vector;
template <class T> constexpr int lanes = W * 4 / sizeof(T);
template <class T> constexpr int NR = VECTORS * lanes<T>;
static_assert(tile_size % MR == 0 && tile_size % NR<float> == 0 && tile_size % NR<double> == 0);

// Has the compiler load a broadcast anew for every product: then it is an operand of the multiplication, which costs
// nothing with AVX-512, where a broadcast of its own costs a quarter of the time (measured on Zen 4).
#if defined(__AVX512F__)
#define KVANT_LOAD_ANEW(pointer) asm("" : "+r"(pointer))
#else
#define KVANT_LOAD_ANEW(pointer) (void)0
#endif

// out = a b over k steps, from zero.
template <class T>
KVANT_INLINE void micro_tile(const T* a, const T* b, int64_t k, T* out) {
    typedef vec<T> v;
    v sum[MR][VECTORS] = {};
    for (; k > 0; --k, a += MR, b += NR<T>) {
        v row[VECTORS];
        KVANT_UNROLL(4) for (int j = 0; j < VECTORS; ++j) memcpy(&row[j], b + j * lanes<T>, sizeof(v));
        KVANT_UNROLL(8) for (int i = 0; i < MR; ++i) {
            KVANT_UNROLL(4) for (int j = 0; j < VECTORS; ++j) {
                KVANT_LOAD_ANEW(a);
                sum[i][j] += (a[i] - v{}) * row[j];
            }
        }
    }
    memcpy(out, sum, sizeof sum);
}

template <class T, class C>
void multiply(const T* a, const T* b, int64_t k, int64_t rows, int64_t cols, C* c, int64_t stride, bool overwrite) {
    alignas(64) T tile[MR * NR<T>];
    for (int64_t i = 0; i < rows; i += MR, a += k * MR) {
        const int64_t high = rows - i < MR ? rows - i : MR;
        const T* panel = b;
        for (int64_t j = 0; j < cols; j += NR<T>, panel += k * NR<T>) {
            const int64_t wide = cols - j < NR<T> ? cols - j : NR<T>;
            micro_tile<T>(a, panel, k, tile);
            for (int64_t r = 0; r < high; ++r) {
                C* to = c + (i + r) * stride + j;
                const T* from = tile + r * NR<T>;
                if (overwrite) {
                    for (int64_t s = 0; s < wide; ++s) to[s] = from[s];
                } else {
                    for (int64_t s = 0; s < wide; ++s) to[s] += from[s];
                }
            }
        }
    }
}

// Rows are columns of memory, or the other way round: walk over what is contiguous, in pieces that stay in the cache.
template <class T, int R>
void pack(const Operand<T>& rows, int64_t count, int64_t k, bool negate, T* out) {
    constexpr int64_t piece = 64;
    const T sign = negate ? -1 : 1;
    for (int64_t first = 0; first < k; first += piece) {
        const int64_t end = k - first < piece ? k : first + piece;
        if (rows.row_stride == 1) {
            for (int64_t s = first; s < end; ++s) {
                const T* from = rows.data + s * rows.step_stride;
                if (count == R) {
                    for (int64_t i = 0; i < R; ++i) out[s * R + i] = sign * from[i];
                } else {
                    for (int64_t i = 0; i < R; ++i) out[s * R + i] = i < count ? sign * from[i] : 0;
                }
            }
            continue;
        }
        for (int64_t i = 0; i < count; ++i) {
            const T* from = rows.data + i * rows.row_stride;
            for (int64_t s = first; s < end; ++s) out[s * R + i] = sign * from[s * rows.step_stride];
        }
        for (int64_t i = count; i < R; ++i)
            for (int64_t s = first; s < end; ++s) out[s * R + i] = 0;
    }
}

template <class T, class C>
ProductKernels<T, C> products() {
    return {MR, NR<T>, pack<T, MR>, pack<T, NR<T>>, multiply<T, C>};
}

}  // namespace

FactorKernels factor_kernels();

LinearKernels linear_kernels() {
    return {products<float, float>(), products<float, double>(), products<double, double>(), factor_kernels()};
}

}  // namespace kvant::KVANT_NS
