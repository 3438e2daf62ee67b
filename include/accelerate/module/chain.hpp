#pragma once

#include <torch/nn/module.h>

#include <accelerate/core/error.hpp>
#include <accelerate/module/strategy.hpp>
#include <string>
#include <tuple>
#include <utility>

namespace accelerate {

/// A model that is a row of parts, each fed with what the one before gives: what a pipeline or a device map may cut, between parts
/// and inside `Layers`. A base class of the model, so that names have no extra level:
///
///   template <class S = acc::Plain>
///   struct Gpt : acc::Chain<S, acc::Unit<S, Embed>, acc::Layers<S, Block<S>>, acc::Linear<S>> {
///       explicit Gpt(Config c) : Gpt::Chain{{"wte", acc::Unit<S, Embed>(c)}, {"h", acc::Layers<S, Block<S>>(c.depth, c.width)},
///                                           {"head", acc::Linear<S>(c.width, c.vocabulary)}} {}
///   };
///
/// In braces the parts are built from left to right; in parentheses each compiler has its own order, so that the same seed gives
/// other weights with another compiler.
template <strategy S, class... Parts>
class Chain : public torch::nn::Module {
public:
    /// A part and its name in the model.
    template <class Part>
    struct Named {
        std::string name;
        Part part;
    };

    explicit Chain(Named<Parts>... named) : parts_(std::move(named.part)...) {
        std::string const names[] = {std::move(named.name)...};
        std::apply([&](auto const&... part) { add(names, part...); }, parts_);
    }

    static constexpr size_t size() { return sizeof...(Parts); }

    /// Part I, from the front.
    template <size_t I>
    auto const& part() const {
        return std::get<I>(parts_);
    }

    /// The fold: the first part gets the arguments, each other one what the part before it gave.
    template <class... In>
    decltype(auto) forward(In&&... in) {
        return fold<0>(std::forward<In>(in)...);
    }

private:
    template <class... P>
    void add(std::string const* name, P const&... part) {
        ((check(!part.is_empty(), code::config, "Chain: part \"", *name, "\" is an empty holder"), this->register_module(*name++, part.ptr())), ...);
    }

    template <size_t I, class... In>
    decltype(auto) fold(In&&... in) {
        if constexpr (I + 1 == sizeof...(Parts)) return std::get<I>(parts_)(std::forward<In>(in)...);
        else return fold<I + 1>(std::get<I>(parts_)(std::forward<In>(in)...));
    }

    std::tuple<Parts...> parts_;
};

}  // namespace accelerate
