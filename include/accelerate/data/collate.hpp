#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/core/aggregate.hpp>
#include <array>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace accelerate::data {

namespace detail {

template <class T>
inline constexpr bool is_tuple = false;
template <class... T>
inline constexpr bool is_tuple<std::tuple<T...>> = true;
template <class A, class B>
inline constexpr bool is_tuple<std::pair<A, B>> = true;

template <class T>
inline constexpr bool is_array = false;
template <class T, size_t N>
inline constexpr bool is_array<std::array<T, N>> = true;

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

template <class T>
inline constexpr bool is_map = false;
template <class K, class T>
inline constexpr bool is_map<std::map<K, T>> = true;
template <class K, class T>
inline constexpr bool is_map<std::unordered_map<K, T>> = true;

/// The same kind of map with other values.
template <class T, class To>
struct rebound {
    using type = T;
};
template <class K, class V, class To>
struct rebound<std::map<K, V>, To> {
    using type = std::map<K, To>;
};
template <class K, class V, class To>
struct rebound<std::unordered_map<K, V>, To> {
    using type = std::unordered_map<K, To>;
};

/// int64 for integers, bool, float and double as they are.
template <class T>
using element_t = std::conditional_t<std::is_same_v<T, bool> || std::is_same_v<T, float>, T, std::conditional_t<std::is_floating_point_v<T>, double, int64_t>>;

inline at::Tensor stack(std::vector<at::Tensor> const& items) {
    for (size_t i = 1; i < items.size(); ++i)
        check(items[i].sizes() == items[0].sizes(), code::data, "data::collate: item ", i, " of the batch has shape ", items[i].sizes(), ", item 0 has ",
              items[0].sizes(), "; pad them in the data set or give the Loader a collate function");
    return at::stack(items);
}

/// Numbers, row by row, as a tensor of `sizes`.
template <class T, class F>
at::Tensor fill(std::vector<int64_t> const& sizes, size_t rows, F const& copy_row) {
    auto out = at::empty(sizes, at::TensorOptions(c10::CppTypeToScalarType<element_t<T>>::value));
    auto* to = out.template mutable_data_ptr<element_t<T>>();
    for (size_t i = 0; i < rows; ++i) to = copy_row(i, to);
    return out;
}

/// A type that says itself what its batch is.
template <class T>
concept collates_itself = requires(std::vector<T> items) { T::collate(std::move(items)); };

template <class T>
auto collate(std::vector<T>&& items);

/// One part of every item, collated.
template <class T, class F>
auto collate_part(std::vector<T>& items, F const& part) {
    std::vector<std::remove_cvref_t<decltype(part(items[0]))>> parts;
    parts.reserve(items.size());
    for (auto& item : items) parts.push_back(std::move(part(item)));
    return collate(std::move(parts));
}

template <class T>
using batch_t = decltype(collate(std::declval<std::vector<T>>()));

template <class T, size_t... I>
auto collate_tuple(std::vector<T>& items, std::index_sequence<I...>) {
    auto parts = std::tuple{collate_part(items, [](T& item) -> auto& { return std::get<I>(item); })...};
    if constexpr (sizeof...(I) == 2 && requires(T& t) { t.first; }) return std::pair{std::move(std::get<0>(parts)), std::move(std::get<1>(parts))};
    else return parts;
}

template <class T, class Fields = decltype(fields(std::declval<T&>()))>
inline constexpr bool keeps_type = false;
template <class T, class... F>
inline constexpr bool keeps_type<T, std::tuple<F&...>> = (std::is_same_v<batch_t<F>, F> && ...);

template <class T, size_t... I>
auto collate_struct(std::vector<T>& items, std::index_sequence<I...>) {
    if constexpr (requires { typename T::batch; })
        return typename T::batch{collate_part(items, [](T& item) -> auto& { return std::get<I>(fields(item)); })...};
    else if constexpr (keeps_type<T>)
        return T{collate_part(items, [](T& item) -> auto& { return std::get<I>(fields(item)); })...};
    else return at::Tensor();  // require_collatable has refused it
}

template <class T>
void require_length(std::vector<T> const& items, size_t i) {
    check(items[i].size() == items[0].size(), code::data, "data::collate: item ", i, " of the batch has ", items[i].size(), " elements, item 0 has ",
          items[0].size(), "; pad them in the data set or give the Loader a collate function");
}

/// Vectors and arrays: numbers become the rows of a matrix, anything else is collated element by element.
template <class T>
auto collate_sequence(std::vector<T>& items) {
    using Element = typename T::value_type;
    for (size_t i = 1; i < items.size(); ++i) require_length(items, i);
    if constexpr (std::is_arithmetic_v<Element>) {
        return fill<Element>({static_cast<int64_t>(items.size()), static_cast<int64_t>(items[0].size())}, items.size(), [&](size_t i, auto* to) {
            for (auto value : items[i]) *to++ = static_cast<element_t<Element>>(value);
            return to;
        });
    } else {
        auto const element = [&](size_t k) { return collate_part(items, [k](T& item) -> auto& { return item[k]; }); };
        if constexpr (is_array<T>)
            return [&]<size_t... K>(std::index_sequence<K...>) { return std::array{element(K)...}; }(std::make_index_sequence<std::tuple_size_v<T>>());
        else {
            std::vector<batch_t<Element>> out;
            for (size_t k = 0; k < items[0].size(); ++k) out.push_back(element(k));
            return out;
        }
    }
}

template <class T>
auto collate_map(std::vector<T>& items) {
    typename rebound<T, batch_t<typename T::mapped_type>>::type out;
    for (size_t i = 1; i < items.size(); ++i) require_length(items, i);
    for (auto const& entry : items[0]) {
        auto const& key = entry.first;
        for (size_t i = 1; i < items.size(); ++i)
            check(items[i].count(key) > 0, code::data, "data::collate: item ", i, " of the batch has no \"", key,
                  "\", item 0 has one; give all samples the same keys");
        out[key] = collate_part(items, [&](T& item) -> auto& { return item.find(key)->second; });
    }
    return out;
}

template <class T>
auto collate(std::vector<T>&& items) {
    if constexpr (collates_itself<T>) return T::collate(std::move(items));
    else if constexpr (std::is_same_v<T, at::Tensor>) return stack(items);
    else if constexpr (std::is_arithmetic_v<T>)
        return fill<T>({static_cast<int64_t>(items.size())}, items.size(), [&](size_t i, auto* to) {
            *to = static_cast<element_t<T>>(items[i]);
            return to + 1;
        });
    else if constexpr (std::is_same_v<T, std::string>) return std::vector<std::string>(std::move(items));
    else if constexpr (is_tuple<T>) return collate_tuple(items, std::make_index_sequence<std::tuple_size_v<T>>());
    else if constexpr (is_array<T> || is_vector<T>) return collate_sequence(items);
    else if constexpr (is_map<T> || std::is_same_v<T, TensorMap>) return collate_map(items);
    else if constexpr (decomposable<T>) return collate_struct(items, std::make_index_sequence<std::tuple_size_v<decltype(fields(std::declval<T&>()))>>());
    else return at::Tensor();  // require_collatable has refused it
}

/// Whether samples of a type can be collated: yes; no, a part is of no known kind; no, a struct cannot hold its own batch.
enum class Fit { Yes, Unknown, NoBatch };

template <class T>
consteval Fit fit();

template <class... Part>
consteval Fit worst(std::type_identity<std::tuple<Part...>>) {
    auto found = Fit::Yes;
    ((found = found == Fit::Yes ? fit<std::remove_cvref_t<Part>>() : found), ...);
    return found;
}

template <class T>
consteval Fit fit() {
    if constexpr (collates_itself<T> || std::is_same_v<T, at::Tensor> || std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) return Fit::Yes;
    else if constexpr (is_tuple<T>) return worst(std::type_identity<decltype(std::tuple_cat(std::declval<T>()))>());
    else if constexpr (is_array<T> || is_vector<T>) return fit<typename T::value_type>();
    else if constexpr (is_map<T> || std::is_same_v<T, TensorMap>) return fit<typename T::mapped_type>();
    else if constexpr (decomposable<T>) {
        constexpr auto members = worst(std::type_identity<decltype(fields(std::declval<T&>()))>());
        if constexpr (members != Fit::Yes || requires { typename T::batch; }) return members;
        else return keeps_type<T> ? Fit::Yes : Fit::NoBatch;
    } else return Fit::Unknown;
}

}  // namespace detail

