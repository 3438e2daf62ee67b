#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/where.h>

#include <accelerate/precision/amax_history.hpp>
#include <accelerate/precision/magnitude.hpp>
#include <cmath>
#include <cstdint>

namespace accelerate {
namespace precision {

/// What has one scale.
enum class Fp8Scales { Matrix, Row, Block };

/// What a matrix is in a linear layer; its last dimension is the one that is summed over.
enum class Operand { Activation, Weight, Gradient };

/// The largest finite number of an fp8 format.
constexpr double largest(at::ScalarType fp8) { return fp8 == at::kFloat8_e5m2 ? 57344 : 448; }

/// The nearest fp8 number, the largest one beyond the range (LibTorch's own cast gives NaN or infinity there). NaN stays NaN.
inline at::Tensor saturated(at::Tensor const& x, at::ScalarType fp8) { return x.clamp(-largest(fp8), largest(fp8)).to(fp8); }

}  // namespace precision

/// How many scales an fp8 matrix has, and from what. A recipe gives `amax(a, operand)`: the largest magnitude that each element of the
/// matrix `a` (rows, columns) shares its scale with, in a shape that broadcasts with it. One with a `history()` scales
/// activations and gradients by that instead. `scales` says what they belong to, where fp8 units are to multiply by them; without it
/// products are emulated.
namespace recipe {

/// One scale a matrix, from its own largest magnitude (torchao's `tensorwise`, dynamic).
struct Tensorwise {
    static constexpr char const* name = "Tensorwise";
    static constexpr auto scales = precision::Fp8Scales::Matrix;
    static at::Tensor amax(at::Tensor const& a, precision::Operand) { return precision::magnitude(a); }
};

/// One scale a row, so that a large number spoils its own row alone (torchao's `rowwise`).
struct Rowwise {
    static constexpr char const* name = "Rowwise";
    static constexpr auto scales = precision::Fp8Scales::Row;
    static at::Tensor amax(at::Tensor const& a, precision::Operand) { return precision::row_magnitudes(a); }
};

/// One scale for each 128 columns of a row, for weights for each 128 x 128 block (DeepSeek-V3, arXiv 2412.19437).
struct Blockwise {
    static constexpr char const* name = "Blockwise";
    static constexpr int64_t block = 128;
    static at::Tensor amax(at::Tensor const& a, precision::Operand operand) {
        auto const height = operand == precision::Operand::Weight ? block : 1;
        auto const blocks = [](int64_t n, int64_t size) { return (n + size - 1) / size; };
        auto const down = blocks(a.size(0), height), across = blocks(a.size(1), block);
        auto const padded = at::pad(a.abs(), {0, across * block - a.size(1), 0, down * height - a.size(0)});
        auto const each = padded.view({down, height, across, block}).amax({1, 3}, true).expand({down, height, across, block}).reshape({down * height, across * block});
        return each.narrow(0, 0, a.size(0)).narrow(1, 0, a.size(1));
    }
};

/// One scale a matrix, for activations and gradients from the steps before (TransformerEngine's `DelayedScaling`, for which `History`
/// is `amax_history_len`): on hardware that saves a pass over them, and what grows from one step to the next saturates. Weights are
/// scaled by themselves: they are at hand once a window, and after loading no scale is left over from other ones.
template <int64_t History = 1024, delayed O = delayed{}>
struct Delayed : Tensorwise {
    static_assert(History >= 1 && O.interval >= 1, "recipe::Delayed: the history and the interval need at least one step");
    static constexpr char const* name = "Delayed";
    static precision::AmaxHistory history() { return {History, O}; }
};

/// What MS-AMP's levels add to a recipe (Peng et al., "FP8-LM", arXiv 2310.18313): 1 rounds the weights' gradients of fp8 layers to e4m3;
/// 2 has optimizers of this library keep the first moment in fp8 and the second in fp16 (3.1 bytes a parameter instead of 8), unless
/// their own `storage` says otherwise; 3 has parameters hold only what fp16 master weights could. Gradients and parameters stay in fp32
/// memory.
template <int Level = 2, class Base = Tensorwise>
struct LowBitOptimizer : Base {
    static_assert(Level >= 1 && Level <= 3, "recipe::LowBitOptimizer: the level is 1, 2 or 3");
    static constexpr char const* name = "LowBitOptimizer";
    static constexpr int low_bit_level = Level;
    static at::Tensor weight_gradient(at::Tensor const& g);
};

}  // namespace recipe

namespace precision {

/// A recipe with a memory.
template <class Recipe>
concept has_history = requires { Recipe::history(); };

/// What an fp32 matrix is multiplied by before it is rounded: `largest / 2^margin / amax`; one where amax is zero. A NaN or an infinity
/// makes NaNs, so that it is noticed.
inline at::Tensor fp8_scale(at::Tensor const& amax, at::ScalarType fp8, int64_t margin = 0) {
    return at::where(amax > 0, amax.reciprocal() * std::ldexp(largest(fp8), static_cast<int>(-margin)), at::ones_like(amax));
}

/// An fp32 matrix as a recipe's fp8 numbers say it: scaled, rounded to fp8, scaled back.
template <class Recipe>
at::Tensor through_fp8(at::Tensor const& a, at::ScalarType fp8, Operand operand, int64_t margin = 0) {
    if (a.numel() == 0) return a;
    auto const scale = fp8_scale(Recipe::amax(a, operand), fp8, margin);
    return saturated(a * scale, fp8).to(at::kFloat) / scale;
}

}  // namespace precision

template <int Level, class Base>
at::Tensor recipe::LowBitOptimizer<Level, Base>::weight_gradient(at::Tensor const& g) {
    return precision::through_fp8<Base>(g, at::kFloat8_e4m3fn, precision::Operand::Gradient);
}

}  // namespace accelerate
