#pragma once

#include <accelerate/comm/reduction.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/training.hpp>
#include <algorithm>
#include <cmath>
#include <span>

namespace accelerate::detail {

/// `Accelerator::clip_grad_norm`: over some models as if they were one, folding over ranks where a rank owns only slices of the gradients.
/// Takes the loss scale out on the way. Where the optimizer multiplies in its sweep, the multiplication is left to it; where the step will be
/// refused there is none.
template <class Training, class Model>
at::Tensor clip_grad_norm(Training& training, std::span<Model* const> given, double max_norm, double norm_type) {
    training.settled();
    check(max_norm >= 0 && !std::isnan(norm_type), code::config, "accelerator.clip_grad_norm: max_norm is ", max_norm, " and norm_type ", norm_type, "; a norm must be at least 0, its type a number");
    auto const& first = *given.front();
    if (!std::ranges::all_of(given, &Model::window_closed)) return first.last_norm.defined() ? first.last_norm : optim::norm_tensor(given, 0);
    auto const stepping = sharding::stepping(given);
    std::span<Model* const> const models(stepping);
    for (auto* model : models) model->advance("accelerator.clip_grad_norm", sharding::Stage::Clipped, sharding::waiting_for_step);
    if (models.size() > 1)  // whose scales may differ
        for (auto* model : models) optim::scale_gradients(*model, model->take_scale());
    auto norm = [&] {
        if constexpr (Model::owns_everything) return optim::gradient_norm(models, norm_type, first.operations);
        else return optim::gradient_norm(models, norm_type, first.operations, [&](at::Tensor& partial, optim::Fold how) {
            first.fold(partial, how == optim::Fold::Max ? comm::Reduction::Max : how == optim::Fold::Min ? comm::Reduction::Min : comm::Reduction::Sum);
        });
    }();
    auto const unscale = models.front()->take_scale();
    if (unscale != 1) norm = norm * unscale;
    auto const dtype = optim::norm_dtype(models);
    auto const result = norm.to(dtype);
    for (auto* model : given) model->last_norm = result;
    if (!norm.is_cpu()) {
        for (auto* model : models) optim::scale_gradients(*model, (optim::clip_coefficient(norm, max_norm) * unscale).to(dtype));
        return result;
    }
    if (!training.guard->policy().ignores()) {
        // A finite norm of positive order is that of finite gradients; others may hide an infinity, or overflow themselves.
        bool const finite = norm_type > 0 && std::isfinite(norm.template item<double>());
        for (auto* model : models) model->finite = finite || training.guard->finite(*model);
        if (!std::ranges::all_of(models, [](auto const* model) { return *model->finite; })) {
            // A norm that is no number would make all of them such; one that a step before this had been allowed is not any more.
            for (auto* model : models) {
                model->finite = false;
                if (model->allowed == true) model->allowed.reset();
            }
            return result;
        }
    }
    for (auto* model : models) model->scale_gradients(optim::clip_factor(norm, max_norm, first.operations) * unscale);
    return result;
}

template <class Training, class Model>
void clip_grad_value(Training& training, Model& model, double value) {
    training.settled();
    check(value >= 0, code::config, "accelerator.clip_grad_value: the value is ", value, "; it must be at least 0");
    if (!model.window_closed()) return;
    model.advance("accelerator.clip_grad_value", sharding::Stage::Clipped, sharding::waiting_for_step);
    if (!training.guard->policy().ignores()) model.finite = training.guard->finite(model);  // a clamped infinity is none
    optim::scale_gradients(model, model.take_scale());
    Model* const models[] = {&model};
    optim::clip_grad_value(std::span<Model* const>(models), value);
}

}  // namespace accelerate::detail
