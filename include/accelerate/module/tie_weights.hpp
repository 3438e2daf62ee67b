#pragma once

#include <torch/nn/module.h>

#include <accelerate/core/error.hpp>
#include <string>

namespace accelerate {

/// Makes `module`'s parameter `name`, whose member is `member`, the same tensor as `source`:
///   acc::tie_weights(*head, "weight", head->weight, wte->weight);
/// Assigning the member alone ties nothing, since LibTorch keeps a handle of its own. Holds through `make` and `prepare`; a clone
/// (LibTorch's) copies each module for itself, so tie again there. Error E_CONFIG when there is no such parameter, the member is
/// not it, or shapes or dtypes differ.
inline void tie_weights(torch::nn::Module& module, std::string const& name, at::Tensor& member, at::Tensor const& source) {
    struct Open : torch::nn::Module {
        using torch::nn::Module::parameters_;
    };
    auto& parameters = module.*(&Open::parameters_);
    auto* const registered = parameters.find(name);
    check(registered != nullptr && registered->defined(), code::config, "tie_weights: the module has no parameter \"", name, "\"");
    check(registered->is_same(member), code::config, "tie_weights: the member passed is not the module's parameter \"", name, "\"; pass module->", name);
    check(source.defined() && source.sizes() == member.sizes() && source.scalar_type() == member.scalar_type(), code::config, "tie_weights: \"", name, "\" is a ", member.scalar_type(),
          " of shape ", member.sizes(), ", the source ", source.defined() ? concat("a ", source.scalar_type(), " of shape ", source.sizes()) : "undefined");
    *registered = source;
    member = source;
}

}  // namespace accelerate
