#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <accelerate/precision/fp8_recipe.hpp>
#include <accelerate/precision/gemm.hpp>

namespace accelerate::precision {

/// What a recipe's scales belong to.
template <class Recipe>
inline constexpr Fp8Scales scales_of = [] {
    if constexpr (requires { Recipe::scales; }) return Recipe::scales;
    else return Fp8Scales::Block;
}();

/// Whether this process' GPUs multiply fp8 matrices (compute capability 8.9 and up): asked once, by doing it.
inline bool gpu_has_fp8_units(at::Device device) {
    static bool const has = [&] {
        try {
            auto const a = at::zeros({16, 16}, at::TensorOptions().dtype(at::kFloat8_e4m3fn).device(device)), scale = at::ones({}, at::TensorOptions().dtype(at::kFloat).device(device));
            static_cast<void>(at::_scaled_mm(a, a.t(), scale, scale, {}, {}, at::kBFloat16));
            return true;
        } catch (c10::Error const&) { return false; }
    }();
    return has;
}

/// Whether LibTorch's `_scaled_mm` makes a recipe's products on that device, in the way `G`; else they are emulated. On CPUs it widens
/// its operands itself, and only those with one scale a matrix: `Gemm::Native` asks for it.
template <class Recipe, Gemm G>
bool has_fp8_product(at::Device device) {
    if constexpr (G == Gemm::Widened || scales_of<Recipe> == Fp8Scales::Block) return false;
    else if (device.is_cuda()) return gpu_has_fp8_units(device);
    else return G == Gemm::Native && scales_of<Recipe> == Fp8Scales::Matrix && device.is_cpu();
}

/// How a product adds up: fp8 units can keep fewer bits of sums, which is faster by a tenth (what TransformerEngine does in forwards).
enum class Accumulation { Full, Fast };

/// `a b^T + bias` in `dtype`. Where the operands carry scales `_scaled_mm` makes it (its columns and the rows of `b` are multiples of 16), else it is a
/// product in the dtype of the numbers (fp32: those that fp8 stands for).
inline at::Tensor fp8_product(Rounded const& a, Rounded const& b, at::ScalarType dtype, at::Tensor const& bias = {}, Accumulation how = Accumulation::Full) {
    if (a.numbers.numel() == 0 || b.numbers.numel() == 0) return at::zeros({a.numbers.size(0), b.numbers.size(0)}, a.numbers.options().dtype(dtype));
    if (!a.scale.defined()) {
        auto const y = at::matmul(a.numbers, b.numbers.t());
        return (bias.defined() ? y + bias : y).to(dtype);
    }
    auto const result = a.scale.numel() > 1 ? at::kBFloat16 : dtype;  // all that the kernels with a scale a row can
    auto const added = bias.defined() ? std::optional(bias.to(result)) : std::nullopt;
    return at::_scaled_mm(a.numbers, b.numbers.t(), a.scale.reciprocal(), b.scale.reciprocal().t(), added, {}, result, how == Accumulation::Fast).to(dtype);
}

}  // namespace accelerate::precision
