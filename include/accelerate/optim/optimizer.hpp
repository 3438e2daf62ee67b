#pragma once

#include <ATen/core/grad_mode.h>

#include <accelerate/optim/average_scope.hpp>
#include <accelerate/optim/batches.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/optim/saved_progress.hpp>
#include <accelerate/optim/wide.hpp>
#include <cmath>
#include <concepts>
#include <map>
#include <memory>
#include <optional>

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
        auto& s = *shared_;
        auto const saved = progress_in(state);
        at::NoGradGuard const no_grad;
        make_state();
        if (saved.steps == 0 && state.tensors.empty()) s.moments.reset();
        else s.moments.load(state);
        s.grouping.set_lr(saved.lr);
        s.missed.clear();
        for (auto const& [key, steps] : saved.parameter_steps)
            if (steps != saved.steps) s.missed[key] = saved.steps - steps;
        s.unreached.clear();
        s.group();
        s.count(saved.steps);
    }
    /// Throws what `load_state_dict` would, and changes nothing.
    void check_state_dict(StateDict const& state) {
        auto const saved = progress_in(state);
        make_state();
        if (saved.steps != 0 || !state.tensors.empty()) shared_->moments.check_fits(state);
    }

private:
    friend class AverageScope<Optimizer>;

    SavedProgress progress_in(StateDict const& state) const {
        auto const who = concat("optim::", Rule<Recipe>::kind);
        auto const saved = saved_progress(state, who, Rule<Recipe>::kind);
        auto const here = shared_->grouping.rules();
        auto const groups = state.values.contains("parameter_groups") ? state.value<int64_t>("parameter_groups", who) : here;
        check(groups == here, code::data, who, ".load_state_dict: the state has ", groups, " parameter groups, this recipe ", here);
        return saved;
    }

    StateDict collect(bool live) const {
        auto& s = *shared_;
        StateDict state;
        state.values = {{"kind", Rule<Recipe>::kind}, {"lr", lr()}, {"steps", s.steps}, {"parameter_groups", s.grouping.rules()}, {"groups", nlohmann::json::array()}};
        for (auto const& [key, n] : s.missed) state.values["parameter_steps"][key] = s.steps - n;
        for (auto const& set : s.grouping.sets()) state.values["groups"].push_back({{"lr", set.lr}, {"weight_decay", set.weight_decay}});
        if (s.bound) {
            if (s.stale()) s.bind();
            s.moments.save(state, live);
        }
        return state;
    }

    static Entry entry(Columns const& columns, size_t i) {
        Entry made{columns.parameters[i], columns.gradients[i], columns.masters[i], {}, {}};
        for (auto const& list : columns.states) made.states.push_back(list[i]);
        for (auto const& list : columns.exponents) made.exponents.push_back(list[i]);
        return made;
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
            else if (s.is_plain(batch)) Rule<Recipe>::update(s.recipe, s.grouping[batch.set], batch.columns, step == 1);
            else
                for (size_t i = 0; i < batch.columns.parameters.size(); ++i) update_wide(s.recipe, s.grouping[batch.set], entry(batch.columns, i), batch.columns.steps[i], step);
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

    struct Shared {
        Shared(Recipe r, std::vector<std::shared_ptr<Model>> m)
            : recipe((Rule<Recipe>::validate(r), std::move(r))), models(std::move(m)), grouping(recipe),
              moments(Rule<Recipe>::states(recipe), Rule<Recipe>::initial(recipe), recipe.storage, has_masters && recipe.operations == Operations::Fused, recipe.ema_decay > 0) {
            check(!models.empty(), code::config, "optim::", Rule<Recipe>::kind, ": there is no model to optimise");
            check(std::ranges::any_of(models, [](auto const& model) { return !std::span<sharding::Flat const>(model->flats()).empty(); }), code::config, "optim::", Rule<Recipe>::kind,
                  ": no parameter of the model requires gradients, so there is nothing to optimise");
            for (auto const& model : models)
                for (sharding::Flat const& flat : model->flats())
                    check(!flat.parameters.is_complex(), code::config, "optim::", Rule<Recipe>::kind, ": parameter ", flat.slots.front().name,
                          " is complex, and recipes update real numbers; keep its parts as a real parameter (torch::view_as_complex in forward), or take an optimizer of torch::optim");
            if constexpr (requires { recipe.parameters; }) {
                if (recipe.parameters) shares = sharding::shares_of(models, [&](std::string const& name, at::Tensor const&) { return recipe.parameters(name); });
                check(shares.empty() || std::ranges::any_of(shares, [](auto const& of) { return std::ranges::find(of.second, true) != of.second.end(); }), code::config, "optim::", Rule<Recipe>::kind,
                      ": its `parameters` match no parameter of the model; the first is ", models.front()->parameters().front().first);
            }
            sweeps = can_sweep();
        }

        /// Whether an update leaves no gradient behind, because all of them pass through it.
        bool clears(Model const& model) const { return sweeps && shares.empty() && model.clears_in_step(); }
        bool has(Model const& model, sharding::Slot const& slot) const { return sharding::has(shares, model, static_cast<size_t>(slot.registration)); }

        bool can_sweep() const {
            if constexpr (!sweepable<Recipe>) return false;
            else {
                auto const fits = [](auto const& model) {
                    return std::ranges::all_of(std::span<sharding::Flat const>(model->flats()), [](sharding::Flat const& f) {
                        return f.parameters.is_cpu() && (f.parameters.scalar_type() == at::kFloat || f.parameters.scalar_type() == at::kBFloat16);
                    });
                };
                return kernel::can_sweep() && recipe.operations == Operations::Fused && Rule<Recipe>::sweeps(recipe) && std::ranges::all_of(models, fits);
            }
        }

        void sweep(Batch const& batch, int64_t step) const {
            if constexpr (sweepable<Recipe>) {
                auto const& c = batch.columns;
                bool const fp32 = is_plain(batch) && c.parameters[0].scalar_type() == at::kFloat;
                for (size_t i = 0; i < c.parameters.size(); ++i) {
                    auto const& model = *models[batch.models[i]];
                    if (!fp32) {
                        sweep_wide(recipe, grouping[batch.set], entry(c, i), step, model.gradient_scale(), clears(model));
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

        /// Whether LibTorch's kernels do the same to it: everything in one dtype, rounded to the nearest.
        bool is_plain(Batch const& batch) const {
            auto const dtype = batch.columns.parameters[0].scalar_type();
            if (batch.columns.masters[0].defined() || recipe.storage.master == at::kHalf || (is_low(dtype) && recipe.storage.stochastic_states())) return false;
            return std::ranges::all_of(batch.columns.states, [&](auto const& list) { return list[0].scalar_type() == dtype; });
        }

        bool stale() const {
            for (size_t i = 0; i < models.size(); ++i)
                if (layouts[i] != models[i]->layout()) return true;
            return !bound;
        }

        void count(int64_t n) {
            steps = n;
            for (auto& [counter, behind] : counters) {
                if (counter.is_cpu()) *counter.template mutable_data_ptr<float>() = static_cast<float>(n - behind);
                else counter.fill_(n - behind);
            }
        }

        /// The next update leaves out what no loss has reached.
        void pass_over_unreached() {
            if constexpr (sharding::tells_unreached<Model>) {
                std::vector<std::string> keys;
                for (size_t m = 0; m < models.size(); ++m)
                    for (auto const* slot : models[m]->unreached()) keys.push_back(key_of(m, *slot));
                if (keys != unreached) [[unlikely]] {
                    unreached = std::move(keys);
                    group();
                }
                for (auto const& key : unreached) ++missed[key];
            }
        }

        std::string key_of(size_t model, sharding::Slot const& slot) const { return models.size() > 1 ? concat(model, ".", slot.name) : slot.name; }

        void group();
        void bind();
        std::vector<sharding::Piece> pieces_of(Model const& model) const;

        Recipe recipe;
        std::vector<std::shared_ptr<Model>> models;
        sharding::Shares<Model> shares;  // what of them is updated; empty: all
        Grouping grouping;
        Moments moments;
        std::vector<Batch> batches;
        std::vector<std::pair<at::Tensor, int64_t>> counters;  // of a device and a number of missed updates; the same tensor in every entry of the lists
        std::map<std::string, int64_t> missed;                 // updates that have left a parameter out
        std::vector<std::string> unreached;                    // what the last update has left out
        std::vector<int64_t> layouts = std::vector<int64_t>(models.size());
        int64_t steps = 0;
        int64_t updates = 0;
        bool sweeps = false;
        bool averaged = false;  // an AverageScope is alive
        bool bound = false;
        bool skipped = false;
    };

    std::shared_ptr<Shared> shared_;
};

// Looks at every parameter: at the first step, and again only when slots have moved.
template <recipe Recipe, sharding::flat_model Model>
void Optimizer<Recipe, Model>::Shared::bind() {
    std::vector<Stretch> stretches;
    std::vector<Part> parts;
    std::set<std::string> keys;
    int64_t first_of_model = 0;
    for (size_t m = 0; m < models.size(); ++m) {
        std::span<sharding::Flat const> const flats = models[m]->flats();
        auto const pieces = pieces_of(*models[m]);
        int64_t slots = 0;
        auto const first_stretch = stretches.size();
        for (auto const& piece : pieces)
            stretches.push_back({flats[static_cast<size_t>(piece.flat)].parameters.narrow(0, piece.begin, piece.end - piece.begin), piece.gradients, {}, {}, {}, {}, m});
        for (size_t f = 0; f < flats.size(); ++f)
            for (auto const& slot : flats[f].slots) {
                ++slots;
                if (!has(*models[m], slot)) continue;
                auto const set = grouping.set_of(slot);
                auto const key = key_of(m, slot);
                keys.insert(key);
                for (size_t p = 0; p < pieces.size(); ++p) {
                    if (pieces[p].flat != static_cast<int64_t>(f)) continue;
                    auto const from = std::max(slot.begin, pieces[p].begin), to = std::min(slot.end(), pieces[p].end);
                    if (from > to || (from == to && slot.numel > 0)) continue;
                    parts.push_back({key, slot.parameter.sizes().vec(), slot.parameter.strides().vec(), slot.numel,
                                     from - slot.begin, to - slot.begin, first_stretch + p, from - pieces[p].begin, first_of_model + slot.registration, set});
                }
            }
        first_of_model += slots;
        layouts[m] = models[m]->layout();
    }
    if (!bound) grouping.warn_about_unused();
    moments.arrange(std::move(stretches), std::move(parts), std::move(keys));
    group();
    bound = true;
}

// Of a share of the model those stretches that it fills, so that nothing is kept of the rest.
template <recipe Recipe, sharding::flat_model Model>
std::vector<sharding::Piece> Optimizer<Recipe, Model>::Shared::pieces_of(Model const& model) const {
    std::span<sharding::Piece const> const pieces = model.pieces();
    if (shares.empty()) return {pieces.begin(), pieces.end()};
    std::span<sharding::Flat const> const flats = model.flats();
    std::vector<sharding::Piece> within;
    for (auto const& piece : pieces) {
        bool goes_on = false;
        for (auto const& slot : flats[static_cast<size_t>(piece.flat)].slots) {
            auto const from = std::max(slot.begin, piece.begin), to = std::min(slot.end(), piece.end);
            if (from > to || (from == to && slot.numel > 0)) continue;
            bool const ours = has(model, slot);
            if (ours && !goes_on) within.push_back({piece.flat, from, to, {}});
            else if (ours) within.back().end = to;
            if (ours) within.back().gradients = piece.gradients.narrow(0, within.back().begin - piece.begin, to - within.back().begin);
            goes_on = ours;
        }
    }
    return within;
}

template <recipe Recipe, sharding::flat_model Model>
void Optimizer<Recipe, Model>::Shared::group() {
    std::vector<std::optional<int64_t>> behind;
    for (auto const& part : moments.parts()) {
        auto& its = behind.emplace_back(std::nullopt);
        if (std::find(unreached.begin(), unreached.end(), part.key) != unreached.end()) continue;
        auto const found = missed.find(part.key);
        its = found != missed.end() ? found->second : 0;
    }
    batches = make_batches(moments, recipe.operations, behind);
    counters.clear();
    for (auto& batch : batches) {
        auto const device = batch.columns.parameters.front().device();
        auto counter = std::find_if(counters.begin(), counters.end(), [&](auto const& c) { return c.first.device() == device && c.second == batch.missed; });
        if (counter == counters.end()) counter = counters.insert(counter, {at::full({}, steps - batch.missed, at::TensorOptions().dtype(at::kFloat).device(device)), batch.missed});
        batch.columns.steps.assign(batch.columns.parameters.size(), counter->first);
    }
}

}  // namespace accelerate::optim
