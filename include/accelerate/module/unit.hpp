#pragma once

#include <accelerate/module/holder.hpp>
#include <accelerate/module/strategy.hpp>

namespace accelerate {

/// A unit of a model: the part that is gathered, offloaded, recomputed or moved at once. Used like `torch::nn::Linear`:
///   acc::Unit<S, torch::nn::Embedding> wte;    constructed wte(this, "wte", vocabulary, width), or by register_module
/// Holds `S::placement::impl<Block>`, which for a resident placement is the block itself: names, clone and `as<>` are LibTorch's.
/// A block may only touch parameters of its own unit, and those that `tie_weights` made its own.
template <strategy S, class Block>
class Unit : public detail::Holder<typename S::placement::template impl<detail::block_of_t<Block>>> {
    using Base = detail::Holder<typename S::placement::template impl<detail::block_of_t<Block>>>;

public:
    using strategy_type = S;
    using block_type = detail::block_of_t<Block>;
    using Base::Base;
};

}  // namespace accelerate
