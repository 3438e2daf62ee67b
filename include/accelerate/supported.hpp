#pragma once

#include <accelerate/data/policy.hpp>
#include <accelerate/device/policy.hpp>
#include <accelerate/precision/policy.hpp>
#include <accelerate/sharding/policy.hpp>

namespace accelerate {

/// Which four policies work together: so far all that satisfy their concepts. The table in the README is made from it.
template <class Device, class Precision, class Sharding, class Loader>
inline constexpr bool supported = [] {
    if constexpr (device_policy<Device> && precision_policy<Precision>) return sharding_policy<Sharding, Device> && loader_policy<Loader>;
    else return false;
}();

}  // namespace accelerate
