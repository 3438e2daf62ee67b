#pragma once

#include <ATen/ops/linear.h>

#include <memory>
#include <optional>
#include <type_traits>

namespace torch::nn {
class Module;
class LinearImpl;
}  // namespace torch::nn

namespace accelerate::precision {

/// `torch::nn::LinearImpl` as one `at::linear`. LibTorch's own transposes the weight first, and autocast caches only whole
/// weights: through it every forward of a scope casts again. Names, options and files are those of LibTorch's.
template <class Impl>
class CastOnceLinear : public Impl {
public:
    using Impl::Impl;

    at::Tensor forward(at::Tensor const& x) { return at::linear(x, this->weight, this->bias); }

    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        auto copy = std::make_shared<CastOnceLinear>(*this);
        static_cast<Impl&>(*copy) = static_cast<Impl const&>(*Impl::clone(device));
        return copy;
    }
};

/// What autocast asks of a leaf: for LibTorch's linear layer the one above, for anything else itself.
template <class Impl>
using cast_once_t = std::conditional_t<std::is_same_v<Impl, torch::nn::LinearImpl>, CastOnceLinear<Impl>, Impl>;

}  // namespace accelerate::precision
