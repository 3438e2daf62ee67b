#pragma once

#include <ATen/CPUGeneratorImpl.h>

#include <accelerate/core/seed.hpp>
#include <limits>

namespace accelerate::data {

/// Random numbers for changing one sample: a function of (seed, epoch, position in the epoch), so that neither the number of workers
/// nor the number of ranks changes what a sample becomes. Goes with the distributions of <random>; costs nothing to make.
class Random {
public:
    using result_type = uint64_t;

    Random(int64_t seed, int64_t epoch, int64_t position)
        : key_(mix(mix(static_cast<uint64_t>(Seed(seed).augment(0)), static_cast<uint64_t>(epoch)), static_cast<uint64_t>(position))) {}

    static constexpr uint64_t min() { return 0; }
    static constexpr uint64_t max() { return std::numeric_limits<uint64_t>::max(); }
    uint64_t operator()() { return mix(key_, drawn_++); }

    /// In [0, 1).
    double uniform() { return static_cast<double>((*this)() >> 11) * 0x1p-53; }
    /// In [0, limit); limit <= 2^32.
    int64_t below(int64_t limit) { return static_cast<int64_t>(((*this)() >> 32) * static_cast<uint64_t>(limit) >> 32); }
    /// A new generator for LibTorch's random operations (about 3 us).
    at::Generator generator() { return at::make_generator<at::CPUGeneratorImpl>((*this)() >> 1); }

private:
    uint64_t key_, drawn_ = 0;
};

}  // namespace accelerate::data
