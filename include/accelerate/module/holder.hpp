#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <concepts>
#include <memory>
#include <string>
#include <utility>

namespace accelerate::detail {

/// The module struct behind what a user names: `torch::nn::Linear` is a holder of `torch::nn::LinearImpl`.
template <class B>
struct block_of {
    using type = B;
};
template <class B>
    requires std::is_base_of_v<torch::detail::ModuleHolderIndicator, B>
struct block_of<B> {
    using type = typename B::ContainedType;
};
template <class B>
using block_of_t = typename block_of<B>::type;

/// The first of some types; of none, void.
template <class... T>
struct first_of {
    using type = void;
};
template <class Head, class... Tail>
struct first_of<Head, Tail...> {
    using type = Head;
};

/// What `Unit`, `Layers` and `Linear` share: a holder like `torch::nn::Linear` that may register itself, `up(this, "up", 8, 32)`.
template <class Impl>
class Holder : public torch::nn::ModuleHolder<Impl> {
    using Base = torch::nn::ModuleHolder<Impl>;

    /// Not a copy of a holder, which a constructor of anything would take for arguments of the module.
    template <class... Arguments>
    static constexpr bool for_module = sizeof...(Arguments) > 0 && !std::is_base_of_v<Base, std::remove_cvref_t<typename first_of<Arguments...>::type>>;

public:
    using impl_type = Impl;

    /// Builds a module that needs no arguments, as LibTorch's holders do; else stays empty.
    Holder() : Base(nullptr) {
        if constexpr (std::is_default_constructible_v<Impl>) this->impl_ = std::make_shared<Impl>();
    }
    Holder(std::nullptr_t) : Base(nullptr) {}
    Holder(std::shared_ptr<Impl> impl) : Base(std::move(impl)) {}

    /// Builds the module; `register_module` gives it its name.
    template <class... Arguments>
        requires for_module<Arguments...> && std::constructible_from<Impl, Arguments...>
    explicit Holder(Arguments&&... arguments) : Base(std::make_shared<Impl>(std::forward<Arguments>(arguments)...)) {}

    /// Builds the module and registers it in `parent` under `name`: one name, one type.
    template <std::derived_from<torch::nn::Module> Parent, class... Arguments>
    Holder(Parent* parent, std::string name, Arguments&&... arguments) : Base(nullptr) {
        constexpr bool possible = std::constructible_from<Impl, Arguments...>;
        static_assert(possible, "this module cannot be built from these arguments; after (this, \"name\", come those that its constructor takes");
        if constexpr (possible) {
            this->impl_ = std::make_shared<Impl>(std::forward<Arguments>(arguments)...);
            static_cast<torch::nn::Module&>(*parent).register_module(std::move(name), this->impl_);
        }
    }

    /// Points, as a shared_ptr does: a holder that is const still gives a module that is not.
    Impl* get() const { return this->ptr().get(); }
    Impl* operator->() const { return get(); }
    Impl& operator*() const { return *get(); }

    /// The forward. (LibTorch's own returns nothing where `forward` is a template or overloaded.)
    template <class... In>
    decltype(auto) operator()(In&&... in) const {
        return this->impl_->forward(std::forward<In>(in)...);
    }
};

}  // namespace accelerate::detail
