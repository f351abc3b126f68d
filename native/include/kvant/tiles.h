// Walking over blocks W at a time, lane = block.
#pragma once
#include "kvant/simd.h"

namespace kvant::KVANT_NS {

// W blocks (or rows): where each lane reads and writes. Lanes from `live` on repeat the last one, into a spare buffer.
struct Tile {
    const float* x[W];
    uint8_t* out[W];
    int live;

    // The same lanes, further on in their rows.
    inline Tile at(int64_t weights, int64_t bytes) const {
        Tile moved = *this;
        for (int k = 0; k < W; ++k) {
            moved.x[k] += weights;
            if (k < live) moved.out[k] += bytes;
        }
        return moved;
    }
};

// Call f(tile) for blocks 0 .. count-1 that lie x_stride floats and out_stride bytes apart. The last tile repeats the
// last block in its free lanes and lets these write to a spare buffer. f writes at most 512 bytes per lane.
template <class F>
KVANT_INLINE void for_each_tile(const float* x, int64_t x_stride, uint8_t* out, int64_t out_stride, int64_t count,
                                F f) {
    alignas(64) uint8_t spare[512];
    for (int64_t first = 0; first < count; first += W) {
        Tile tile;
        tile.live = count - first < W ? (int)(count - first) : W;
        for (int k = 0; k < W; ++k) {
            tile.x[k] = x + (first + (k < tile.live ? k : tile.live - 1)) * x_stride;
            tile.out[k] = k < tile.live ? out + (first + k) * out_stride : spare;
        }
        f(tile);
    }
}

// The same with lane = row, for what depends on the column: call f(tile, block) for each block of W rows.
template <class F>
KVANT_INLINE void for_each_row_tile(const float* x, int64_t n, int64_t rows, uint8_t* out, int block_length,
                                    int block_bytes, F f) {
    const int64_t blocks = n / block_length;
    for_each_tile(x, n, out, blocks * block_bytes, rows, [&](const Tile& tile) {
        for (int64_t b = 0; b < blocks; ++b) f(tile.at(b * block_length, b * block_bytes), b);
    });
}

// columns[i] = weight `offset + i` of each lane, i < n; n a multiple of 16.
KVANT_INLINE void load_columns(const Tile& tile, int64_t offset, int n, vf* columns) {
    for (int i = 0; i < n; i += W) {
        vf a[W];
        for (int k = 0; k < W; ++k) a[k] = load(tile.x[k] + offset + i);
        transpose(a);
        for (int k = 0; k < W; ++k) columns[i + k] = a[k];
    }
}

// Write words[0 .. n-1] of each lane, 4 bytes each, at `offset` bytes into its output.
KVANT_INLINE void store_words(const Tile& tile, int64_t offset, const vi* words, int n) {
    for (int i = 0; i < n; i += W) {
        const int live = n - i < W ? n - i : W;
        vf a[W];
        for (int k = 0; k < W; ++k) a[k] = k < live ? as_float(words[i + k]) : vf{};
        transpose(a);
        if (live == W) {
            for (int k = 0; k < W; ++k) memcpy(tile.out[k] + offset + 4 * i, &a[k], sizeof(vf));
        } else {
            for (int k = 0; k < W; ++k) memcpy(tile.out[k] + offset + 4 * i, &a[k], 4 * live);
        }
    }
}

// Write the low 16 bits of each lane at `offset` bytes into its output.
KVANT_INLINE void store_half(const Tile& tile, int64_t offset, vi bits) {
    for (int k = 0; k < W; ++k) {
        const uint16_t value = (uint16_t)bits[k];
        memcpy(tile.out[k] + offset, &value, 2);
    }
}

// Bytes 4i .. 4i+3 of each lane as word i. Each is 0 .. 255.
KVANT_INLINE void pack_bytes(const vi* bytes, int n, vi* words) {
    for (int i = 0; i < n; i += 4) {
        words[i / 4] = bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24);
    }
}

}  // namespace kvant::KVANT_NS
