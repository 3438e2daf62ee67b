#pragma once

#include <accelerate/core/seed.hpp>
#include <algorithm>
#include <array>
#include <cmath>

namespace accelerate::data {

/// A permutation of [0, n) drawn by a key: element k is computed, not looked up, so that it needs no memory and starts anywhere
/// at once (about 20 ns). A Feistel network over a grid of low x high cells, hardly more than n; what falls outside [0, n) is
/// sent through again. Statistically, not cryptographically, random. 1 <= n <= 2^62.
class Permutation {
public:
    Permutation(uint64_t key, int64_t n) : n_(static_cast<uint64_t>(n)) {
        // On a smaller grid than 8 x 8 the rounds have too few values to choose from and some permutations come up too often.
        auto const cells = std::max<uint64_t>(n_, 64);
        low_ = static_cast<uint64_t>(std::ceil(std::sqrt(static_cast<double>(cells))));
        high_ = (cells + low_ - 1) / low_;
        for (size_t i = 0; i < keys_.size(); ++i) keys_[i] = mix(key, i);
    }

    int64_t operator[](int64_t position) const {
        auto x = static_cast<uint64_t>(position);
        do x = once(x);
        while (x >= n_);
        return static_cast<int64_t>(x);
    }

private:
    uint64_t once(uint64_t x) const {
        auto high = x / low_, low = x % low_;
        for (size_t i = 0; i < keys_.size(); i += 2) {
            high += draw(low + keys_[i], high_);
            if (high >= high_) high -= high_;
            low += draw(high + keys_[i + 1], low_);
            if (low >= low_) low -= low_;
        }
        return high * low_ + low;
    }
    /// A number in [0, limit) that depends on every bit of x.
    static uint64_t draw(uint64_t x, uint64_t limit) {
        x *= 0xBF58476D1CE4E5B9ull;
        x ^= x >> 32;
        x *= 0x94D049BB133111EBull;
        return (x >> 32) * limit >> 32;
    }

    uint64_t n_, low_, high_;
    std::array<uint64_t, 8> keys_;
};

}  // namespace accelerate::data
