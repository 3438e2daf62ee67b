#pragma once

#include <accelerate/core/tensor_map.hpp>

namespace accelerate {

/// What of a model is saved: its parameters, then its buffers, under the names LibTorch (and so Python) gives them. Undefined ones
/// (a Linear without bias) are left out. Tied tensors appear under each of their names. The model is a module, or whatever `*`
/// makes one: a holder, a shared pointer, a prepared model.
template <class Model>
TensorMap model_tensors(Model const& model) {
    if constexpr (requires { model.named_parameters(); }) {
        TensorMap out;
        auto const add = [&](auto const& named) {
            for (auto const& item : named)
                if (item.value().defined()) out.insert(item.key(), item.value());
        };
        add(model.named_parameters());
        add(model.named_buffers());
        return out;
    } else {
        return model_tensors(*model);
    }
}

}  // namespace accelerate
