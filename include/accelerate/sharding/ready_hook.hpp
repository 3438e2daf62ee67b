#pragma once

#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <utility>

namespace accelerate::sharding {

/// Calls `reducer->ready(flat, slot)` when a parameter's gradient has been accumulated. LibTorch has one such hook a parameter:
/// one that the user had set goes on being called.
template <class Reducer>
class ReadyHook final : public torch::autograd::PostAccumulateGradHook {
public:
    /// Installs a hook on `parameter`; it must be removed before `reducer` dies.
    static void install(at::Tensor const& parameter, Reducer* reducer, size_t flat, size_t slot) {
        auto hook = std::make_unique<ReadyHook>(reducer, flat, slot);
        hook->before_ = std::move(torch::autograd::impl::post_acc_grad_hooks(parameter));
        torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::move(hook));
    }

    /// Puts back what was there before `install`.
    static void remove(at::Tensor const& parameter, Reducer* reducer) {
        if (torch::autograd::impl::get_autograd_meta(parameter) == nullptr) return;  // it has never had a gradient, nor a hook
        auto& current = torch::autograd::impl::post_acc_grad_hooks(parameter);
        auto* ours = dynamic_cast<ReadyHook*>(current.get());
        if (ours && ours->reducer_ == reducer) current = std::move(ours->before_);
    }

    ReadyHook(Reducer* reducer, size_t flat, size_t slot) : reducer_(reducer), flat_(flat), slot_(slot) {}

    void operator()(at::Tensor const& parameter) override {
        if (before_) (*before_)(parameter);
        reducer_->ready(flat_, slot_);
    }

private:
    Reducer* reducer_;
    size_t flat_, slot_;
    std::unique_ptr<torch::autograd::PostAccumulateGradHook> before_;
};

}  // namespace accelerate::sharding
