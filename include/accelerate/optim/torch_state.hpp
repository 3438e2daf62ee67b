#pragma once

#include <torch/optim/optimizer.h>

#include <accelerate/core/state_dict.hpp>

// Only named here: the class of an optimizer that a user holds is complete where he holds it, and its header is a heavy one.
namespace torch::optim {
class Adagrad;
class Adam;
class AdamW;
class LBFGS;
class RMSprop;
class SGD;
struct AdagradParamState;
struct AdamParamState;
struct AdamWParamState;
struct LBFGSParamState;
struct RMSpropParamState;
struct SGDParamState;
}  // namespace torch::optim

namespace accelerate::optim {

/// The per-parameter state of a torch::optim class and the name that state dicts know it by; that of the recipe, where there is
/// one. To save an optimizer class of your own, specialise this.
template <class Optimizer>
struct torch_state {
    static constexpr char const* kind = nullptr;
};
template <>
struct torch_state<torch::optim::AdamW> {
    static constexpr char const* kind = "AdamW";
    using type = torch::optim::AdamWParamState;
};
template <>
struct torch_state<torch::optim::Adam> {
    static constexpr char const* kind = "Adam";
    using type = torch::optim::AdamParamState;
};
template <>
struct torch_state<torch::optim::SGD> {
    static constexpr char const* kind = "Sgd";
    using type = torch::optim::SGDParamState;
};
template <>
struct torch_state<torch::optim::Adagrad> {
    static constexpr char const* kind = "Adagrad";
    using type = torch::optim::AdagradParamState;
};
template <>
struct torch_state<torch::optim::RMSprop> {
    static constexpr char const* kind = "RMSprop";
    using type = torch::optim::RMSpropParamState;
};

template <>
struct torch_state<torch::optim::LBFGS> {  // of all parameters together
    static constexpr char const* kind = "LBFGS";
    using type = torch::optim::LBFGSParamState;
};

/// What a state has under `name` for this parameter; undefined where it has nothing. Error E_DATA of `who` where the shapes differ.
template <std::same_as<StateDict> State>  // a template: who saves nothing does not compile JSON
at::Tensor saved_tensor(State const& state, std::string const& name, at::Tensor const& parameter, std::string const& who) {
    auto const found = state.tensors.find(name);
    if (found == state.tensors.end()) return {};
    check(found->second.sizes() == parameter.sizes(), code::data, who, ".load_state_dict: \"", name, "\" has shape ", found->second.sizes(), ", the parameter ", parameter.sizes());
    return found->second;
}

/// Calls `f(name, read, write)` for each tensor that a parameter's state can have: `read()` gives it, `write(t)` replaces it.
template <class State, class F>
void for_each_field(State& s, F&& f) {
    if constexpr (requires { s.exp_avg(); }) {
        f("exp_avg", s.exp_avg(), [&](at::Tensor t) { s.exp_avg(std::move(t)); });
        f("exp_avg_sq", s.exp_avg_sq(), [&](at::Tensor t) { s.exp_avg_sq(std::move(t)); });
        f("max_exp_avg_sq", s.max_exp_avg_sq(), [&](at::Tensor t) { s.max_exp_avg_sq(std::move(t)); });
    }
    if constexpr (requires { s.momentum_buffer(); }) f("momentum_buffer", s.momentum_buffer(), [&](at::Tensor t) { s.momentum_buffer(std::move(t)); });
    if constexpr (requires { s.sum(); }) f("sum", s.sum(), [&](at::Tensor t) { s.sum(std::move(t)); });
    if constexpr (requires { s.square_avg(); }) {
        f("square_avg", s.square_avg(), [&](at::Tensor t) { s.square_avg(std::move(t)); });
        f("grad_avg", s.grad_avg(), [&](at::Tensor t) { s.grad_avg(std::move(t)); });
    }
}

}  // namespace accelerate::optim
