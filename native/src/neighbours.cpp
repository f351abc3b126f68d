// The cells around the points of each codebook and their neighbours.
#include "kvant/neighbours.h"

#include <cstring>
#include <vector>

#include "kvant/codebooks.h"

namespace kvant {
namespace {

struct Lists {
    std::vector<Cell> cells;
    std::vector<uint16_t> points, codes;
    Neighbours view;
};

constexpr int power(int base, int exponent) { return exponent ? base * power(base, exponent - 1) : 1; }

template <int base, int group, std::size_t N>
class Builder {
public:
    Builder(const uint16_t (&codes)[N], int distances) : codes_(codes), distances_(distances) {}

    Lists build() {
        measure_halves();
        lists_.cells.resize(halves * halves);
        for (std::size_t p = 0; p < N; ++p) lists_.cells[cell_of(codes_[p])] = {0, 0, (uint16_t)p};
        std::vector<bool> is_point(halves * halves);
        for (std::size_t p = 0; p < N; ++p) is_point[cell_of(codes_[p])] = true;
        for (int cell = 0; cell < halves * halves; ++cell)
            if (!is_point[cell]) surround(cell);
        lists_.codes.resize(lists_.points.size() + 16);
        for (std::size_t i = 0; i < lists_.points.size(); ++i) lists_.codes[i] = codes_[lists_.points[i]];
        lists_.view = {lists_.cells.data(), lists_.points.data(), lists_.codes.data()};
        return std::move(lists_);
    }

private:
    static constexpr int half = group / 2, halves = power(base, half), bits = base == 8 ? 3 : 2;

    static int half_of(int code, int first) {
        int number = 0;
        for (int i = half - 1; i >= 0; --i) number = number * base + (code >> bits * (first + i) & ((1 << bits) - 1));
        return number;
    }
    static int cell_of(int code) { return half_of(code, 0) + halves * half_of(code, half); }

    // Squared distances, in levels, from each half of a cell to that half of each point.
    void measure_halves() {
        low_.resize(halves * N);
        high_.resize(halves * N);
        for (int h = 0; h < halves; ++h)
            for (std::size_t p = 0; p < N; ++p) {
                low_[h * N + p] = distance(h, half_of(codes_[p], 0));
                high_[h * N + p] = distance(h, half_of(codes_[p], half));
            }
    }
    static uint8_t distance(int a, int b) {
        int sum = 0;
        for (int i = 0; i < half; ++i, a /= base, b /= base) sum += (a % base - b % base) * (a % base - b % base);
        return (uint8_t)sum;
    }

    void surround(int cell) {
        const uint8_t *low = &low_[cell % halves * N], *high = &high_[cell / halves * N];
        uint8_t away[N];
        for (std::size_t p = 0; p < N; ++p) away[p] = (uint8_t)(low[p] + high[p]);
        const std::size_t first = lists_.points.size();
        uint8_t nearer = 0;  // distances of up to this have been taken; a cell that is no point is at least 1 away
        for (int i = 0; i < distances_; ++i) {
            uint8_t nearest = 255;
            for (const uint8_t distance : away) {
                const uint8_t further = distance > nearer ? distance : (uint8_t)255;
                nearest = further < nearest ? further : nearest;
            }
            const uint8_t* at = away;
            while ((at = (const uint8_t*)std::memchr(at, nearest, away + N - at))) {
                lists_.points.push_back((uint16_t)(at - away));
                ++at;
            }
            nearer = nearest;
        }
        lists_.cells[cell] = {(uint32_t)first, (uint16_t)(lists_.points.size() - first), 0};
    }

    const uint16_t (&codes_)[N];
    int distances_;
    std::vector<uint8_t> low_, high_;
    Lists lists_;
};

template <int base, int group, std::size_t N>
Lists build(const uint16_t (&codes)[N], int distances) {
    return Builder<base, group, N>(codes, distances).build();
}

}  // namespace

const Neighbours& neighbours(Codebook codebook) {
    using namespace codebooks;
    switch (codebook) {
        case Codebook::iq1: {
            static const Lists lists = build<3, 8>(iq1s_codes, 3);
            return lists.view;
        }
        case Codebook::iq2_xxs: {
            static const Lists lists = build<3, 8>(iq2xxs_codes, 2);
            return lists.view;
        }
        case Codebook::iq2_xs: {
            static const Lists lists = build<3, 8>(iq2xs_codes, 2);
            return lists.view;
        }
        case Codebook::iq2_s: {
            static const Lists lists = build<3, 8>(iq2s_codes, 1);
            return lists.view;
        }
        case Codebook::iq3_xxs: {
            static const Lists lists = build<8, 4>(iq3xxs_codes, 2);
            return lists.view;
        }
        default: {
            static const Lists lists = build<8, 4>(iq3s_codes, 3);
            return lists.view;
        }
    }
}

}  // namespace kvant
