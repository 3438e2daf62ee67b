#pragma once

#include <accelerate/precision/autocast_policy.hpp>

namespace accelerate {

/// Options of `precision::Bf16`.
struct bf16 {
    bool cache_enabled = true;  ///< weights are cast once a scope instead of once a use; costs their size in bf16 meanwhile
    Gemm gemm = Gemm::Native;   ///< of `acc::Linear<S>`: `Gemm::Widened` is the faster one on CPUs without bf16 units
};

namespace precision {

/// bfloat16 by autocast: parameters, gradients and optimizer in fp32, matrix products in bf16, operations that need it in fp32.
/// Outputs keep the dtype that their operation gave them. Range as fp32's, so no gradient scaler. On CPUs without bf16 units it
/// is slower than fp32.
template <bf16 O = bf16{}>
struct Bf16 : AutocastPolicy<at::kBFloat16, O.cache_enabled, O.gemm> {
    static constexpr char const* name = "bf16";
};

}  // namespace precision
}  // namespace accelerate
