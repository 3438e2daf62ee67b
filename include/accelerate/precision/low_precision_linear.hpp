#pragma once

#include <accelerate/precision/gemm.hpp>
#include <memory>
#include <optional>
#include <type_traits>

namespace torch::nn {
class Module;
class LinearImpl;
}  // namespace torch::nn

namespace accelerate::precision {

/// The clone of a layer that derives from `Impl`.
template <class Impl, class Layer>
std::shared_ptr<Layer> clone_of(Layer const& layer, std::optional<at::Device> const& device) {
    auto copy = std::make_shared<Layer>(layer);
    static_cast<Impl&>(*copy) = static_cast<Impl const&>(*layer.Impl::clone(device));
    return copy;
}

/// `torch::nn::LinearImpl` whose forward is `Product::linear(x, weight, bias, kept)`. Names, options and files are those of LibTorch's.
template <class Impl, class Product>
class LowPrecisionLinear : public Impl, public WeightKeeper {
public:
    using Impl::Impl;

    at::Tensor forward(at::Tensor const& x) { return Product::linear(x, this->weight, this->bias, *kept); }

    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        return clone_of<Impl>(*this, device);
    }
};

/// What a precision makes of a leaf: of LibTorch's linear layer `Layer`, of anything else itself.
template <class Impl, class Layer>
using linear_becomes_t = std::conditional_t<std::is_same_v<Impl, torch::nn::LinearImpl>, Layer, Impl>;

}  // namespace accelerate::precision
