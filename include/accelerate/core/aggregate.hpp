#pragma once

#include <cstddef>
#include <tuple>
#include <type_traits>
#include <utility>

namespace accelerate {

namespace detail {

/// Converts to anything: stands for "some initialiser" when the members of an aggregate are counted.
struct Anything {
    template <class T>
    operator T() const noexcept;
};

template <class T, size_t... I>
consteval bool takes(std::index_sequence<I...>) {
    return requires { T{(static_cast<void>(I), Anything())...}; };
}

inline constexpr size_t most_fields = 16;

/// The largest number of initialisers that T{...} takes: tried from above, since types without default may refuse fewer.
template <class T, size_t N = most_fields + 1>
consteval size_t count_fields() {
    if constexpr (N == 0) return 0;
    else if constexpr (takes<T>(std::make_index_sequence<N>())) return N;
    else return count_fields<T, N - 1>();
}

}  // namespace detail

/// A plain struct whose members can be enumerated without registration: an aggregate with 1 to 16 members, no base class and no
/// C array (`std::array` is fine).
template <class T>
concept decomposable = std::is_class_v<T> && std::is_aggregate_v<T> && (detail::count_fields<T>() >= 1) && (detail::count_fields<T>() <= detail::most_fields);

/// The members of a plain struct as a tuple of references, in their order.
template <class T>
    requires decomposable<std::remove_const_t<T>>
constexpr auto fields(T& s) {
    constexpr auto n = detail::count_fields<std::remove_const_t<T>>();
    if constexpr (n == 1) { auto& [a] = s; return std::tie(a); }
    else if constexpr (n == 2) { auto& [a, b] = s; return std::tie(a, b); }
    else if constexpr (n == 3) { auto& [a, b, c] = s; return std::tie(a, b, c); }
    else if constexpr (n == 4) { auto& [a, b, c, d] = s; return std::tie(a, b, c, d); }
    else if constexpr (n == 5) { auto& [a, b, c, d, e] = s; return std::tie(a, b, c, d, e); }
    else if constexpr (n == 6) { auto& [a, b, c, d, e, f] = s; return std::tie(a, b, c, d, e, f); }
    else if constexpr (n == 7) { auto& [a, b, c, d, e, f, g] = s; return std::tie(a, b, c, d, e, f, g); }
    else if constexpr (n == 8) { auto& [a, b, c, d, e, f, g, h] = s; return std::tie(a, b, c, d, e, f, g, h); }
    else if constexpr (n == 9) { auto& [a, b, c, d, e, f, g, h, i] = s; return std::tie(a, b, c, d, e, f, g, h, i); }
    else if constexpr (n == 10) { auto& [a, b, c, d, e, f, g, h, i, j] = s; return std::tie(a, b, c, d, e, f, g, h, i, j); }
    else if constexpr (n == 11) { auto& [a, b, c, d, e, f, g, h, i, j, k] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k); }
    else if constexpr (n == 12) { auto& [a, b, c, d, e, f, g, h, i, j, k, l] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k, l); }
    else if constexpr (n == 13) { auto& [a, b, c, d, e, f, g, h, i, j, k, l, m] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k, l, m); }
    else if constexpr (n == 14) { auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, o] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k, l, m, o); }
    else if constexpr (n == 15) { auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, o, p] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k, l, m, o, p); }
    else { auto& [a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q] = s; return std::tie(a, b, c, d, e, f, g, h, i, j, k, l, m, o, p, q); }
}

}  // namespace accelerate
