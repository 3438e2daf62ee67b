#pragma once

#include <ATen/Context.h>

#include <cstdint>
#include <string_view>

namespace accelerate {

/// Mixes two 64-bit numbers into one (the finaliser of splitmix64): streams of neighbouring seeds are unrelated.
constexpr uint64_t mix(uint64_t a, uint64_t b) {
    uint64_t z = a + 0x9E3779B97F4A7C15ull * (b + 1);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/// One user-given number, many independent streams. Each stream is a pure function of (seed, name, rank): adding a stream never
/// shifts another, and what must be equal on all ranks takes no rank.
class Seed {
public:
    constexpr explicit Seed(int64_t value = 0) : value_(static_cast<uint64_t>(value)) {}

    constexpr int64_t data() const { return stream("data", 0); }                          ///< sample order: the same on every rank
    constexpr int64_t weights() const { return stream("weights", 0); }                    ///< initial weights: the same on every rank
    constexpr int64_t augment(int64_t rank) const { return stream("augment", rank); }     ///< random transforms of samples
    constexpr int64_t dropout(int64_t rank) const { return stream("dropout", rank); }     ///< noise inside the model

    /// Non-negative, so that it fits wherever LibTorch takes a seed.
    constexpr int64_t stream(std::string_view name, int64_t rank) const {
        uint64_t h = 0xCBF29CE484222325ull;  // FNV-1a over the name
        for (char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001B3ull;
        return static_cast<int64_t>(mix(mix(value_, h), static_cast<uint64_t>(rank)) >> 1);
    }

private:
    uint64_t value_;
};

/// How `set_seed` seeds (Python Accelerate's `set_seed`).
struct seed_options {
    bool deterministic = false;    ///< ask LibTorch for deterministic algorithms; an operation without one then throws
    bool device_specific = false;  ///< add the rank, so that ranks draw different numbers
};

/// Seeds LibTorch's generators of every device. `rank` counts only with `device_specific`.
inline void set_seed(int64_t seed, seed_options options = {}, int64_t rank = 0) {
    at::manual_seed(static_cast<uint64_t>(seed + (options.device_specific ? rank : 0)));
    if (options.deterministic) at::globalContext().setDeterministicAlgorithms(true, false);
}

}  // namespace accelerate
