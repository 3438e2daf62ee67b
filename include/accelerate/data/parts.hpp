#pragma once

#include <accelerate/data/dataset.hpp>
#include <string>
#include <tuple>
#include <vector>

namespace accelerate::data {

namespace detail {

/// A std::vector of data sets (a string is a sample, not a data set of letters).
template <class V>
concept dataset_list = requires {
    typename V::value_type;
    requires std::same_as<V, std::vector<typename V::value_type>> && IndexedDataset<typename V::value_type>;
    requires !std::same_as<typename V::value_type, std::string>;
};

/// The sample type of them all, or a compile error.
template <class First, class... D>
consteval auto one_sample_type() {
    constexpr bool indexed = IndexedDataset<First> && (IndexedDataset<D> && ...);
    static_assert(indexed, "data: Concat and Mixture take data sets with size() and operator[](size_t); see data/dataset.hpp");
    if constexpr (indexed) {
        constexpr bool same = (std::same_as<sample_t<D>, sample_t<First>> && ...);
        static_assert(same, "data: Concat and Mixture take data sets of one sample type; make it one with data::map(dataset, f)");
        return std::type_identity<sample_t<First>>();
    } else return std::type_identity<First>();
}

/// Several indexed data sets of one sample type: named ones referenced, temporaries owned. Read as non-const, as a loader does.
template <class... D>
class Parts {
public:
    using sample_type = typename decltype(one_sample_type<D...>())::type;

    explicit Parts(D&&... parts) : parts_(std::forward<D>(parts)...) {}

    std::vector<size_t> sizes() const {
        return std::apply([](auto&... part) { return std::vector{static_cast<size_t>(part.size())...}; }, parts_);
    }
    template <size_t K = 0>
    sample_type read(size_t part, size_t i, Random& random) const {
        if constexpr (K + 1 < sizeof...(D))
            if (part != K) return read<K + 1>(part, i, random);
        return read_sample(std::get<K>(parts_), i, std::move(random));
    }

private:
    mutable std::tuple<D...> parts_;
};

template <class V>
    requires dataset_list<std::remove_cvref_t<V>>
class Parts<V> {
public:
    using sample_type = sample_t<decltype(std::declval<V&>()[0])>;

    explicit Parts(V&& parts) : parts_(std::forward<V>(parts)) {}

    std::vector<size_t> sizes() const {
        std::vector<size_t> sizes;
        for (auto& part : std::get<0>(parts_)) sizes.push_back(static_cast<size_t>(part.size()));
        return sizes;
    }
    sample_type read(size_t part, size_t i, Random& random) const { return read_sample(std::get<0>(parts_)[part], i, std::move(random)); }

private:
    mutable std::tuple<V> parts_;
};

}  // namespace detail

}  // namespace accelerate::data
