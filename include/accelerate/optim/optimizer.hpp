#pragma once

#include <ATen/core/grad_mode.h>

#include <accelerate/optim/average_scope.hpp>
#include <accelerate/optim/bound_parameters.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/optim/wide.hpp>
#include <cmath>
#include <concepts>
#include <memory>

namespace accelerate::optim {

/// A recipe bound to prepared models: what `accelerator.prepare` makes of it. A handle: copies and moved-to objects are the same
/// optimizer. One update is one pass over fp32 or bf16 memory of the CPU, with what clipping and unscaling have left to it, else one
/// fused call of LibTorch, for each set of hyper-parameters over flat buffers, and nothing per parameter; memory is the rule's state
/// (see `optimizer_storage`), made at the first step. Parameters in bf16 or fp16 of a precision whose `master` is fp32 are updated in an
/// fp32 copy, which follows when somebody else writes into them. Parameters that no loss has reached since the last step (a branch that was not
/// taken, one of several models) stay as they are, and so does their state, with a count of steps of its own, as in Python. Inside an unfinished
/// accumulation window `step` and `zero_grad` do nothing.
template <recipe Recipe, sharding::flat_model Model>
class Optimizer {
public:
    using recipe_type = Recipe;
    using model_type = Model;

    /// Error E_CONFIG when the recipe's values cannot work.
    Optimizer(Recipe recipe, std::vector<std::shared_ptr<Model>> models) : shared_(std::make_shared<Shared>(std::move(recipe), std::move(models))) {}

    /// Updates all parameters from their gradients; nothing is changed when a model refuses, because a gradient is not finite. Error
    /// E_CALL_ORDER (from the model) when the gradients are not complete.
    void step() {
        auto& s = *shared_;
        if (!window_closed()) return;
        check(!s.averaged, code::call_order, "optimizer.step while average_parameters is in force; let its scope end first");
        auto const stepping = sharding::stepping(s.models);
        s.skipped = !sharding::before_step(stepping, s.shares);
        if (!s.skipped) [[likely]]
            update();
        for (auto* model : stepping) model->after_step();
    }

    /// The same behind a call of `closure`, which clears the gradients, computes them and gives the loss. Gives that.
    template <std::invocable Closure>
    at::Tensor step(Closure&& closure) {
        at::Tensor loss = closure();
        step();
        return loss;
    }

    /// Clears the gradients; they stay views of the flat buffers.
    void zero_grad() {
        if (!window_closed()) return;
        for (auto& model : shared_->models) model->zero_grad();
    }

    /// The recipe's learning rate as it is now; groups with their own keep their ratio to it.
    double lr() const { return shared_->grouping.lr(); }
    void set_lr(double lr) {
        check_hyper(lr, "optimizer.set_lr: the learning rate");
        shared_->grouping.set_lr(lr);
    }

    int64_t steps() const { return shared_->steps; }                ///< updates of the parameters so far; restored by `load_state_dict`
    int64_t updates() const { return shared_->updates; }            ///< the same, of this object: what schedules go by
    /// Of state that this rank keeps, with master weights and averages; 0 before the first update.
    int64_t state_bytes() const {
        int64_t bytes = 0;
        auto const add = [&](at::Tensor const& t) { bytes += t.defined() ? static_cast<int64_t>(t.nbytes()) : 0; };
        for (auto const& s : shared_->moments.stretches()) {
            for (auto const* list : {&s.states, &s.exponents}) std::for_each(list->begin(), list->end(), add);
            add(s.master), add(s.average);
        }
        return bytes;
    }
    bool step_was_skipped() const { return shared_->skipped; }      ///< whether the last window ended without an update
    Recipe const& recipe() const { return shared_->recipe; }
    std::vector<std::shared_ptr<Model>> const& models() const { return shared_->models; }

    /// What of the models it updates, where the recipe's `parameters` leave some out.
    sharding::Shares<Model> const& shares() const { return shared_->shares; }

    /// Whether a step multiplies the gradients by each model's `gradient_scale()` on its way. Where it does not, who clips must.
    bool sweeps() const { return shared_->sweeps && shared_->shares.empty(); }

    /// False inside an unfinished accumulation window of any of its models.
    bool window_closed() const {
        for (auto const& model : shared_->models)
            if (!model->window_closed()) return false;
        return true;
    }

    /// While the returned scope is alive the models have the averages as their weights (of this optimizer's `ema_decay`; before the first
    /// update the weights themselves). Then the weights come back, bit for bit. Every rank calls it. Error E_CONFIG without an average;
    /// E_CALL_ORDER for a step inside.
    [[nodiscard("the averages are in use while the scope lives: write auto averages = optimizer.average_parameters();")]]
    AverageScope<Optimizer> average_parameters() {
        return AverageScope<Optimizer>(*this);
    }

    /// Tensors "<state>.<parameter>" in the parameters' shapes (copies), and kind, lr, steps and groups as values.
    StateDict state_dict() const { return collect(false); }
    /// The same with tensors that are the optimizer's own memory where that has the form: valid until its next step. For who copies or
    /// writes them at once.
    StateDict live_state() const { return collect(true); }

    /// Makes the state now instead of at the first step, so that `state_dict` shows what of it this rank holds.
    void make_state() {
        if (shared_->stale()) shared_->bind();
    }

    /// Restores state, lr and step count; all other hyper-parameters stay the recipe's. Error E_DATA when the state is another
    /// kind of optimizer's or does not fit the parameters; nothing has been changed then.
    void load_state_dict(StateDict const& state) {
        auto const saved = shared_->progress_in(state);
        make_state();
        shared_->load_state_dict(state, saved);
    }
    /// Throws what `load_state_dict` would, and changes nothing.
    void check_state_dict(StateDict const& state) {
        auto const saved = shared_->progress_in(state);
        make_state();
        if (saved.steps != 0 || !state.tensors.empty()) shared_->moments.check_fits(state);
    }

private:
    friend class AverageScope<Optimizer>;

