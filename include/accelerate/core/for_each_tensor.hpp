#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/aggregate.hpp>
#include <concepts>
#include <optional>
#include <ranges>
#include <string_view>
#include <tuple>
#include <type_traits>

namespace accelerate {
namespace detail::walk {

void for_each_tensor() = delete;  // so that only overloads of the value's own namespace are found here

template <class V, class F>
concept has_own = requires(V& value, F& f) { for_each_tensor(value, f); };
template <class V>
concept tuple_like = requires { std::tuple_size<std::remove_cv_t<V>>::value; };
template <class V>
concept range_of_objects = std::ranges::range<V&> && std::is_lvalue_reference_v<std::ranges::range_reference_t<V&>> &&
                           std::is_class_v<std::remove_reference_t<std::ranges::range_reference_t<V&>>>;
template <class V>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

/// `Strict`: a type that is not known does not compile; else it counts as one that holds no tensor.
template <bool Strict>
struct ForEachTensor {
    template <class V, class F>
    constexpr void operator()(V& value, F&& f) const {
        using T = std::remove_cv_t<V>;
        if constexpr (std::same_as<T, at::Tensor>) {
            if (value.defined()) f(value);
        } else if constexpr (has_own<V, F>) for_each_tensor(value, f);
        else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_null_pointer_v<T> || std::convertible_to<V&, std::string_view>) {
        } else if constexpr (is_optional<T>) {
            if (value) (*this)(*value, f);
        } else if constexpr (tuple_like<V>) each(value, f);
        else if constexpr (range_of_objects<V>) {
            for (auto& element : value) (*this)(element, f);
        } else if constexpr (std::ranges::range<V&>) {
        } else if constexpr (decomposable<T>) {
            auto members = fields(value);
            each(members, f);
        } else
            static_assert(!Strict || sizeof(V) == 0,
                          "for_each_tensor: this type is not known; write for_each_tensor(value, f) in its namespace, calling accelerate::for_each_tensor on each member");
    }

private:
    template <class Tuple, class F>
    constexpr void each(Tuple& parts, F& f) const {
        std::apply([&](auto&... part) { ((*this)(part, f), ...); }, parts);
    }
};

}  // namespace detail::walk

/// Calls `f(tensor)` for every defined tensor inside a value, in order: what a forward takes or gives, a batch, what a collective
/// is called on. Knows tensors, numbers, strings, optional, pair, tuple, array, ranges (vector, map) and plain structs of them.
/// Any other type of yours joins by an overload in its namespace:
///   void for_each_tensor(Output& o, auto&& f) { acc::for_each_tensor(o.logits, f); }
inline constexpr detail::walk::ForEachTensor<true> for_each_tensor{};

/// The same, except that what is not known is left alone.
inline constexpr detail::walk::ForEachTensor<false> for_each_known_tensor{};

}  // namespace accelerate
