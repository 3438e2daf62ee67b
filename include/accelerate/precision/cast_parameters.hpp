#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

namespace accelerate::precision {

/// Floating-point parameters and buffers of a module in another dtype, as Python's `model.to(dtype)`; handles stay valid, gradients move
/// along. (LibTorch's `Module::to` casts integer buffers too.)
template <class Module>
void cast_parameters(Module& model, at::ScalarType dtype) {
    at::NoGradGuard const no_grad;
    for (auto& p : model.parameters()) {
        if (!p.is_floating_point() || p.scalar_type() == dtype) continue;
        auto const gradient = p.grad();
        p.mutable_grad().reset();
        p.set_data(p.detach().to(dtype));
        if (gradient.defined()) p.mutable_grad() = gradient.to(dtype);
    }
    for (auto& b : model.buffers())
        if (b.is_floating_point()) b.set_data(b.to(dtype));
}

}  // namespace accelerate::precision
