#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/log.hpp>
#include <exception>
#include <vector>

namespace accelerate::optim {

/// While alive, the models of an optimizer have its averages as their weights: what `Optimizer::average_parameters` returns. Costs a copy
/// of this rank's weights.
template <class Optimizer>
class AverageScope {
public:
    explicit AverageScope(Optimizer const& optimizer) : optimizer_(optimizer) {
        auto& shared = *optimizer_.shared_;
        check(shared.recipe.ema_decay > 0, code::config, "optimizer.average_parameters: the recipe has no ema_decay, for example acc::optim::AdamW{.ema_decay = 0.999}");
        check(!shared.averaged, code::call_order, "optimizer.average_parameters inside another; let its scope end first");
        if (shared.stale()) shared.bind();
        at::NoGradGuard const no_grad;
        for (auto const& stretch : shared.moments.stretches()) {
            weights_.push_back(stretch.parameters.clone());
            stretch.parameters.copy_(stretch.average);
        }
        shared.averaged = true;
        tell();
    }
    ~AverageScope() {
        auto& shared = *optimizer_.shared_;
        at::NoGradGuard const no_grad;
        for (size_t i = 0; i < weights_.size(); ++i) shared.moments.stretches()[i].parameters.copy_(weights_[i]);
        shared.averaged = false;
        try {
            tell();
        } catch (std::exception const& e) {
            log::warning(log::From::Everyone, "average_parameters: ", e.what());  // a destructor must not throw; the next collective will
        }
    }
    AverageScope(AverageScope const&) = delete;
    AverageScope& operator=(AverageScope const&) = delete;

private:
    void tell() {
        for (auto& model : optimizer_.shared_->models)
            if constexpr (requires { model->parameters_changed(); }) model->parameters_changed();
    }

    Optimizer optimizer_;  // a handle
    std::vector<at::Tensor> weights_;
};

}  // namespace accelerate::optim
