#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>

#include <accelerate/core/log.hpp>
#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/cpu_units.hpp>
#include <accelerate/precision/weight_cache.hpp>

namespace accelerate {

/// How an arithmetic leaf (`acc::Linear<S>`) of a low precision multiplies.
enum class Gemm {
    Auto,     ///< `Widened` on CPUs without units for the low precision, which is said once; else `Native`
    Native,   ///< the device's own product of low-precision matrices: what the hardware is for
    /// Operands rounded to the low precision, their product in fp32, the result rounded: the same numbers to within the order of
    /// additions. On CPUs without units for them bf16 is 9 and fp16 100 times slower than this. As in LibTorch's scope, fp64 stays as it is.
    Widened,
};

namespace precision {

/// Whether casts of weights may be kept at this place: in a scope that was not asked to cast anew (`cache_enabled = false`).
inline bool keeps_casts(at::Tensor const& x) { return at::autocast::is_autocast_enabled(x.device().type()) && at::autocast::is_autocast_cache_enabled(); }

/// `at::linear` of a scope of `Compute`, in the way of `G`; with a weight that is kept as it is used.
template <at::ScalarType Compute, Gemm G>
struct Product;

template <at::ScalarType Compute>
struct Product<Compute, Gemm::Native> {
    // LibTorch's own layer transposes the weight first, and autocast caches only whole weights: through that every forward of a scope
    // casts again.
    static at::Tensor linear(at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias, WeightCache& kept) {
        if (!kept.keeps() || !keeps_casts(x) || weight.scalar_type() != at::kFloat) return at::linear(x, weight, bias);
        return at::linear(x, kept.get(weight, WeightCache::Cast, [&] { return Rounded{weight.to(Compute), {}}; }).numbers, bias);
    }
};

/// Costs a pass over each operand and the result. Gradients are rounded as those of the native product are, by the casts' backward.
template <at::ScalarType Compute>
struct Product<Compute, Gemm::Widened> {
    static at::Tensor linear(at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias, WeightCache& kept) {
        auto const device = x.device().type();
        bool const island = !at::autocast::is_autocast_enabled(device);  // of full precision
        if (island || x.scalar_type() == at::kDouble || weight.scalar_type() == at::kDouble) return at::linear(x, weight, bias);  // autocast leaves fp64 as it is
        auto const weight_as_used = [&] { return Rounded{rounded(weight), {}}; };
        bool const keeps = keeps_casts(x);
        AutocastPause const pause(device);
        return at::linear(rounded(x), (keeps ? kept.get(weight, WeightCache::Cast, weight_as_used) : weight_as_used()).numbers, bias.defined() ? rounded(bias) : bias).to(Compute);
    }

private:
    static at::Tensor rounded(at::Tensor const& t) { return t.to(Compute).to(at::kFloat); }
};

template <at::ScalarType Compute>
struct Product<Compute, Gemm::Auto> {
    static at::Tensor linear(at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias, WeightCache& kept) {
        return x.is_cpu() && widens() ? Product<Compute, Gemm::Widened>::linear(x, weight, bias, kept) : Product<Compute, Gemm::Native>::linear(x, weight, bias, kept);
    }

private:
    static bool widens() {
        static bool const widened = [] {
            if (cpu_has_units(Compute)) return false;
            log::info("this CPU has no units for ", Compute, ": acc::Linear rounds its operands to it and multiplies in fp32 (Gemm::Widened; .gemm = Gemm::Native for LibTorch's own product)");
            return true;
        }();
        return widened;
    }
};

}  // namespace precision
}  // namespace accelerate
