#pragma once

#include <accelerate/precision/autocast_policy.hpp>
#include <accelerate/precision/fp8_history.hpp>
#include <accelerate/precision/fp8_layers.hpp>
#include <accelerate/precision/fp8_report.hpp>

namespace accelerate::precision {

/// fp8 in the `acc::Linear<S>` layers that `prepare` chooses (it prints which), bf16 by autocast everywhere else; parameters, gradients
/// and optimizer in fp32. Recipes: `recipe::Tensorwise`, `Rowwise`, `Blockwise`, whose scales are those of the matrix at hand, and
/// `Delayed`, whose are of the steps before; `LowBitOptimizer<level>` adds fp8 behind the products. GPUs with fp8 units multiply in them
/// (LibTorch's `_scaled_mm`; not `Blockwise`); elsewhere it is emulated: what it costs in accuracy is real, its speed is not. A model
/// without a layer that can is refused.
template <class Recipe = recipe::Tensorwise, fp8 O = fp8{}>
struct Fp8 : AutocastPolicy<at::kBFloat16, true, O.gemm> {
    static constexpr at::ScalarType compute = at::kFloat8_e4m3fn;
    static constexpr char const* name = "fp8";
    static constexpr int low_bit_level = [] {
        if constexpr (requires { Recipe::low_bit_level; }) return Recipe::low_bit_level;
        else return 0;
    }();
    template <class Impl>
    using impl = linear_becomes_t<Impl, Fp8Linear<Impl, Recipe, O>>;

    static void prepare(torch::nn::Module& model, fp8_layers const& layers, at::Device device) { prepare_fp8(model, layers, Recipe::name, !has_fp8_product<Recipe, O.gemm>(device)); }

    static Fp8Histories after_update(torch::nn::Module& model)
        requires has_history<Recipe>
    {
        return Fp8Histories(model);
    }
    static StateDict state_dict(torch::nn::Module& model)
        requires has_history<Recipe>
    {
        return fp8_state_dict(model);
    }
    static void load_state_dict(torch::nn::Module& model, StateDict const& state)
        requires has_history<Recipe>
    {
        load_fp8_state_dict(model, state);
    }
};

}  // namespace accelerate::precision
