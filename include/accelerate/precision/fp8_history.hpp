#pragma once

#include <ATen/ops/cat.h>

#include <accelerate/core/state_dict.hpp>
#include <accelerate/precision/fp8_layers.hpp>
#include <concepts>
#include <string>
#include <vector>

namespace accelerate::precision {

/// What a recipe with a history does for a model after each optimizer step: the magnitudes of all ranks become one, their largest, in
/// one collective for all layers, and then the histories go on. Shares the layers' states.
class Fp8Histories {
public:
    explicit Fp8Histories(torch::nn::Module& model) {
        for_each_fp8_layer(model, [&](std::string const&, Fp8Layer& layer) { states_.push_back(layer.state); });
    }

    /// `max_over_ranks(t)` makes the fp32 vector `t` the largest of all ranks', in place.
    template <class F>
    void operator()(at::Device device, F&& max_over_ranks) const {
        std::vector<at::Tensor> all;
        for (auto const& state : states_) all.push_back(state->history.now(device));
        auto const together = at::cat(all);
        max_over_ranks(together);
        for (size_t i = 0; i < states_.size(); ++i) {
            all[i].copy_(together.narrow(0, static_cast<int64_t>(i) * AmaxHistory::streams, AmaxHistory::streams));
            states_[i]->history.step();
        }
    }

private:
    std::vector<c10::intrusive_ptr<Fp8State>> states_;
};

/// The histories of a model's fp8 layers, by layer; the same on every rank after a step. Small: two rows of `History` numbers a layer.
template <std::same_as<StateDict> State = StateDict>
State fp8_state_dict(torch::nn::Module& model) {
    State state;
    state.values["version"] = 1;
    for_each_fp8_layer(model, [&](std::string const& name, Fp8Layer& layer) { layer.state->history.save(state, name + "."); });
    return state;
}

/// Histories as they were saved; a layer that the state does not have starts anew, from the numbers that it meets. Error E_DATA for
/// what is no such state, or of a later version.
template <std::same_as<StateDict> State>
void load_fp8_state_dict(torch::nn::Module& model, State const& state) {
    auto const version = state.template value<int64_t>("version", "fp8 state");
    check(version == 1, code::data, "fp8 state: this build reads version 1, found ", version);
    for_each_fp8_layer(model, [&](std::string const& name, Fp8Layer& layer) { layer.state->history.load(state, name + "."); });
}

}  // namespace accelerate::precision
