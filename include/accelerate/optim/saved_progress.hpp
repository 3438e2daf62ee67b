#pragma once

#include <accelerate/core/state_dict.hpp>
#include <cmath>
#include <concepts>
#include <string>
#include <string_view>

namespace accelerate::optim {

/// Where an optimizer stood when its state was saved.
struct SavedProgress {
    double lr = 0;
    int64_t steps = 0;
};

/// The same in a state that must be of an optimizer of this kind; error E_DATA of `who` for others, and for what cannot be.
template <std::same_as<StateDict> State>  // a template: who saves nothing does not compile JSON
SavedProgress saved_progress(State const& state, std::string const& who, std::string_view kind) {
    auto const saved_by = state.template value<std::string>("kind", who);
    check(saved_by == kind, code::data, who, ".load_state_dict: the state was saved by ", saved_by);
    SavedProgress const saved{state.template value<double>("lr", who), state.template value<int64_t>("steps", who)};
    check(saved.steps >= 0 && std::isfinite(saved.lr) && saved.lr >= 0, code::data, who, ".load_state_dict: step ", saved.steps, " with an lr of ", saved.lr, " cannot be");
    return saved;
}

}  // namespace accelerate::optim
