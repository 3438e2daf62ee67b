#pragma once

#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/cast_once_linear.hpp>
#include <accelerate/precision/policy.hpp>

namespace accelerate {

/// Options of `precision::Bf16`.
struct bf16 {
    bool cache_enabled = true;  ///< weights are cast once a scope instead of once a use; costs their size in bf16 meanwhile
};

namespace precision {

/// bfloat16 by autocast: parameters, gradients and optimizer in fp32, matrix products in bf16, operations that need it in fp32.
/// Outputs keep the dtype that their operation gave them. Range as fp32's, so no gradient scaler. On CPUs without bf16 units it
/// is slower than fp32.
template <bf16 O = bf16{}>
struct Bf16 {
    static constexpr at::ScalarType parameter = at::kFloat, compute = at::kBFloat16, reduction = at::kFloat, master = at::kFloat;
    static constexpr char const* name = "bf16";
    template <class Impl>
    using impl = cast_once_t<Impl>;

    template <class Device>
    struct scope : Autocast {
        explicit scope(bool enabled = true) : Autocast(Device::type, compute, enabled, O.cache_enabled) {}
    };
    template <class Device>
    struct pause : AutocastPause {
        pause() : AutocastPause(Device::type) {}
    };
    static void parameters_changed() { at::autocast::clear_cache(); }
};

}  // namespace precision
}  // namespace accelerate