    StateDict collect(bool live) const {
        if (shared_->bound && shared_->stale()) shared_->bind();
        return shared_->template state_dict<StateDict>(live);
    }

    void update() {
        auto& s = *shared_;
        at::NoGradGuard const no_grad;
        if (s.stale()) [[unlikely]]
            s.bind();
        if (!s.sweeps) apply_gradient_scales(s.models);
        s.pass_over_unreached();
        s.count(s.steps + 1);
        ++s.updates;
        for (auto const& batch : s.batches) {
            auto const step = s.steps - batch.missed;
            if (s.sweeps) s.sweep(batch, step);
            else if (is_plain(batch, s.recipe.storage)) Rule<Recipe>::update(s.recipe, s.grouping[batch.set], batch.columns, step == 1);
            else
                for (size_t i = 0; i < batch.columns.parameters.size(); ++i) update_wide(s.recipe, s.grouping[batch.set], entry_of(batch.columns, i), batch.columns.steps[i], step);
        }
        if (s.recipe.ema_decay > 0)
            for (auto const& stretch : s.moments.stretches()) stretch.average.lerp_((stretch.master.defined() ? stretch.master : stretch.parameters).to(stretch.average.scalar_type()), 1 - s.recipe.ema_decay);
        for (auto& model : s.models)
            if (s.clears(*model)) model->gradients_cleared();
    }

    /// Whether what the optimizer updates is fp32 also where parameters are not.
    static constexpr bool has_masters = [] {
        if constexpr (requires { Model::master; }) return Model::master == at::kFloat;
        else return false;
    }();

    struct Shared : BoundParameters {
        Shared(Recipe r, std::vector<std::shared_ptr<Model>> m)
            : BoundParameters{(Rule<Recipe>::validate(r), Rule<Recipe>::kind), r.operations, m.size() > 1, Grouping(r),
                              Moments(Rule<Recipe>::states(r), Rule<Recipe>::initial(r), r.storage, has_masters && r.operations == Operations::Fused, r.ema_decay > 0)},
              recipe(std::move(r)), models(std::move(m)) {
            std::vector<std::span<sharding::Flat const>> flats;
            for (auto const& model : models) flats.emplace_back(model->flats());
            check_flats(kind, flats);
            if constexpr (requires { recipe.parameters; }) {
                if (recipe.parameters) shares = sharding::shares_of(models, [&](std::string const& name, at::Tensor const&) { return recipe.parameters(name); });
                check(shares.empty() || std::ranges::any_of(shares, [](auto const& of) { return std::ranges::find(of.second, true) != of.second.end(); }), code::config, "optim::", kind,
                      ": its `parameters` match no parameter of the model; the first is ", models.front()->parameters().front().first);
            }
            if constexpr (sweepable<Recipe>)
                sweeps = kernel::can_sweep() && operations == Operations::Fused && Rule<Recipe>::sweeps(recipe) && std::ranges::all_of(flats, sweepable_flats);
        }

        /// Whether an update leaves no gradient behind, because all of them pass through it.
        bool clears(Model const& model) const { return sweeps && shares.empty() && model.clears_in_step(); }

        void sweep(Batch const& batch, int64_t step) const {
            if constexpr (sweepable<Recipe>) {
                auto const& c = batch.columns;
                bool const fp32 = is_plain(batch, recipe.storage) && c.parameters[0].scalar_type() == at::kFloat;
                for (size_t i = 0; i < c.parameters.size(); ++i) {
                    auto const& model = *models[batch.models[i]];
                    if (!fp32) {
                        sweep_wide(recipe, grouping[batch.set], entry_of(c, i), step, model.gradient_scale(), clears(model));
                        continue;
                    }
                    auto* const parameters = c.parameters[i].template mutable_data_ptr<float>();
                    auto const state = [&](size_t n) { return n < c.states.size() ? c.states[n][i].template mutable_data_ptr<float>() : parameters; };
                    auto* const gradients = c.gradients[i].template mutable_data_ptr<float>();
                    kernel::Strip const strip{parameters, gradients, state(0), state(1), c.parameters[i].numel(), clears(model)};
                    Rule<Recipe>::sweep(recipe, grouping[batch.set], {strip, step, model.gradient_scale()});
                }
            }
        }

        bool stale() const {
            for (size_t i = 0; i < models.size(); ++i)
                if (layouts[i] != models[i]->layout()) return true;
            return !bound;
        }

        void bind() {
            std::vector<ModelView> views;
            for (size_t m = 0; m < models.size(); ++m) {
                layouts[m] = models[m]->layout();
                views.push_back({models[m]->flats(), models[m]->pieces(), shares.empty() ? nullptr : &shares.at(models[m].get())});
            }
            BoundParameters::bind(views);
        }

        void pass_over_unreached() {
            if constexpr (sharding::tells_unreached<Model>) {
                std::vector<std::string> keys;
                for (size_t m = 0; m < models.size(); ++m)
                    for (auto const* slot : models[m]->unreached()) keys.push_back(key_of(m, *slot));
                pass_over(std::move(keys));
            }
        }

        Recipe recipe;
        std::vector<std::shared_ptr<Model>> models;
        sharding::Shares<Model> shares;  // what of them is updated; empty: all
        std::vector<int64_t> layouts = std::vector<int64_t>(models.size());
        int64_t updates = 0;
        bool sweeps = false;
        bool averaged = false;  // an AverageScope is alive
        bool skipped = false;
    };

    std::shared_ptr<Shared> shared_;
};

}  // namespace accelerate::optim
