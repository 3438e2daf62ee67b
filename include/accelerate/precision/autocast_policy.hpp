#pragma once

#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/cast_once_linear.hpp>
#include <accelerate/precision/policy.hpp>

namespace accelerate::precision {

/// What the precisions by autocast share: parameters, gradients and optimizer in fp32, matrix products in `Compute`, operations that
/// need it in fp32. Outputs keep the dtype that their operation gave them.
template <at::ScalarType Compute, bool CacheEnabled>
struct AutocastPolicy {
    static constexpr at::ScalarType parameter = at::kFloat, compute = Compute, reduction = at::kFloat, master = at::kFloat;
    template <class Impl>
    using impl = cast_once_t<Impl>;

    template <class Device>
    struct scope : Autocast {
        explicit scope(bool enabled = true) : Autocast(Device::type, Compute, enabled, CacheEnabled) {}
    };
    template <class Device>
    struct pause : AutocastPause {
        pause() : AutocastPause(Device::type) {}
    };
    static void parameters_changed() { at::autocast::clear_cache(); }
};

}  // namespace accelerate::precision
