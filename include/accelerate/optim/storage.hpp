#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/error.hpp>
#include <accelerate/optim/operations.hpp>
#include <algorithm>
#include <initializer_list>
#include <optional>

namespace accelerate {

/// How an optimizer keeps its numbers (`storage` of every recipe); its arithmetic is in fp32 whatever they are kept in.
struct optimizer_storage {
    /// Of the states (moments): `kBFloat16` or `kHalf` halve them; fp16, whose range is small, with a scale for each 16 numbers. They are
    /// rounded stochastically then: to the nearest, an average with 0.999 of itself would stand still. Empty: fp32 beside fp32 parameters
    /// and master weights, else the parameters' dtype, as in PyTorch.
    std::optional<at::ScalarType> states = {};
    /// What is kept in bf16 (parameters without master weights, their states) rounds up or down with the probability of the distance, so
    /// that small updates are not lost. The same on every rank that holds it.
    bool stochastic_rounding = false;
    /// Of the first state alone: `kFloat8_e4m3fn`, with a scale for each 16 numbers, for a first moment in 1.06 bytes. Empty: as `states`.
    std::optional<at::ScalarType> first_state = {};
    /// `kHalf`: parameters in fp32 hold, after each update, only numbers that fp16 master weights could (rounded stochastically).
    at::ScalarType master = at::kFloat;

    bool operator==(optimizer_storage const&) const = default;

    /// In which dtype the state with that number is asked for.
    std::optional<at::ScalarType> state(size_t number) const { return number == 0 && first_state ? first_state : states; }
    /// Whether what is kept in less than fp32 is rounded by chance.
    bool stochastic_states() const { return stochastic_rounding || first_state || (states && *states != at::kFloat); }
};

namespace optim {

/// Whether numbers of that dtype are widened to be updated.
constexpr bool is_low(at::ScalarType dtype) { return dtype == at::kBFloat16 || dtype == at::kHalf; }

/// What MS-AMP's optimization levels keep in less (Peng et al., "FP8-LM", arXiv 2310.18313): from level 2 the first moment in fp8 and the
/// second in fp16, at level 3 the master weights in fp16.
constexpr optimizer_storage low_bit_storage(int level) {
    optimizer_storage storage;
    if (level >= 2) storage.first_state = at::kFloat8_e4m3fn, storage.states = at::kHalf;
    if (level >= 3) storage.master = at::kHalf;
    return storage;
}

inline void validate_storage(optimizer_storage const& storage, Operations operations, char const* kind) {
    auto const one_of = [&](char const* member, at::ScalarType found, std::initializer_list<at::ScalarType> possible, char const* names) {
        check(std::find(possible.begin(), possible.end(), found) != possible.end(), code::config, "optim::", kind, ": storage.", member, " is ", found, "; it can be ", names);
    };
    check(operations == Operations::Fused || storage == optimizer_storage{}, code::config, "optim::", kind, ": Operations::Torch is Python's arithmetic, which knows no storage");
    one_of("states", storage.states.value_or(at::kFloat), {at::kFloat, at::kBFloat16, at::kHalf}, "kFloat, kBFloat16 or kHalf");
    one_of("first_state", storage.first_state.value_or(at::kFloat), {at::kFloat, at::kBFloat16, at::kHalf, at::kFloat8_e4m3fn}, "kFloat, kBFloat16, kHalf or kFloat8_e4m3fn");
    one_of("master", storage.master, {at::kFloat, at::kHalf}, "kFloat or kHalf");
}

}  // namespace optim
}  // namespace accelerate
