#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/order.hpp>
#include <concepts>
#include <functional>
#include <ranges>
#include <vector>

namespace accelerate::data {

/// Makes whole batches, where an order would let them all have `batch_size` samples: given to a Loader in an order's place.
/// `sampler.batches(e, n)` gives all batches of epoch e over n samples, for all ranks together: something with `size()` and
/// `operator[](k)`, a range of int64_t. It must depend on nothing but the sampler's own members, e and n; the batches are cut over
/// the ranks afterwards, rank r taking r, r + size, .... With a member `seed` that is saved and restored with the loader's state.
template <class B>
concept batch_sampler = std::copyable<B> && requires(B const& sampler, int64_t n) {
    { sampler.batches(n, n).size() } -> std::convertible_to<size_t>;
    { *std::ranges::begin(sampler.batches(n, n)[n]) } -> std::convertible_to<int64_t>;
    { std::ranges::size(sampler.batches(n, n)[n]) } -> std::convertible_to<size_t>;
};

namespace sampler {

/// A table of batches, as samplers here make it: 8 bytes a sample.
struct Batches {
    std::vector<int64_t> indices, starts{0};

    size_t size() const { return starts.size() - 1; }
    std::span<int64_t const> operator[](int64_t k) const {
        auto const from = static_cast<size_t>(starts[static_cast<size_t>(k)]), to = static_cast<size_t>(starts[static_cast<size_t>(k) + 1]);
        return std::span(indices).subspan(from, to - from);
    }
    void close_batch() {
        if (static_cast<int64_t>(indices.size()) > starts.back()) starts.push_back(static_cast<int64_t>(indices.size()));
    }
};

/// Batches of as many samples, in the order given, as their tokens allow: at most `max_tokens`, counted as they are padded (longest
/// length times samples) or, with `padded = false`, as they are packed (the sum). Takes O(n) time and memory an epoch.
template <class Order = order::Standard>
struct TokenBudget {
    std::vector<int64_t> lengths;  ///< tokens of every sample
    int64_t max_tokens = 0;
    Order order = {};
    bool padded = true;

    /// Error E_DATA when `lengths` are not those of the data set or a sample alone is over the budget.
    Batches batches(int64_t e, int64_t n) const {
        check(static_cast<int64_t>(lengths.size()) == n, code::data, "data::sampler::TokenBudget: ", lengths.size(), " lengths are given, the data set has ", n, " samples");
        Batches out;
        int64_t count = 0, sum = 0, longest = 0;
        auto const view = order.epoch(e, n);
        for (int64_t p = 0; p < n; ++p) {
            auto const index = view[p], length = lengths[static_cast<size_t>(index)];
            check(length >= 0 && length <= max_tokens, code::data, "data::sampler::TokenBudget: sample ", index, " has ", length, " tokens; the budget is ", max_tokens);
            auto const tokens = padded ? std::max(longest, length) * (count + 1) : sum + length;
            if (tokens > max_tokens) {
                out.close_batch();
                count = sum = longest = 0;
            }
            out.indices.push_back(index);
            ++count, sum += length, longest = std::max(longest, length);
        }
        out.close_batch();
        return out;
    }
};

/// Batches whose size changes from step to step, such as one that grows during training: batch k of an epoch takes `size(step)`
/// samples, `step = first_step + k` counting global batches from the epoch's beginning. Takes O(n) time and memory an epoch.
template <class Order = order::Standard>
struct ChangingSize {
    std::function<int64_t(int64_t step)> size;
    Order order = {};
    int64_t first_step = 0;

    Batches batches(int64_t e, int64_t n) const {
        Batches out;
        auto const view = order.epoch(e, n);
        for (int64_t p = 0, k = 0; p < n; ++k) {
            auto const wanted = size(first_step + k);
            check(wanted >= 1, code::config, "data::sampler::ChangingSize: the size of batch ", k, " is ", wanted, "; it must be at least 1");
            for (int64_t j = 0; j < wanted && p < n; ++j) out.indices.push_back(view[p++]);
            out.close_batch();
        }
        return out;
    }
};

}  // namespace sampler
}  // namespace accelerate::data
