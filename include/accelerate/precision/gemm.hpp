#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

#include <accelerate/precision/autocast.hpp>

namespace accelerate {

/// How an arithmetic leaf (`acc::Linear<S>`) of a low precision multiplies.
enum class Gemm {
    Native,   ///< the device's own product of low-precision matrices: what the hardware is for
    /// Operands rounded to the low precision, their product in fp32, the result rounded: the same numbers to within the order of
    /// additions. On CPUs without units for them bf16 is 9 and fp16 100 times slower than this.
    Widened,
};

namespace precision {

/// `at::linear` of a scope of `Compute`, in the way of `G`.
template <at::ScalarType Compute, Gemm G>
struct Product {
    // LibTorch's own layer transposes the weight first, and autocast caches only whole weights: through that every forward of a scope
    // casts again.
    static at::Tensor linear(at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias) { return at::linear(x, weight, bias); }
};

/// Costs a pass over each operand and the result. Gradients are rounded as those of the native product are, by the casts' backward.
template <at::ScalarType Compute>
struct Product<Compute, Gemm::Widened> {
    static at::Tensor linear(at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias) {
        auto const device = x.device().type();
        if (!at::autocast::is_autocast_enabled(device)) return at::linear(x, weight, bias);  // an island of full precision
        AutocastPause const pause(device);
        return at::linear(rounded(x), rounded(weight), bias.defined() ? rounded(bias) : bias).to(Compute);
    }

private:
    static at::Tensor rounded(at::Tensor const& t) { return t.to(Compute).to(at::kFloat); }
};

}  // namespace precision
}  // namespace accelerate
