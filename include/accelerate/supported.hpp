#pragma once

#include <accelerate/data/policy.hpp>
#include <accelerate/device/policy.hpp>
#include <accelerate/module/placement.hpp>
#include <accelerate/precision/policy.hpp>
#include <accelerate/sharding/policy.hpp>
#include <type_traits>

namespace accelerate {

namespace detail {
template <class T>
concept absent_backend = T::absent;
}

/// Whether a sharding can hold what a precision makes of parameters: `prepare` casts them, `make` has spread them over the ranks before.
template <class Device, class Precision, class Sharding>
inline constexpr bool parameters_fit = Precision::parameter == at::kFloat || std::is_same_v<typename Sharding::template placement<Device>, place::Resident> ||
                                       requires(torch::nn::Module& root) { Sharding::template placement<Device>::cast(root, Precision::parameter); };

/// Which four policies work together: all that satisfy their concepts, whose backend this build has, and whose parameters fit. The table
/// in the README is made from it.
template <class Device, class Precision, class Sharding, class Loader>
inline constexpr bool supported = [] {
    if constexpr (detail::absent_backend<Device>) return false;
    else if constexpr (requires { requires detail::absent_backend<typename Device::communicator>; }) return false;
    else if constexpr (device_policy<Device> && precision_policy<Precision>) {
        if constexpr (sharding_policy<Sharding, Device>) return loader_policy<Loader> && parameters_fit<Device, Precision, Sharding>;
        else return false;
    }
    else return false;
}();

}  // namespace accelerate
