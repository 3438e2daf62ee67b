#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/module/checkpointed.hpp>
#include <accelerate/module/unit.hpp>
#include <cstdint>
#include <string>
#include <vector>

namespace accelerate {

/// n blocks of one type in a row, each a unit; children are named 0..n-1, as Python's ModuleList names them.
template <strategy S, class Block>
class LayersImpl : public torch::nn::Module {
public:
    using unit_type = Unit<S, Block>;
    using unit_impl = typename unit_type::impl_type;

    /// Builds one block: what a function that is given to `Layers` calls with the arguments of block i.
    struct Make {
        template <class... Arguments>
        unit_type operator()(Arguments&&... arguments) const {
            constexpr bool possible = std::constructible_from<unit_impl, Arguments...>;
            static_assert(possible, "Layers: the block cannot be built from the arguments given to make(...)");
            if constexpr (possible) return unit_type(std::make_shared<unit_impl>(std::forward<Arguments>(arguments)...));
            else return unit_type(nullptr);
        }
    };

    /// Every block gets the same arguments.
    template <class... Arguments>
        requires std::constructible_from<unit_impl, Arguments const&...>
    explicit LayersImpl(int64_t n, Arguments const&... arguments) {
        reserve(n);
        for (int64_t i = 0; i < n; ++i) add(Make()(arguments...));
    }

    /// `f(make, i)` gives block i, built by `make(arguments...)`.
    template <class F>
        requires(!std::constructible_from<unit_impl, F const&>) && std::invocable<F&, Make, int64_t>
    LayersImpl(int64_t n, F&& f) {
        reserve(n);
        for (int64_t i = 0; i < n; ++i) add(f(Make(), i));
    }

    /// One block after the other; what else a block takes (a mask) goes to each.
    template <class X, class... Shared>
    X forward(X x, Shared const&... shared) {
        if (checkpoint_every_ > 0) return forward_checkpointed(std::move(x), shared...);
        for (auto& unit : units_) x = unit(std::move(x), shared...);
        return x;
    }

    /// From now on every k-th block is `checkpointed`: it keeps its argument alone, and backward calls it again. 0: none.
    void checkpoint_every(int64_t k) {
        check(k >= 0, code::config, "Layers.checkpoint_every: ", k, "; it must not be negative");
        checkpoint_every_ = k;
    }

    unit_type const& operator[](size_t i) const { return units_.at(i); }
    size_t size() const { return units_.size(); }
    auto begin() const { return units_.begin(); }
    auto end() const { return units_.end(); }

    /// A copy of every block, where the block can be cloned.
    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        auto copy = std::make_shared<LayersImpl>(*this);
        copy->clear();
        for (auto const& unit : units_) copy->add(unit_type(std::dynamic_pointer_cast<unit_impl>(unit->clone(device))));
        return copy;
    }

private:
    /// LibTorch's half of cloning a parent: `this` is a fresh child, `other` what it shall copy.
    void clone_(torch::nn::Module& other, std::optional<at::Device> const& device) override {
        *this = static_cast<LayersImpl const&>(*other.clone(device));
    }

    template <class X, class... Shared>
    X forward_checkpointed(X x, Shared const&... shared) {
        int64_t i = 0;
        for (auto& unit : units_) {
            if (++i % checkpoint_every_ == 0) x = checkpointed(unit, std::move(x), shared...);
            else x = unit(std::move(x), shared...);
        }
        return x;
    }

    void reserve(int64_t n) {
        check(n >= 0, code::config, "Layers: ", n, " blocks; the number of blocks must not be negative");
        units_.reserve(static_cast<size_t>(n));
    }
    void clear() {
        for (size_t i = 0; i < units_.size(); ++i) this->unregister_module(std::to_string(i));
        units_.clear();
    }
    void add(unit_type unit) {
        this->register_module(std::to_string(units_.size()), unit.ptr());
        units_.push_back(std::move(unit));
    }

    std::vector<unit_type> units_;
    int64_t checkpoint_every_ = 0;
};

/// The holder of `LayersImpl`; not a unit itself, it holds them. `acc::Layers<S, Block<S>> h;` constructed `h(this, "h", depth,
/// width)`, or, where blocks differ, `h(this, "h", depth, [&](auto make, int64_t i) { return make(width, i); })`.
template <strategy S, class Block>
class Layers : public detail::Holder<LayersImpl<S, Block>> {
public:
    using detail::Holder<LayersImpl<S, Block>>::Holder;
    auto const& operator[](size_t i) const { return (*this->impl_)[i]; }
    size_t size() const { return this->impl_->size(); }
    auto begin() const { return this->impl_->begin(); }
    auto end() const { return this->impl_->end(); }
};

}  // namespace accelerate
