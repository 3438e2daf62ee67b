#pragma once

#include <accelerate/data/policy.hpp>
#include <accelerate/device/policy.hpp>
#include <accelerate/precision/policy.hpp>
#include <accelerate/sharding/policy.hpp>

namespace accelerate {

/// A policy of a backend that this build is without: it names the option that switches it on (`static constexpr char const* absent`).
template <class P>
concept absent_policy = requires { { P::absent } -> std::convertible_to<char const*>; };

/// Sharding policies of which some devices cannot hold what they make say so: `template <class Device> static constexpr bool holds`.
template <class S, class Device>
consteval bool sharding_holds() {
    if constexpr (requires { { S::template holds<Device> } -> std::convertible_to<bool>; }) return S::template holds<Device>;
    else return true;
}

/// Which four policies work together. The table in the README is made from it.
template <class Device, class Precision, class Sharding, class Loader>
inline constexpr bool supported = [] {
    if constexpr (device_policy<Device> && precision_policy<Precision>) {
        if constexpr (absent_policy<Device> || absent_policy<Precision>) return false;
        else return sharding_policy<Sharding, Device> && loader_policy<Loader> && sharding_holds<Sharding, Device>();
    } else {
        return false;
    }
}();

}  // namespace accelerate
