#pragma once

#include <torch/nn/modules/linear.h>

#include <accelerate/module/holder.hpp>
#include <accelerate/module/strategy.hpp>

namespace accelerate {

/// A linear layer in the arithmetic of the strategy: `torch::nn::LinearImpl` itself for Fp32; another precision brings its own.
///   acc::Linear<S> up;    constructed up(this, "up", in, out), up(this, "up", torch::nn::LinearOptions(in, out).bias(false)),
///                         or without parent and name, for register_module
template <strategy S = Plain>
class Linear : public detail::Holder<typename S::precision::template impl<torch::nn::LinearImpl>> {
public:
    using detail::Holder<typename S::precision::template impl<torch::nn::LinearImpl>>::Holder;
};

}  // namespace accelerate
