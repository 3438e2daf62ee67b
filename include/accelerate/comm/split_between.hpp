#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <map>
#include <unordered_map>
#include <vector>

namespace accelerate::comm {

/// The stretch of `n` items that belongs to `rank` of `size`: the first n % size ranks have one more. `padded`: how many each rank
/// has when the last item is repeated until all have the same number.
struct Stretch {
    int64_t begin, count, padded;

    Stretch(int64_t n, int64_t rank, int64_t size) : begin(rank * (n / size) + std::min(rank, n % size)), count(n / size + (rank < n % size ? 1 : 0)), padded(n / size + (n % size > 0 ? 1 : 0)) {}
};

/// This rank's part of a vector, of a tensor's rows, or of every value in a map (Python's `split_between_processes`); the caller's
/// own object stays as it is. With `apply_padding` the last item is repeated until all ranks have the same number. No communication.
/// Error E_DATA when the values of a map differ in length.
template <class T>
std::vector<T> split_between(std::vector<T> const& all, int64_t rank, int64_t size, bool apply_padding) {
    Stretch const mine(static_cast<int64_t>(all.size()), rank, size);
    std::vector<T> part(all.begin() + mine.begin, all.begin() + mine.begin + mine.count);
    if (apply_padding && !all.empty()) part.resize(static_cast<size_t>(mine.padded), all.back());
    return part;
}

inline at::Tensor split_between(at::Tensor const& all, int64_t rank, int64_t size, bool apply_padding) {
    check(all.dim() > 0, code::data, "split_between_processes: a 0-dim tensor has no rows");
    auto const n = all.size(0);
    Stretch const mine(n, rank, size);
    auto const part = all.narrow(0, mine.begin, mine.count);
    if (!apply_padding || n == 0 || mine.count == mine.padded) return part;
    return at::cat({part, all.narrow(0, n - 1, 1)});
}

namespace detail {
inline int64_t length(at::Tensor const& t) { return t.dim() > 0 ? t.size(0) : -1; }
template <class T>
int64_t length(std::vector<T> const& v) { return static_cast<int64_t>(v.size()); }

template <class Map>
Map split_map(Map const& all, int64_t rank, int64_t size, bool apply_padding) {
    Map part;
    for (auto const& [key, value] : all) {
        check(length(value) == length(all.begin()->second), code::data, "split_between_processes: \"", key, "\" has ", length(value), " items and \"", all.begin()->first, "\" has ",
              length(all.begin()->second), "; all values of a map must have the same length");
        part[key] = split_between(value, rank, size, apply_padding);
    }
    return part;
}
}  // namespace detail

template <class K, class V>
std::map<K, V> split_between(std::map<K, V> const& all, int64_t rank, int64_t size, bool apply_padding) { return detail::split_map(all, rank, size, apply_padding); }
template <class K, class V>
std::unordered_map<K, V> split_between(std::unordered_map<K, V> const& all, int64_t rank, int64_t size, bool apply_padding) { return detail::split_map(all, rank, size, apply_padding); }

}  // namespace accelerate::comm
