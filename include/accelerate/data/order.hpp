#pragma once

#include <accelerate/data/permutation.hpp>
#include <concepts>

namespace accelerate::data {

/// In which order an epoch visits the samples. `order.epoch(e, n)` gives something with `operator[](int64_t position)`: the index
/// of the sample at that position of epoch e, for all positions in [0, n). It must depend on nothing but the order's own members,
/// e and n, so that every rank and every restart sees the same; it may compute each index or build a table.
/// An order with a member `seed` (int64_t) has it saved and restored with the loader's state.
template <class O>
concept order_policy = std::copyable<O> && requires(O const& order, int64_t n) {
    { order.epoch(n, n)[n] } -> std::convertible_to<int64_t>;
};

namespace order {

/// 0, 1, 2, ... in every epoch.
struct Sequential {
    struct Identity {
        int64_t operator[](int64_t position) const { return position; }
    };
    Identity epoch(int64_t, int64_t) const { return {}; }
};

/// Another permutation for every seed and epoch, without a table: any position is found at once, whatever n.
struct Shuffled {
    int64_t seed = 0;

    Permutation epoch(int64_t e, int64_t n) const {
        return {mix(static_cast<uint64_t>(Seed(seed).data()), static_cast<uint64_t>(e)), n};
    }
};

/// What a loader without an order of its own uses: `Shuffled` or `Sequential`, as its options say.
struct Standard {
    bool shuffle = false;
    int64_t seed = 0;

    struct Either {
        Permutation permutation;
        bool shuffle = false;
        int64_t operator[](int64_t position) const { return shuffle ? permutation[position] : position; }
    };
    Either epoch(int64_t e, int64_t n) const { return {Shuffled{seed}.epoch(e, n), shuffle}; }
};

}  // namespace order
}  // namespace accelerate::data
