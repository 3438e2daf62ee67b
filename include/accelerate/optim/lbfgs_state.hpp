#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/scalar_tensor.h>

#include <accelerate/optim/torch_state.hpp>
#include <accelerate/sharding/layout.hpp>
#include <cmath>
#include <concepts>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::optim {

/// What `torch::optim::LBFGS` has learnt: its vectors over all `parameters`, which stand in its own order, cut into "<vector>.<parameter>" in the parameters' shapes, and its
/// numbers under "search". `Own`: `torch::optim::LBFGSParamState`.
template <class Own, std::same_as<StateDict> State>
void save_search(Own const& own, sharding::NamedParameters const& parameters, State& into) {
    if (!own.d().defined()) return;  // its only gradients were within the tolerance: it knows nothing yet
    auto const cut = [&](std::string const& name, at::Tensor const& vector) {
        int64_t at = 0;
        for (auto const& [key, p] : parameters) {
            into.tensors.insert(concat(name, ".", key), vector.narrow(0, at, p.numel()).view(p.sizes()).clone());
            at += p.numel();
        }
    };
    cut("d", own.d());
    cut("prev_flat_grad", own.prev_flat_grad());
    std::vector<double> ro;
    for (size_t i = 0; i < own.ro().size(); ++i) {
        cut(concat("old_dirs_", i), own.old_dirs()[i]);
        cut(concat("old_stps_", i), own.old_stps()[i]);
        ro.push_back(own.ro()[i].template item<double>());
    }
    into.values["search"] = {{"func_evals", own.func_evals()}, {"n_iter", own.n_iter()}, {"t", own.t()}, {"prev_loss", own.prev_loss()}, {"H_diag", own.H_diag().template item<double>()}, {"ro", ro}};
}

/// The reverse; nothing where the state was saved before the first search. Error E_DATA of `who` for what is missing, or does not fit.
template <class Own, std::same_as<StateDict> State>
std::unique_ptr<Own> load_search(State const& from, sharding::NamedParameters const& parameters, std::string const& who) {
    if (!from.values.contains("search")) return {};
    State const numbers{{}, from.values["search"]};
    auto const number = [&](char const* name) {
        auto const x = numbers.template value<double>(name, who);
        check(std::isfinite(x), code::data, who, ".load_state_dict: ", name, " is ", x);
        return x;
    };
    auto const joined = [&](std::string const& name) {
        std::vector<at::Tensor> parts;
        for (auto const& [key, p] : parameters) {
            auto const t = saved_tensor(from, concat(name, ".", key), p, who);
            check(t.defined(), code::data, who, ".load_state_dict: the state has no tensor \"", name, ".", key, "\"");
            parts.push_back(t.to(p.options()).reshape(-1));
        }
        return at::cat(parts);
    };
    auto own = std::make_unique<Own>();
    own->func_evals(numbers.template value<int64_t>("func_evals", who)).n_iter(numbers.template value<int64_t>("n_iter", who)).t(number("t")).prev_loss(number("prev_loss"));
    check(own->func_evals() >= 1 && own->n_iter() >= 1, code::data, who, ".load_state_dict: iteration ", own->n_iter(), " behind ", own->func_evals(), " evaluations cannot be");
    own->d(joined("d")).prev_flat_grad(joined("prev_flat_grad"));
    auto const scalar = [&](double x) { return at::scalar_tensor(x, own->d().options()); };
    own->H_diag(scalar(number("H_diag")));
    for (auto const ro : numbers.template value<std::vector<double>>("ro", who)) {
        auto const i = own->ro().size();
        own->old_dirs().push_back(joined(concat("old_dirs_", i)));
        own->old_stps().push_back(joined(concat("old_stps_", i)));
        own->ro().push_back(scalar(ro));
    }
    return own;
}

}  // namespace accelerate::optim
