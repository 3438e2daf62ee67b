#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <optional>
#include <ranges>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

namespace accelerate {
namespace detail::walk {

void for_each_tensor() = delete;  // so that only overloads of the value's own namespace are found here

template <class V, class F>
concept has_own = requires(V& value, F& f) { for_each_tensor(value, f); };
template <class V>
concept tuple_like = requires { std::tuple_size<std::remove_cv_t<V>>::value; };
template <class V>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

struct ForEachTensor {
    template <class V, class F>
    constexpr void operator()(V& value, F&& f) const {
        using T = std::remove_cv_t<V>;
        if constexpr (std::same_as<T, at::Tensor>) {
            if (value.defined()) f(value);
        } else if constexpr (has_own<V, F>) for_each_tensor(value, f);
        else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::convertible_to<V&, std::string_view>) {
        } else if constexpr (is_optional<T>) {
            if (value) (*this)(*value, f);
        } else if constexpr (tuple_like<V>) std::apply([&](auto&... element) { ((*this)(element, f), ...); }, value);
        else if constexpr (std::ranges::range<V&>) {
            for (auto& element : value) (*this)(element, f);
        } else
            static_assert(sizeof(V) == 0, "for_each_tensor: this type is not known; write for_each_tensor(value, f) in its namespace, calling accelerate::for_each_tensor on each member");
    }
};

}  // namespace detail::walk

/// Calls `f(tensor)` for every defined tensor inside a value: what a forward takes or gives. Knows tensors, numbers, strings,
/// optional, pair, tuple, array and ranges (vector, map) of them. A type of yours joins by an overload in its namespace:
///   void for_each_tensor(Output& o, auto&& f) { acc::for_each_tensor(o.logits, f); }
inline constexpr detail::walk::ForEachTensor for_each_tensor{};

}  // namespace accelerate
