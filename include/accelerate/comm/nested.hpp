#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/core/for_each_tensor.hpp>

/// Collectives on every tensor of a nested value (see `for_each_tensor`), one operation a tensor. The value must have the same
/// structure on every rank; what is no tensor stays this rank's own.
namespace accelerate::comm {

/// Each tensor becomes those of all ranks, side by side along dimension 0 (which may differ between ranks); 0-dim ones become 1-D.
template <communicator Comm, class Value>
Value gather(Comm const& ranks, Value value) {
    for_each_tensor(value, [&](at::Tensor& t) { t = ranks.all_gather(t.detach()); });
    return value;
}

/// A reduced copy of each tensor; `reduction` as Python names it: "sum", "mean", "max", "min".
template <communicator Comm, class Value>
Value reduce(Comm const& ranks, Value value, std::string_view reduction) {
    auto const how = comm::reduction(reduction);
    for_each_tensor(value, [&](at::Tensor& t) {
        t = t.detach().clone();
        ranks.all_reduce(t, how);
    });
    return value;
}

/// The values of rank `from` to all, in place.
template <communicator Comm, class Value>
void broadcast(Comm const& ranks, Value& value, int64_t from) {
    for_each_tensor(value, [&](at::Tensor& t) { ranks.broadcast(t.detach(), from); });
}

}  // namespace accelerate::comm
