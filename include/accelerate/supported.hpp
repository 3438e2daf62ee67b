#pragma once

#include <accelerate/data/policy.hpp>
#include <accelerate/device/policy.hpp>
#include <accelerate/precision/policy.hpp>
#include <accelerate/sharding/policy.hpp>

namespace accelerate {

namespace detail {
template <class T>
concept absent_backend = T::absent;
}

/// Which four policies work together: so far all that satisfy their concepts and whose backend this build has. The table in the
/// README is made from it.
template <class Device, class Precision, class Sharding, class Loader>
inline constexpr bool supported = [] {
    if constexpr (detail::absent_backend<Device>) return false;
    else if constexpr (requires { requires detail::absent_backend<typename Device::communicator>; }) return false;
    else if constexpr (device_policy<Device> && precision_policy<Precision>) return sharding_policy<Sharding, Device> && loader_policy<Loader>;
    else return false;
}();

}  // namespace accelerate
