#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/error.hpp>
#include <accelerate/optim/operations.hpp>
#include <optional>

namespace accelerate {

/// How an optimizer keeps its numbers (`storage` of every recipe); its arithmetic is in fp32 whatever they are kept in.
struct optimizer_storage {
    /// Of the states (moments): `kBFloat16` halves them. They are rounded stochastically then: to the nearest, an average with 0.999 of
    /// itself would stand still. Empty: fp32 beside fp32 parameters and master weights, else the parameters' dtype, as in PyTorch.
    std::optional<at::ScalarType> states = {};
    /// What is kept in bf16 (parameters without master weights, their states) rounds up or down with the probability of the distance, so
    /// that small updates are not lost. The same on every rank that holds it.
    bool stochastic_rounding = false;

    bool stochastic_states() const { return stochastic_rounding || states == at::kBFloat16; }
};

namespace optim {

/// Whether numbers of that dtype are widened to be updated.
constexpr bool is_low(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

inline void validate_storage(optimizer_storage const& storage, Operations operations, char const* kind) {
    check(operations == Operations::Fused || (!storage.states && !storage.stochastic_rounding), code::config, "optim::", kind, ": Operations::Torch is Python's arithmetic, which knows no storage");
    check(!storage.states || *storage.states == at::kFloat || *storage.states == at::kBFloat16, code::config, "optim::", kind, ": storage.states is ", storage.states.value_or(at::kFloat),
          "; it can be kFloat or kBFloat16");
}

}  // namespace optim
}  // namespace accelerate
