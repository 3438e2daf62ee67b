#pragma once
// Units that models of several tests consist of.

#include <torch/nn/modules/normalization.h>

#include <accelerate.hpp>
#include <tuple>

namespace units {

namespace acc = accelerate;

template <class S>
struct Block : torch::nn::Module {
    explicit Block(int64_t d) : norm(register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({d})))), up(this, "up", d, 4 * d), down(this, "down", 4 * d, d) {}
    torch::Tensor forward(torch::Tensor x) { return x + down(torch::gelu(up(norm(x)))); }
    torch::nn::LayerNorm norm;
    acc::Linear<S> up, down;
};

/// Gives two tensors, of which one goes around the next block.
template <class S>
struct Fork : torch::nn::Module {
    explicit Fork(int64_t d) : a(this, "a", d, d), b(this, "b", d, d) {}
    std::tuple<torch::Tensor, torch::Tensor> forward(torch::Tensor x) { return {torch::tanh(a(x)), b(x)}; }
    acc::Linear<S> a, b;
};

/// A unit inside a unit, with parameters of its own around it.
template <class S>
struct Nested : torch::nn::Module {
    explicit Nested(int64_t d) : scale(register_parameter("scale", torch::ones({d}) + torch::randn({d}) * 0.1)), inside(this, "inside", d), last(this, "last", d, d) {}
    torch::Tensor forward(torch::Tensor x) { return last(inside(x * scale)) * scale; }
    torch::Tensor scale;
    acc::Unit<S, Block<S>> inside;
    acc::Linear<S> last;
};

}  // namespace units
