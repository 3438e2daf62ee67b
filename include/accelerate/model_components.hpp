#pragma once

#include <accelerate/accelerator_options.hpp>
#include <accelerate/components.hpp>
#include <accelerate/module/unique_parameters.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/sharding/flat.hpp>
#include <accelerate/window_state.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace accelerate::detail {

/// Whether every rank keeps only some of a model's parameters and of their optimizer state.
template <class Model>
inline constexpr bool in_parts = requires(Model const& m) { m.for_each_part([](auto const&, auto const&, int64_t) {}); };

/// A rank's gradients, where they are: of each trainable parameter that it keeps some of, a 1-D tensor in memory order.
inline TensorMap gradients_in(std::span<sharding::Flat const> flats) {
    TensorMap all;
    for (auto const& flat : flats)
        for (auto const& slot : flat.slots) {
            auto const [from, to] = slot.within(0, flat.gradients.numel());
            if (from < to) all.insert(slot.name, flat.gradients.narrow(0, from, to - from));
        }
    return all;
}

/// A prepared model as its checkpoint sees it: its parameters, and where it is in its accumulation window.
template <class Model>
struct SavedModel {
    std::string name;
    std::shared_ptr<torch::nn::Module> module;
    std::shared_ptr<Model> model;
    accelerator_options const& options;  ///< the accelerator's, which outlive this

    std::string window_name() const { return name + "_window"; }
    int64_t steps() const { return options.gradient_accumulation_steps; }

    StateDict parameters() const {
        StateDict s;
        if constexpr (in_parts<Model>) {
            model->for_each_part([&](sharding::Slot const& slot, at::Tensor const& part, int64_t from) {
                s.tensors.insert(slot.name, part);
                s.values["slices"][slot.name] = {from, from + part.numel()};
                s.values["shapes"][slot.name] = {{"shape", slot.parameter.sizes().vec()}, {"strides", slot.parameter.strides().vec()}};
            });
        } else {
            for (auto const& [key, p] : unique_parameters(*module)) s.tensors.insert(key, p.detach());
        }
        return s;
    }
    void load_parameters(StateDict const& s) const {
        copy_by_name(parameters().tensors, s.tensors);
        model->parameters_changed();
    }

    StateDict window() const {
        auto& m = *model;
        WindowState w{.position = m.window().position(), .micro_batches = m.window().micro_batches(), .closed = m.window().ends(), .stage = m.stage(), .weight = m.weight, .weighted = m.weighted,
                      .losses = m.losses, .finished = m.finished, .loss_scale = m.loss_scale, .gradient_scale = m.gradient_scale(), .ranks = m.replicas(), .steps = steps(), .left_over = m.left_over,
                      .finite = m.finite, .allowed = m.allowed};
        if (m.last_norm.defined()) w.last_norm = m.last_norm.template item<double>();
        w.gradients = w.in_use();
        if constexpr (sharding::tells_unreached<Model>)
            if (w.gradients)
                for (auto const* slot : m.unreached()) w.unreached.insert(slot->name);
        return w.template state_dict<StateDict>(w.gradients ? gradients_in(m.flats()) : TensorMap());
    }
    void window_fits(StateDict const& s) const {
        auto const w = WindowState::of(s, window_name());
        w.check_fits(name, model->replicas(), steps());
        if (w.gradients) check_by_name(window_name(), gradients_in(model->flats()), s.tensors);
    }
    void load_window(StateDict const& s) const {
        auto& m = *model;
        auto w = WindowState::of(s, window_name());
        auto const here = gradients_in(m.flats());
        if (w.gradients) copy_by_name(here, s.tensors);
        else {
            for (auto const& [key, t] : here) t.zero_();
            for (auto const& [key, p] : m.parameters()) w.unreached.insert(key);
        }
        if constexpr (sharding::tells_unreached<Model>) m.restore_unreached(w.unreached);
        m.window().restore(w.position, w.micro_batches, w.closed);
        if (w.steps != steps()) m.window().restart();
        m.restore_stage(w.stage);
        m.unfinished = !w.closed || (w.gradients && !sharding::waits_for_step(w.stage));
        if constexpr (sharding::tells_unreached<Model>) m.unfinished = m.unfinished && !m.idle();
        m.finite = w.finite, m.allowed = w.allowed;
        m.take_scale();
        m.scale_gradients(w.gradient_scale);
        m.loss_scale = w.loss_scale;
        m.weight = w.weight, m.weighted = w.weighted, m.losses = w.losses, m.finished = w.finished;
        m.left_over = w.left_over;
        Model* const models[] = {&m};
        m.last_norm = w.last_norm ? optim::norm_tensor(std::span<Model* const>(models), *w.last_norm) : at::Tensor();
    }
};

/// A module's buffers.
inline state::Component buffers_component(std::string const& name, std::shared_ptr<torch::nn::Module> const& module) {
    auto const buffers = [=] {
        StateDict s;
        for (auto const& b : module->named_buffers())
            if (b.value().defined()) s.tensors.insert(b.key(), b.value());
        return s;
    };
    return {.name = name, .whose = state::Whose::EachOrFirst, .save = buffers, .load = [=](StateDict const& s) { copy_by_name(buffers().tensors, s.tensors); },
            .fits = [=](StateDict const& s) { check_by_name(name, buffers().tensors, s.tensors); }, .names = state::Names::Parameter};
}

/// Parameters; buffers; the accumulation window, with its gradients. `options`: the accelerator's, which outlive what is made.
template <class Model>
std::vector<state::Component> model_components(std::string const& name, std::shared_ptr<torch::nn::Module> const& module, std::shared_ptr<Model> const& model, state::Whose whose, accelerator_options const& options) {
    auto const saved = std::make_shared<SavedModel<Model> const>(SavedModel<Model>{name, module, model, options});
    return {{.name = name, .whose = whose, .save = [saved] { return saved->parameters(); }, .load = [saved](StateDict const& s) { saved->load_parameters(s); },
             .fits = [saved](StateDict const& s) { check_by_name(saved->name, saved->parameters().tensors, s.tensors); }, .into = [saved] { return saved->parameters().tensors; }, .names = state::Names::Parameter},
            buffers_component(name + "_buffers", module),
            {.name = saved->window_name(), .whose = state::Whose::EachOrFirst, .save = [saved] { return saved->window(); }, .load = [saved](StateDict const& s) { saved->load_window(s); },
             .fits = [saved](StateDict const& s) { saved->window_fits(s); }, .unfit = code::ck_accum, .names = state::Names::Parameter}};
}

}  // namespace accelerate::detail
