#pragma once

#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/data/random.hpp>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>

namespace accelerate::data {

/// Something with samples 0 .. size()-1. The shortest one:
///
///     struct Squares {
///         size_t size() const { return 100; }
///         std::pair<double, double> operator[](size_t i) const { return {double(i), double(i * i)}; }
///     };
///
/// A sample is a tensor, a number, a string, or a struct, tuple, pair, array, vector or map of samples (see `collate`). Any
/// `std::vector` is a data set as it is. In place of `operator[]` it may have `at(i)`, or `at(i, data::Random&)` for samples that are
/// changed at random. With `num_workers > 0` samples are read on other threads than the loop's, with several on several at once.
/// With a member `hash()` (a number or string) a saved position is only accepted by a data set of the same hash.
template <class D>
concept IndexedDataset = requires(std::remove_reference_t<D>& d, size_t i, Random& random) {
    { d.size() } -> std::convertible_to<size_t>;
    requires requires { d[i]; } || requires { d.at(i); } || requires { d.at(i, random); };
};

/// Sample i of an indexed data set.
template <IndexedDataset D>
decltype(auto) read_sample(D& dataset, size_t i, Random&& random) {
    if constexpr (requires { dataset.at(i, random); }) return dataset.at(i, random);
    else if constexpr (requires { dataset[i]; }) return dataset[i];
    else return dataset.at(i);
}

/// A data set that can make a whole batch faster than sample by sample offers `batch(std::span<int64_t const> indices)` as well;
/// it is used unless the loader was given a collate function.
template <class D>
concept BatchingDataset = IndexedDataset<D> && requires(std::remove_reference_t<D>& d, std::span<int64_t const> indices) { d.batch(indices); };

/// Something that can only be read in order, and perhaps only once: `next()` gives a sample, or nothing at the end. The shortest one:
///
///     struct Countdown {
///         int64_t left = 100;
///         std::optional<int64_t> next() { return left > 0 ? std::optional(--left) : std::nullopt; }
///     };
///
/// What else it may have: `start(int64_t epoch)` begins again, without which one epoch is all there is; `skip(int64_t n)` passes over n
/// samples faster than reading them. One thread reads it at a time. Every rank reads the whole stream and keeps its share: each must
/// see the same samples (else let rank 0 read for all: `loader::Dispatched`).
template <class S>
concept OpaqueStream = requires(std::remove_reference_t<S>& s) { requires accelerate::detail::walk::is_optional<std::remove_cvref_t<decltype(s.next())>>; };

/// Something that opens part k of n, as an `OpaqueStream`, so that ranks read different parts. The parts of each n together are the
/// whole, in whatever way they are cut. The shortest one:
///
///     struct Countdowns {
///         Countdown open(int64_t k, int64_t n) const { return {100 / n + (k < 100 % n)}; }
///     };
///
/// With `open(k, n, epoch)` every epoch may be another one.
template <class S>
concept ShardableStream = requires(std::remove_reference_t<S>& s, int64_t k) { requires OpaqueStream<decltype(s.open(k, k))>; } ||
                          requires(std::remove_reference_t<S>& s, int64_t k) { requires OpaqueStream<decltype(s.open(k, k, k))>; };

/// Anything that a `Loader` loads.
template <class D>
concept Dataset = IndexedDataset<D> || OpaqueStream<D> || ShardableStream<D>;

namespace detail {
template <class D>
auto sample_of(D& d) {
    if constexpr (IndexedDataset<D>) return std::type_identity<std::remove_cvref_t<decltype(read_sample(d, 0, std::declval<Random>()))>>();
    else if constexpr (OpaqueStream<D>) return std::type_identity<typename std::remove_cvref_t<decltype(d.next())>::value_type>();
    else {
        auto const first = [](auto& s) {
            constexpr int64_t k = 0;
            if constexpr (requires { s.open(k, k, k); }) return s.open(k, k, k).next();
            else return s.open(k, k).next();
        };
        return std::type_identity<typename decltype(first(d))::value_type>();
    }
}
}  // namespace detail

/// What a data set gives, as a value.
template <Dataset D>
using sample_t = typename decltype(detail::sample_of(std::declval<std::remove_reference_t<D>&>()))::type;

}  // namespace accelerate::data
