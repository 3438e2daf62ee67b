#pragma once

#include <accelerate/sharding/flat.hpp>
#include <accelerate/sharding/window.hpp>

namespace accelerate {

/// A sharding policy: how parameters, gradients and optimizer state are cut over the ranks.
/// `name` is printed; `template <class Device> model` is what a prepared model becomes: constructible from (`sharding::ModelParts`,
/// communicator), satisfying `sharding::flat_model`, and told about each forward and backward:
///   before_forward() (also without grad mode), before_backward(loss), after_backward(), window(), stage(), advance(...),
///   sum_over_ranks(double), replicas().
/// `sharding::None` is the shortest model of how to write one.
template <class S, class Device>
concept sharding_policy = requires {
    { S::name } -> std::convertible_to<char const*>;
    typename S::template model<Device>;
} && sharding::flat_model<typename S::template model<Device>>;

}  // namespace accelerate
