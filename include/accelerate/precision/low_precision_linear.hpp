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

/// `torch::nn::LinearImpl` whose forward is `Product::linear(x, weight, bias)`. Names, options and files are those of LibTorch's.
template <class Impl, class Product>
class LowPrecisionLinear : public Impl {
public:
    using Impl::Impl;

    at::Tensor forward(at::Tensor const& x) { return Product::linear(x, this->weight, this->bias); }

    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        auto copy = std::make_shared<LowPrecisionLinear>(*this);
        static_cast<Impl&>(*copy) = static_cast<Impl const&>(*Impl::clone(device));
        return copy;
    }
};

/// What autocast asks of a leaf: for LibTorch's linear layer the one above, for anything else itself.
template <class Impl, class Product>
using low_precision_t = std::conditional_t<std::is_same_v<Impl, torch::nn::LinearImpl>, LowPrecisionLinear<Impl, Product>, Impl>;

}  // namespace accelerate::precision
