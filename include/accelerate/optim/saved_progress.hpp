#pragma once

#include <accelerate/core/state_dict.hpp>
#include <cmath>
#include <concepts>
#include <map>
#include <string>
#include <string_view>

namespace accelerate::optim {

/// Where an optimizer stood when its state was saved.
struct SavedProgress {
    double lr = 0;
    int64_t steps = 0;
    std::map<std::string, int64_t> parameter_steps = {};  ///< of those parameters that some steps have left out
};

/// The same in a state that must be of an optimizer of this kind; error E_DATA of `who` for others, and for what cannot be.
template <std::same_as<StateDict> State>  // a template: who saves nothing does not compile JSON
SavedProgress saved_progress(State const& state, std::string const& who, std::string_view kind) {
    auto const saved_by = state.template value<std::string>("kind", who);
    check(saved_by == kind, code::data, who, ".load_state_dict: the state was saved by ", saved_by);
    SavedProgress saved{state.template value<double>("lr", who), state.template value<int64_t>("steps", who)};
    State const each{{}, state.values.value("parameter_steps", nlohmann::json::object())};
    check(each.values.is_object(), code::data, who, ".load_state_dict: parameter_steps is no object");
    for (auto const& item : each.values.items()) {
        auto const steps = saved.parameter_steps[item.key()] = each.template value<int64_t>(item.key(), who);
        check(steps >= 0, code::data, who, ".load_state_dict: step ", steps, " of ", item.key(), " cannot be");
    }
    check(saved.steps >= 0 && std::isfinite(saved.lr) && saved.lr >= 0, code::data, who, ".load_state_dict: step ", saved.steps, " with an lr of ", saved.lr, " cannot be");
    return saved;
}

}  // namespace accelerate::optim
