#pragma once

#include <functional>
#include <string>

namespace accelerate {

/// Which `acc::Linear<S>` layers run in fp8 under an fp8 policy.
struct fp8_layers {
    std::function<bool(std::string const& name)> filter = {};  ///< of those that can; empty: all
    bool keep_first_and_last = true;                           ///< the first and the last linear layer of a model stay in bf16
};

}  // namespace accelerate
