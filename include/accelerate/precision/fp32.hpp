#pragma once

#include <accelerate/precision/policy.hpp>

namespace accelerate::precision {

/// Everything in 32-bit floating point; costs nothing. (Modules that were given another dtype keep it.)
struct Fp32 {
    static constexpr at::ScalarType parameter = at::kFloat, compute = at::kFloat, reduction = at::kFloat, master = at::kFloat;
    static constexpr char const* name = "no";
    template <class Impl>
    using impl = Impl;
    template <class Device>
    using scope = NoScope;
    template <class Device>
    using pause = NoScope;
    static void parameters_changed() {}
};

}  // namespace accelerate::precision
