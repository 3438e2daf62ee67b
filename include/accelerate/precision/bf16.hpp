#pragma once

#include <accelerate/precision/autocast_policy.hpp>
#include <accelerate/precision/cast_parameters.hpp>

namespace accelerate {

/// Options of `precision::Bf16`.
struct bf16 {
    bool cache_enabled = true;  ///< weights are cast once a scope instead of once a use; costs their size in bf16 meanwhile
    Gemm gemm = Gemm::Auto;     ///< of `acc::Linear<S>`
    at::ScalarType parameters = at::kFloat;  ///< `kBFloat16`: `prepare` casts parameters and buffers, gradients are bf16 as well
    /// What optimizers of this library update where parameters are bf16: `kFloat` an fp32 copy of their own (4 bytes a parameter),
    /// `kBFloat16` the parameters (see `optimizer_storage::stochastic_rounding`).
    at::ScalarType master = at::kFloat;
};

namespace precision {

/// bfloat16 by autocast: parameters, gradients and optimizer in fp32, matrix products in bf16, operations that need it in fp32.
/// Outputs keep the dtype that their operation gave them. Range as fp32's, so no gradient scaler. On CPUs without bf16 units, what is no
/// `acc::Linear` is slower than in fp32. With `bf16{.parameters = at::kBFloat16}` the model is kept in bf16 ("pure" bf16); autocast still takes
/// inputs in fp32 and runs in fp32 what needs it.
template <bf16 O = bf16{}>
struct Bf16 : AutocastPolicy<at::kBFloat16, O.cache_enabled, O.gemm> {
    static_assert(O.parameters == at::kFloat || O.parameters == at::kBFloat16, "precision::Bf16: parameters are kept in kFloat or in kBFloat16");
    static_assert(O.master == at::kFloat || O.master == O.parameters, "precision::Bf16: master weights are fp32, or the parameters themselves");
    static constexpr at::ScalarType parameter = O.parameters, reduction = O.parameters, master = O.master;
    static constexpr char const* name = "bf16";

    template <class Module, class Options>
        requires(O.parameters == at::kBFloat16)
    static void prepare(Module& model, Options const&, at::Device) {
        cast_parameters(model, at::kBFloat16);
    }
};

}  // namespace precision
}  // namespace accelerate