/// True, or a compile error that says why samples of type T cannot be collated.
template <class T>
consteval bool require_collatable() {
    constexpr auto fit = detail::fit<T>();
    static_assert(fit != detail::Fit::Unknown, "data::collate: a sample must be a tensor, number, string, or a plain struct (at most 16 members, no constructors), tuple, pair, array, "
                                               "vector or map of such; else give the Loader a collate function");
    static_assert(fit != detail::Fit::NoBatch, "data::collate: a struct with members other than tensors cannot hold its own batch; give it a member type `batch`, a struct with "
                                               "the collated members in the same order (numbers become a torch::Tensor), or give the Loader a collate function");
    return fit == detail::Fit::Yes;
}

/// Makes one batch of n samples, as Python's default collation does:
///
///     tensor                      stacked along a new dimension 0; all shapes must be equal
///     number                      1-D tensor: int64 for integers, float, double, bool
///     string                      std::vector<std::string>
///     tuple, pair                 the same of batches
///     vector, array of numbers    2-D tensor, a row for each sample
///     other vector, array, map    the same of batches; all must have the same length or keys
///     struct of tensors           the same struct, stacked; nothing has to be registered
///     other struct S              `S::batch`, a struct of the batches of its members in their order, if it has one; else a
///                                 compile error that says so
///     type with a static `collate(std::vector<T>&&)`    what that gives: `PaddedSequence` and `PackedSequence` for tensors
///                                 [length, ...] of different length (data/ragged.hpp), or a type of yours
///
/// Error E_DATA naming the item that does not fit.
struct Collate {
    template <class Sample>
    auto operator()(std::vector<Sample>&& samples) const {
        static_assert(require_collatable<Sample>());
        return detail::collate(std::move(samples));
    }
};

/// The batch type of samples of type T.
template <class T>
using batch_t = detail::batch_t<T>;

}  // namespace accelerate::data
