#pragma once

#include <torch/nn/module.h>

#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace accelerate {

/// Parameters by name in registration order, each once: a tied one under its first name. (LibTorch lists it once a name.)
inline std::vector<std::pair<std::string, at::Tensor>> unique_parameters(torch::nn::Module const& module) {
    std::vector<std::pair<std::string, at::Tensor>> found;
    std::unordered_set<at::TensorImpl*> seen;
    for (auto const& p : module.named_parameters())
        if (seen.insert(p.value().unsafeGetTensorImpl()).second) found.emplace_back(p.key(), p.value());
    return found;
}

}  // namespace accelerate
