#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <accelerate/precision/fp8_recipe.hpp>
#include <cmath>
#include <cstdint>

namespace accelerate::precision {

/// What became of the numbers of one operand that were rounded to fp8.
struct Fp8Counts {
    int64_t numbers = 0;
    int64_t saturated = 0;    ///< beyond the range after scaling: became the largest fp8 number
    int64_t underflowed = 0;  ///< not zero, and became zero
};

/// Counts what fp8 does to the operands of a layer (`fp8{.counters = true}`), and how far its results are from those of bf16
/// (`fp8{.shadow = true}`). Adds up on the layer's device; only reading waits for it.
class Fp8Watch {
public:
    Fp8Watch() = default;
    Fp8Watch(Fp8Watch const&) {}  // a copied layer has done nothing yet
    Fp8Watch& operator=(Fp8Watch const&) { return reset(); }

    Fp8Watch& reset() {
        counts_.reset(), squares_.reset();
        return *this;
    }

    /// `scaled` was rounded to `rounded`, of dtype `fp8`.
    void count(Operand operand, at::Tensor const& scaled, at::Tensor const& rounded, at::ScalarType fp8) {
        if (!counts_.defined()) counts_ = at::zeros({operands, 3}, scaled.options().dtype(at::kLong));
        auto const beyond = (scaled.abs() >= rounds_beyond(fp8)).sum();
        auto const vanished = (scaled != 0).logical_and(rounded.to(at::kFloat) == 0).sum();
        counts_[static_cast<int64_t>(operand)].add_(at::stack({at::full_like(beyond, scaled.numel()), beyond, vanished}));
    }

    /// A forward gave `y` in fp8 and would have given `reference` in bf16.
    void compare(at::Tensor const& y, at::Tensor const& reference) {
        if (!squares_.defined()) squares_ = at::zeros({2}, y.options().dtype(at::kDouble));
        auto const expected = reference.to(at::kDouble);
        squares_.add_(at::stack({(y.to(at::kDouble) - expected).square().sum(), expected.square().sum()}));
    }

    Fp8Counts counts(Operand operand) const {
        if (!counts_.defined()) return {};
        auto const row = counts_[static_cast<int64_t>(operand)].cpu();
        return {row[0].item<int64_t>(), row[1].item<int64_t>(), row[2].item<int64_t>()};
    }
    /// |fp8 - bf16| / |bf16| over all forwards, in the 2-norm; zero where nothing was compared.
    double error() const {
        if (!squares_.defined()) return 0;
        auto const both = squares_.cpu();
        auto const expected = both[1].item<double>();
        return expected > 0 ? std::sqrt(both[0].item<double>() / expected) : 0;
    }

private:
    static constexpr int64_t operands = 3;
    /// What the next number of the format would be the nearest of, if there were one: half a step above the largest.
    static constexpr double rounds_beyond(at::ScalarType fp8) { return fp8 == at::kFloat8_e5m2 ? 61440 : 464; }

    at::Tensor counts_, squares_;
};

}  // namespace accelerate::precision
