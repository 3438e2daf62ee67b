#pragma once

#include <ATen/ops/zeros.h>

#include <accelerate/comm/reduction.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/training.hpp>

namespace accelerate::detail {

/// `Accelerator::clip_grad_norm`: over one model, folding over ranks where a rank owns only slices of the gradients.
template <class Training, class Model>
at::Tensor clip_grad_norm(Training& training, Model& model, double max_norm, double norm_type) {
    training.settled();
    if (!model.window_closed()) return model.last_norm.defined() ? model.last_norm : at::zeros({});
    model.advance("accelerator.clip_grad_norm", sharding::Stage::Clipped, {sharding::Stage::Reduced, sharding::Stage::Unscaled, sharding::Stage::Clipped});
    Model* const models[] = {&model};
    if constexpr (Model::owns_everything) {
        model.last_norm = optim::clip_grad_norm(std::span<Model* const>(models), max_norm, norm_type, model.operations);
    } else {
        auto fold = [&](at::Tensor& partial, optim::Fold how) { model.fold(partial, how == optim::Fold::Max ? comm::Reduction::Max : how == optim::Fold::Min ? comm::Reduction::Min : comm::Reduction::Sum); };
        model.last_norm = optim::clip_grad_norm(std::span<Model* const>(models), max_norm, norm_type, model.operations, fold);
    }
    return model.last_norm;
}

template <class Training, class Model>
void clip_grad_value(Training& training, Model& model, double value) {
    training.settled();
    if (!model.window_closed()) return;
    model.advance("accelerator.clip_grad_value", sharding::Stage::Clipped, {sharding::Stage::Reduced, sharding::Stage::Unscaled, sharding::Stage::Clipped});
    Model* const models[] = {&model};
    optim::clip_grad_value(std::span<Model* const>(models), value);
}

}  // namespace accelerate::detail
