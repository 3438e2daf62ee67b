#pragma once

#include <ATen/ops/scalar_tensor.h>

#include <accelerate/comm/reduction.hpp>
#include <accelerate/core/log.hpp>
#include <accelerate/non_finite.hpp>
#include <accelerate/optim/finite.hpp>
#include <accelerate/precision/grad_scaler.hpp>
#include <accelerate/rerun.hpp>
#include <accelerate/sharding/window.hpp>
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

namespace accelerate {

/// Decides whether optimizers may step: one verdict over the gradients of all prepared models that are complete, the same on every
/// rank and before anyone steps; and one update of the gradient scaler for it, however many optimizers there are. Shared by an
/// accelerator and its models.
template <class Model, class Scaler>
class StepGuard {
public:
    static constexpr bool scales = !std::is_same_v<Scaler, precision::NoScaler>;

    /// `rerun` where the policy wants one.
    StepGuard(NonFinite policy, grad_scaler_options const& options, int64_t rank, std::shared_ptr<Rerun> rerun = {}) : policy_(policy), scaler_(options), rank_(rank), rerun_(std::move(rerun)) {
        check(!scales || !policy.ignores(), code::config, "Accelerator: this precision scales gradients and must skip steps that overflow; NonFinite::ignore is not for it");
    }

    void join(Model* model) { members_.push_back(model); }
    void leave(Model* model) { std::erase(members_, model); }

    /// Where the precision scales, the loss scale of a backward that reaches these models: that with which they have begun their windows, else
    /// the present one.
    double scale_loss(std::span<Model* const> models) {
        double scale = 0;
        for (auto const* model : models) {
            if (model->loss_scale == 0 || !model->reached) continue;
            check(scale == 0 || scale == model->loss_scale, code::call_order, "accelerator.backward: these models began their windows under different loss scales, ", scale, " and ",
                  model->loss_scale, "; name them in one accumulate, or step before");
            scale = model->loss_scale;
        }
        if (scale == 0) scale = static_cast<double>(scaler_.get_scale());
        for (auto* model : models)
            if (model->reached) model->loss_scale = scale;
        return scale;
    }

    /// Whether the gradients of `model`, which are complete, may be used.
    bool allows(Model& model) {
        if (policy_.ignores()) return true;
        if (!model.allowed) decide(model);
        return *model.allowed;
    }

    /// Whether the gradients of one model are finite on every rank. Collective where ranks own slices only.
    bool finite(Model const& model) const {
        return over_ranks(model, optim::gradients_are_finite(model) ? 0 : 1, comm::Reduction::Max) == 0;
    }

    bool skipped() const { return in_a_row_ > 0; }
    int64_t skipped_in_a_row() const { return in_a_row_; }
    /// Whether an optimizer has come to the end of a window, with a step or without, since this was last forgotten.
    bool has_stepped() const { return stepped_; }
    void forget_step() { stepped_ = false; }
    void stepped() { stepped_ = true, ++steps_; }
    int64_t steps() const { return steps_; }  ///< of all optimizers, since the beginning of the run
    void restore(int64_t steps, int64_t skipped_in_a_row) { steps_ = steps, in_a_row_ = skipped_in_a_row; }
    NonFinite policy() const { return policy_; }
    Scaler& scaler() { return scaler_; }

private:
    /// A small number, or the largest there is, folded over the ranks where each owns slices only.
    static int64_t over_ranks(Model const& model, int64_t number, comm::Reduction reduction) {
        if constexpr (Model::owns_everything) return number;
        else {
            auto folded = at::scalar_tensor(number, at::kLong);
            model.fold(folded, reduction);
            return folded.template item<int64_t>();
        }
    }

    static bool waits_for_step(Model const& model) { return model.window_closed() && sharding::waits_for_step(model.stage()); }

    void decide(Model& stepping) {
        std::string culprit;
        bool found = false;
        for (auto* model : members_) {
            if (model != &stepping && (model->allowed || !waits_for_step(*model))) continue;
            if (!model->finite) model->finite = finite(*model);
            if (!*model->finite) [[unlikely]] {
                found = true;
                if (culprit.empty()) culprit = first_of(*model);
            }
            round_.push_back(model);
        }
        for (auto* model : round_) model->allowed = !found;
        round_.clear();
        if (found && culprit.empty()) culprit = "a parameter";
        in_a_row_ = found ? in_a_row_ + 1 : 0;
        if constexpr (scales) {
            auto const before = scaler_.get_scale();
            scaler_.update(found);
            if (found) report(concat(culprit, "; loss scale ", before, ", now ", scaler_.get_scale()), Scaler::dynamic && before > 1);
        } else if (found) {
            report(culprit, false);
        }
        if (!found && rerun_ && rerun_->again()) log::warning("optimizer.step: computed once more, the gradients are finite: a fault of the machine (rank ", rank_, "); the step is made");
    }

    /// `searching`: the scaler looks for a scale that fits, which is no failure.
    void report(std::string const& what, bool searching) const {
        auto const text = concat("optimizer.step: the gradients are not finite, first that of ", what);
        if ((policy_.raises() && !searching) || policy_.aborts(in_a_row_))
            throw Error(code::non_finite, concat(text, "; ", in_a_row_, in_a_row_ == 1 ? " step" : " steps in a row", " (rank ", rank_, "); parameters are as before"));
        if (rerun_ && !searching && !rerun_->again() && rerun_->request()) return log::warning(text, "; the window is computed once more");
        log::warning(text, rerun_ && rerun_->again() ? ", again: the data's fault or the model's" : "", "; the step is skipped", in_a_row_ > 1 ? concat(", ", in_a_row_, " in a row") : "");
    }

    /// Empty: none of its own.
    std::string first_of(Model const& model) const {
        auto const first = over_ranks(model, optim::first_non_finite(model), comm::Reduction::Min);
        auto const& parameters = model.parameters();
        return first < static_cast<int64_t>(parameters.size()) ? "\"" + parameters[static_cast<size_t>(first)].first + "\"" : std::string();
    }

    NonFinite policy_;
    [[no_unique_address]] Scaler scaler_;
    int64_t rank_;
    std::shared_ptr<Rerun> rerun_;
    std::vector<Model*> members_, round_;
    int64_t in_a_row_ = 0, steps_ = 0;
    bool stepped_ = false;
};

}  // namespace accelerate
