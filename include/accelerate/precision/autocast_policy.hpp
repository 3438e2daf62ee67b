#pragma once

#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/low_precision_linear.hpp>
#include <accelerate/precision/policy.hpp>

namespace accelerate::precision {

/// What the precisions by autocast share: parameters, gradients and optimizer in fp32, matrix products in `Compute`, operations that
/// need it in fp32. Outputs keep the dtype that their operation gave them.
template <at::ScalarType Compute, bool CacheEnabled, Gemm G>
struct AutocastPolicy {
    static constexpr at::ScalarType parameter = at::kFloat, compute = Compute, reduction = at::kFloat, master = at::kFloat;
    template <class Impl>
    using impl = linear_becomes_t<Impl, LowPrecisionLinear<Impl, Product<Compute, G>>>;

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
