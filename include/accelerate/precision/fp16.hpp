#pragma once

#include <accelerate/precision/autocast_policy.hpp>
#include <accelerate/precision/grad_scaler.hpp>
#include <type_traits>

namespace accelerate {

/// How `precision::Fp16` keeps small gradients from vanishing.
enum class LossScale {
    Dynamic,   ///< as large as gradients allow
    Constant,  ///< `accelerator_options::grad_scaler.init_scale` for the whole run
    None,      ///< a compile error: gradients below 6e-8 would be lost
};

/// Options of `precision::Fp16`.
struct fp16 {
    bool cache_enabled = true;  ///< weights are cast once a scope instead of once a use; costs their size in fp16 meanwhile
    LossScale loss_scale = LossScale::Dynamic;
    Gemm gemm = Gemm::Auto;     ///< of `acc::Linear<S>`
};

namespace precision {

/// float16 by autocast: parameters, gradients and optimizer in fp32, matrix products in fp16, operations that need it in fp32. fp16
/// ends at 65504 and at 6e-8: the loss is scaled, gradients are unscaled before they are used, and a step whose gradients overflowed
/// is skipped. Outputs keep the dtype that their operation gave them. On CPUs without units, what is no `acc::Linear` is a hundred times
/// slower than in fp32.
template <fp16 O = fp16{}>
struct Fp16 : AutocastPolicy<at::kHalf, O.cache_enabled, O.gemm> {
    static_assert(O.loss_scale != LossScale::None, "precision::Fp16: without a gradient scaler gradients below 6e-8 are lost; use LossScale::Dynamic or LossScale::Constant, or precision::Bf16<>");
    static constexpr char const* name = "fp16";
    using scaler = std::conditional_t<O.loss_scale == LossScale::Constant, ConstantScaler, DynamicScaler>;
};

}  // namespace precision
}  // namespace accelerate
