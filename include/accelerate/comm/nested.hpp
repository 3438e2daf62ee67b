#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/core/for_each_tensor.hpp>
#include <concepts>
#include <string_view>

/// Collectives on every tensor of a nested value (see `for_each_tensor`), one operation a tensor. The value must have the same
/// structure on every rank; what is no tensor stays this rank's own. An undefined tensor in it is absent; one by itself is error E_CONFIG, which
/// all ranks hear of.
namespace accelerate::comm {
namespace detail {

template <class Value, class F>
void for_each_sent(Value& value, F&& f) {
    if constexpr (std::same_as<Value, at::Tensor>) f(value);
    else for_each_tensor(value, f);
}
inline at::Tensor detached(at::Tensor const& t) { return t.defined() ? t.detach() : t; }

}  // namespace detail

/// Each tensor becomes those of all ranks, side by side along dimension 0 (which may differ between ranks); 0-dim ones become 1-D.
template <communicator Comm, class Value>
Value gather(Comm const& ranks, Value value) {
    detail::for_each_sent(value, [&](at::Tensor& t) { t = ranks.all_gather(detail::detached(t)); });
    return value;
}

/// A reduced copy of each tensor; `reduction` as Python names it: "sum", "mean", "max", "min".
template <communicator Comm, class Value>
Value reduce(Comm const& ranks, Value value, std::string_view reduction) {
    auto const how = comm::reduction(reduction);
    detail::for_each_sent(value, [&](at::Tensor& t) {
        if (t.defined()) t = t.detach().clone();
        ranks.all_reduce(t, how);
    });
    return value;
}

/// The values of rank `from` to all, in place.
template <communicator Comm, class Value>
void broadcast(Comm const& ranks, Value& value, int64_t from) {
    detail::for_each_sent(value, [&](at::Tensor& t) { ranks.broadcast(detail::detached(t), from); });
}

}  // namespace accelerate::comm
