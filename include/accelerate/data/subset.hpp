#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/dataset.hpp>
#include <accelerate/data/permutation.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

namespace accelerate::data {

/// The samples of a data set that have those indices, in that order (an index may come twice). A data set given by name is
/// referenced and must outlive this, a temporary is moved in. Costs 8 bytes a sample. Batches are made by the data set if it can.
template <class D>
class Subset {
    static_assert(IndexedDataset<D>, "data::Subset: a data set needs size() and operator[](size_t); see data/dataset.hpp");

public:
    /// Error E_DATA naming the first index that the data set does not have.
    Subset(D&& dataset, std::vector<int64_t> indices) : dataset_(std::forward<D>(dataset)), indices_(std::move(indices)) {
        auto const size = static_cast<int64_t>(std::get<0>(dataset_).size());
        for (size_t k = 0; k < indices_.size(); ++k)
            check(indices_[k] >= 0 && indices_[k] < size, code::data, "data::Subset: indices[", k, "] is ", indices_[k],
                  "; the data set has size ", size);
    }

    std::vector<int64_t> const& indices() const { return indices_; }
    size_t size() const { return indices_.size(); }
    /// The random numbers are for a data set that changes its samples.
    auto at(size_t i, Random& random) const { return read_sample(std::get<0>(dataset_), static_cast<size_t>(indices_.at(i)), std::move(random)); }
    auto operator[](size_t i) const {
        Random random(0, 0, static_cast<int64_t>(i));
        return at(i, random);
    }
    auto batch(std::span<int64_t const> positions) const
        requires BatchingDataset<D>
    {
        std::vector<int64_t> inner;
        inner.reserve(positions.size());
        for (auto k : positions) inner.push_back(indices_.at(static_cast<size_t>(k)));
        return std::get<0>(dataset_).batch(std::span<int64_t const>(inner));
    }

private:
    mutable std::tuple<D> dataset_;  // read as non-const, as a loader does
    std::vector<int64_t> indices_;
};

template <class D>
Subset(D&&, std::vector<int64_t>) -> Subset<D>;

namespace detail {

/// How many of n samples each fraction is: rounded down, and the rest given out one by one from the first on.
inline std::vector<int64_t> split_lengths(int64_t n, std::span<double const> fractions) {
    auto const sum = std::accumulate(fractions.begin(), fractions.end(), 0.0);
    auto const good = std::all_of(fractions.begin(), fractions.end(), [](double f) { return f >= 0 && f <= 1; });
    check(good && std::abs(sum - 1) < 1e-6, code::config, "data::random_split: the fractions add up to ", sum, "; they must be in [0, 1] and add up to 1");
    std::vector<int64_t> lengths;
    for (auto f : fractions) lengths.push_back(static_cast<int64_t>(std::floor(static_cast<double>(n) * f)));
    auto const rest = n - std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    for (int64_t k = 0; k < rest; ++k) ++lengths[static_cast<size_t>(k) % lengths.size()];
    return lengths;
}
inline std::vector<int64_t> split_lengths(int64_t n, std::span<int64_t const> lengths) {
    auto const sum = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    auto const good = std::all_of(lengths.begin(), lengths.end(), [](int64_t l) { return l >= 0; });
    check(good && sum == n, code::config, "data::random_split: the lengths add up to ", sum, "; they must not be negative and add up to the data set's ", n);
    return {lengths.begin(), lengths.end()};
}

}  // namespace detail

/// Cuts 0 .. size-1 at random into disjoint index lists that are everything together: of those lengths if `parts` are integers, of
/// those fractions (see torch.utils.data.random_split) if they are not. A function of its arguments alone, the same on every rank.
/// Error E_CONFIG when the lengths do not add up to the size, or the fractions not to 1.
template <class T, size_t N>
    requires std::is_arithmetic_v<T>
std::array<std::vector<int64_t>, N> random_split(int64_t size, T const (&parts)[N], int64_t seed = 0) {
    using Number = std::conditional_t<std::is_floating_point_v<T>, double, int64_t>;
    std::array<Number, N> numbers;
    std::transform(parts, parts + N, numbers.begin(), [](T part) { return static_cast<Number>(part); });
    auto const lengths = detail::split_lengths(size, std::span<Number const>(numbers));
    Permutation const drawn(static_cast<uint64_t>(Seed(seed).stream("split", 0)), std::max<int64_t>(1, size));
    std::array<std::vector<int64_t>, N> out;
    for (size_t part = 0, k = 0; part < N; ++part)
        for (int64_t i = 0; i < lengths[part]; ++i) out[part].push_back(drawn[static_cast<int64_t>(k++)]);
    return out;
}

/// The same of a data set, which is referenced and must outlive the subsets.
///
///     auto [train, held_out] = data::random_split(dataset, {0.9, 0.1}, 42);
template <IndexedDataset D, class T, size_t N>
std::array<Subset<D&>, N> random_split(D& dataset, T const (&parts)[N], int64_t seed = 0) {
    auto indices = random_split(static_cast<int64_t>(dataset.size()), parts, seed);
    auto const subsets = [&]<size_t... I>(std::index_sequence<I...>) { return std::array<Subset<D&>, N>{Subset<D&>(dataset, std::move(indices[I]))...}; };
    return subsets(std::make_index_sequence<N>());
}

}  // namespace accelerate::data
