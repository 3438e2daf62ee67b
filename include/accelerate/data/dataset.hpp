#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

namespace accelerate::data {

/// Something with samples 0 .. size()-1. The shortest one:
///
///     struct Squares {
///         size_t size() const { return 100; }
///         std::pair<double, double> operator[](size_t i) const { return {double(i), double(i * i)}; }
///     };
///
/// A sample is a tensor, a number, a string, or a struct, tuple, pair, array, vector or map of samples (see `collate`). Any
/// `std::vector` is a data set as it is. With `num_workers > 0` `operator[]` runs on another thread than the loop.
template <class D>
concept indexed_dataset = requires(std::remove_reference_t<D>& d, size_t i) {
    { d.size() } -> std::convertible_to<size_t>;
    d[i];
};

/// A data set that can make a whole batch faster than sample by sample offers `batch(std::span<int64_t const> indices)` as well;
/// it is used unless the loader was given a collate function.
template <class D>
concept batching_dataset = indexed_dataset<D> && requires(std::remove_reference_t<D>& d, std::span<int64_t const> indices) { d.batch(indices); };

/// What `operator[]` of the data set gives, as a value.
template <class D>
using sample_t = std::remove_cvref_t<decltype(std::declval<std::remove_reference_t<D>&>()[size_t{}])>;

}  // namespace accelerate::data
