#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/optim/combinators.hpp>
#include <accelerate/optim/plateau.hpp>
#include <cmath>
#include <memory>

namespace accelerate::schedule {

/// What `accelerator.prepare` takes for a schedule.
template <class R>
concept recipe = curve<R> || std::same_as<R, Plateau>;

/// What a schedule needs of an optimizer.
template <class O>
concept steerable = std::copyable<O> && requires(O& o, O const& c, double lr) {
    { c.lr() } -> std::convertible_to<double>;
    o.set_lr(lr);
    { c.updates() } -> std::convertible_to<int64_t>;        // updates made by this object; never restored, never falls
    { c.window_closed() } -> std::convertible_to<bool>;
};

struct scheduler_options {
    /// True: `step()` counts the updates that the optimizer has really made. False: every `step()` counts one, as in a loop that
    /// steps its schedule once an epoch.
    bool step_with_optimizer = true;
};

/// A schedule bound to an optimizer: sets `lr = (the optimizer's lr when bound) * factor(position)`, at once for position 0. A
/// handle: copies and moved-to objects are the same schedule.
template <recipe Recipe, steerable Optimizer>
class Scheduler {
    static constexpr bool observes = std::same_as<Recipe, Plateau>;

public:
    using recipe_type = Recipe;
    using options = scheduler_options;

    /// Error E_CONFIG when the recipe's values cannot work or mix units.
    Scheduler(Recipe given, Optimizer optimizer, options how = {}) : shared_(std::make_shared<Shared>(std::move(given), std::move(optimizer), how)) {
        if constexpr (!observes) shared_->unit = shared_->recipe.unit();
        shared_->recipe.validate();
        shared_->apply();
    }

    /// After `optimizer.step()`: goes on by the updates made since the last call, so it stands still inside an unfinished window
    /// and after a skipped step. Error E_CALL_ORDER for a schedule that counts samples, tokens or (unless
    /// `step_with_optimizer = false`) epochs.
    void step() {
        static_assert(!observes, "schedule::Plateau follows a metric: call schedule.step(metric)");
        auto& s = *shared_;
        auto const made = s.optimizer.updates() - std::exchange(s.seen, s.optimizer.updates());
        auto const by_call = !s.how.step_with_optimizer && (s.unit == Unit::OptimizerSteps || s.unit == Unit::Epochs);
        check(by_call || s.unit == Unit::OptimizerSteps, code::call_order, "schedule.step(): this ", Recipe::kind, " counts ", name(s.unit),
              "; say how many, as in schedule.step(acc::", s.unit == Unit::Epochs ? "Epochs{1}" : s.unit == Unit::Tokens ? "Tokens{n}" : "Samples{n}", ")");
        auto const advance = by_call ? 1 : made;
        if (advance == 0) return;
        s.position += advance;
        s.apply();
    }

    /// Goes on by `count`, over all ranks. Inside an unfinished window it is counted, and the lr stays until the window's end.
    template <class Tag>
    void step(Count<Tag> count) {
        static_assert(!observes, "schedule::Plateau follows a metric: call schedule.step(metric)");
        auto& s = *shared_;
        check(unit_of<Tag> == s.unit, code::call_order, "schedule.step(", Tag::name, "): this ", Recipe::kind, " counts ", name(s.unit));
        s.position += count.value;
        s.seen = s.optimizer.updates();
        if (s.optimizer.window_closed()) s.apply();
    }

    /// Observes a metric. Every call counts, also inside a window.
    void step(double metric)
        requires observes
    {
        auto& s = *shared_;
        ++s.position;
        s.recipe.observe(s.memory, metric, s.base_lr);
        s.apply();
    }

    double lr() const { return shared_->optimizer.lr(); }
    int64_t position() const { return shared_->position; }  ///< in the schedule's unit
    Unit unit() const { return shared_->unit; }
    Recipe const& recipe() const { return shared_->recipe; }

    StateDict state_dict() const {
        auto const& s = *shared_;
        StateDict state;
        state.values = {{"kind", Recipe::kind}, {"unit", name(s.unit)}, {"position", s.position}, {"base_lr", s.base_lr}};
        if constexpr (observes) {
            state.values["scale"] = s.memory.scale;
            state.values["best"] = s.memory.best ? nlohmann::json(*s.memory.best) : nlohmann::json();
            state.values["bad"] = s.memory.bad;
            state.values["cooling"] = s.memory.cooling;
        }
        return state;
    }

    /// Restores position and base lr and sets the optimizer's lr; in any order with the optimizer's own state. The curve stays
    /// this recipe's. Error E_DATA for another kind of schedule or another unit.
    void load_state_dict(StateDict const& state) {
        auto& s = *shared_;
        static_cast<Progress&>(s) = progress_in(state);
        s.seen = s.optimizer.updates();
        s.apply();
    }
    /// Throws what `load_state_dict` would, and changes nothing.
    void check_state_dict(StateDict const& state) const { static_cast<void>(progress_in(state)); }

private:
    struct Nothing {};
    /// What is saved.
    struct Progress {
        double base_lr = 0;
        int64_t position = 0;
        [[no_unique_address]] std::conditional_t<observes, Plateau::Memory, Nothing> memory = {};
    };
    struct Shared : Progress {
        Shared(Recipe r, Optimizer o, options h) : Progress{o.lr()}, recipe(std::move(r)), optimizer(std::move(o)), how(h), seen(optimizer.updates()) {}

        void apply() {
            if constexpr (observes) optimizer.set_lr(this->base_lr * this->memory.scale);
            else optimizer.set_lr(this->base_lr * recipe.factor(this->position));
        }

        Recipe recipe;
        Optimizer optimizer;
        options how;
        int64_t seen;          // of the optimizer's updates
        Unit unit = Unit::Any;
    };

    Progress progress_in(StateDict const& state) const {
        auto const& s = *shared_;
        auto const who = concat("schedule::", Recipe::kind);
        auto const kind = state.value<std::string>("kind", who);
        auto const unit = state.value<std::string>("unit", who);
        check(kind == Recipe::kind && unit == name(s.unit), code::data, who, ".load_state_dict: the state is of a ", kind, " in ", unit, ", this counts ", name(s.unit));
        Progress progress{state.value<double>("base_lr", who), state.value<int64_t>("position", who), {}};
        check(progress.position >= 0 && std::isfinite(progress.base_lr) && progress.base_lr >= 0, code::data, who, ".load_state_dict: position ", progress.position, " with a base lr of ", progress.base_lr, " cannot be");
        if constexpr (observes) {
            progress.memory = {state.value<double>("scale", who), {}, state.value<int64_t>("bad", who), state.value<int64_t>("cooling", who)};
            if (state.values.contains("best") && !state.values["best"].is_null()) progress.memory.best = state.value<double>("best", who);
            auto const& m = progress.memory;
            check(m.scale >= 0 && m.scale <= 1 && m.bad >= 0 && m.cooling >= 0, code::data, who, ".load_state_dict: an lr scaled by ", m.scale, " behind ", m.bad, " bad metrics and with ", m.cooling,
                  " to come that do not count cannot be");
        }
        return progress;
    }

    std::shared_ptr<Shared> shared_;
};

}  // namespace accelerate::schedule
