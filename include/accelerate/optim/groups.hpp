#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/log.hpp>
#include <accelerate/optim/callable.hpp>
#include <accelerate/sharding/flat.hpp>
#include <cmath>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::optim {

/// Parameters with hyper-parameters of their own: those whose name satisfies `match` and no earlier group's. What is not set is
/// the recipe's. `set_lr` and schedules keep the ratio between a group's `lr` and the recipe's.
struct ParameterGroup {
    Callable<bool(std::string const&)> match = {};  ///< empty: every name
    std::optional<double> lr = {};
    std::optional<double> weight_decay = {};
};

/// Error E_CONFIG for a learning rate, or a weight decay, with which an update would go the other way or nowhere.
inline void check_hyper(double value, std::string_view what) { check(value >= 0 && std::isfinite(value), code::config, what, " is ", value, "; it must be at least 0, and finite"); }

/// The hyper-parameters that may differ between parameters, and what `set_lr` needs to scale them.
struct Hyper {
    double lr = 0;            ///< in force now
    double initial_lr = 0;    ///< as in the recipe
    double weight_decay = 0;

    bool same(Hyper const& o) const { return initial_lr == o.initial_lr && weight_decay == o.weight_decay; }
};

/// Sorts parameters into sets of equal hyper-parameters by the recipe's groups. Runs when an optimizer is bound, never in a step.
class Grouping {
public:
    template <class Recipe>
    explicit Grouping(Recipe const& recipe)
        : base_{recipe.lr, recipe.lr, recipe.weight_decay}, no_decay_(recipe.no_decay_on_norms_and_biases), rules_(recipe.groups), used_(recipe.groups.size()) {
        for (size_t i = 0; i < rules_.size(); ++i) {
            auto const& rule = rules_[i];
            check_hyper(rule.lr.value_or(0), concat("optimizer: lr of parameter group ", i));
            check_hyper(rule.weight_decay.value_or(0), concat("optimizer: weight_decay of parameter group ", i));
            check(!rule.lr || recipe.lr != 0, code::config, "optimizer: a parameter group with its own lr needs a recipe whose lr is not 0, since set_lr keeps the ratio of the two");
        }
    }

    /// Index of the set that the parameter belongs to. A group's explicit `weight_decay` wins over `no_decay_on_norms_and_biases`.
    size_t set_of(sharding::Slot const& slot) {
        auto hyper = base_;
        bool decay_given = false;
        for (size_t i = 0; i < rules_.size(); ++i) {
            if (rules_[i].match && !rules_[i].match(slot.name)) continue;
            used_[i] = true;
            if (rules_[i].lr) hyper.lr = hyper.initial_lr = *rules_[i].lr;
            if (rules_[i].weight_decay) hyper.weight_decay = *rules_[i].weight_decay, decay_given = true;
            break;
        }
        if (no_decay_ && !decay_given && (slot.parameter.dim() <= 1 || slot.name.ends_with("bias"))) hyper.weight_decay = 0;
        for (size_t i = 0; i < sets_.size(); ++i)
            if (sets_[i].same(hyper)) return i;
        hyper.lr = scaled(hyper);
        sets_.push_back(hyper);
        return sets_.size() - 1;
    }

    /// A group that matches no name is nearly always a spelling mistake.
    void warn_about_unused() const {
        for (size_t i = 0; i < used_.size(); ++i)
            if (!used_[i]) log::warning_once("optimizer: parameter group ", i, " matches no parameter name (or earlier groups took all that it matches)");
    }

    double lr() const { return base_.lr; }

    void set_lr(double lr) {
        base_.lr = lr;
        for (auto& set : sets_) set.lr = scaled(set);
    }

    Hyper const& operator[](size_t set) const { return sets_[set]; }
    std::vector<Hyper> const& sets() const { return sets_; }
    int64_t rules() const { return static_cast<int64_t>(rules_.size()); }

private:
    // With the recipe's own lr in force the quotient is exactly 1, so a group's lr is used to the last bit as it was written.
    double scaled(Hyper const& set) const { return set.initial_lr == base_.initial_lr ? base_.lr : set.initial_lr * (base_.lr / base_.initial_lr); }

    Hyper base_;
    bool no_decay_;
    std::vector<ParameterGroup> rules_;
    std::vector<bool> used_;
    std::vector<Hyper> sets_;
};

}  // namespace accelerate::optim
