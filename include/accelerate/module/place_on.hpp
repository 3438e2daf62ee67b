#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/nn/module.h>

namespace accelerate::module {

/// Gives `t` the memory, device and dtype of `value`. The handles that anybody holds stay valid: they share the TensorImpl.
inline void rebind(at::Tensor const& t, at::Tensor const& value) {
    auto* const impl = t.unsafeGetTensorImpl();
    // What `set_data` refuses although it works: shapes without memory, and devices that plug into LibTorch.
    if (t.is_meta() || !impl->has_compatible_shallow_copy_type(value.key_set())) impl->shallow_copy_from(value.getIntrusivePtr());
    else t.set_data(value);
}

/// Moves parameters, their gradients and buffers to `device` in place (LibTorch's `module.to(device)`, and no more than what has
/// memory: a placement that has cut a parameter away moves its own).
inline void place_on(torch::nn::Module const& root, at::Device device) {
    at::NoGradGuard const no_grad;
    auto const move = [&](at::Tensor const& t) {
        if (!t.defined() || t.device() == device || t.is_meta()) return;
        auto const cut = t.has_storage() && t.numel() > 0 && t.storage().nbytes() == 0;
        if (!cut) rebind(t, t.detach().to(device));
    };
    for (auto const& p : root.parameters()) {
        if (p.grad().defined() && p.grad().device() != device) {
            auto const gradient = p.grad().to(device);
            p.mutable_grad() = at::Tensor();
            move(p);
            p.mutable_grad() = gradient;
        } else {
            move(p);
        }
    }
    for (auto const& b : root.buffers()) move(b);
}

}  // namespace accelerate::module
