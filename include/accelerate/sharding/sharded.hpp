#pragma once

#include <torch/nn/module.h>

#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/module/materialize.hpp>
#include <accelerate/sharding/sharded_unit.hpp>
#include <accelerate/sharding/unit_tree.hpp>

namespace accelerate {
namespace sharding {

/// What tells a module that is a sharded unit from others. One member, so that a block's own names stay its own.
template <comm::communicator Comm>
struct HoldsShard {
    virtual ~HoldsShard() = default;
    ShardedUnit<Comm> sharded_unit;
};

/// A block whose parameters are gathered for its forward and its backward and are away in between.
template <comm::communicator Comm, bool Reshard, class Block>
class ShardedImpl : public Block, public HoldsShard<Comm> {
    using Holds = HoldsShard<Comm>;

public:
    using Block::Block;

    template <class... In>
    decltype(auto) forward(In&&... in) {
        auto& held_unit = this->Holds::sharded_unit;  // no name here that a block might have for a member: compilers warn of shadows
        if (!held_unit.bound()) {
            check(!held_unit.placed(), code::call_order, "unit \"", held_unit.name(), "\": its parameters are spread over the ranks; pass the model to prepare before using it");
            return Block::forward(std::forward<In>(in)...);
        }
        held_unit.acquire();
        if (held_unit.next() != nullptr) held_unit.next()->prefetch();
        auto forwarded = Block::forward(std::forward<In>(in)...);
        if (held_unit.root()) return forwarded;  // its model knows when backward begins
        if constexpr (Reshard) held_unit.release();
        for_each_tensor(forwarded, [&](at::Tensor const& t) {
            // Holds the module, not `this`: the graph may outlive the model.
            if (t.requires_grad())
                t.register_hook([self = std::static_pointer_cast<ShardedImpl>(this->shared_from_this())](at::Tensor const&) { self->Holds::sharded_unit.before_backward(); });
        });
        return forwarded;
    }

    /// Not offered: a copy of a shard is no model.
    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& = std::nullopt) const override {
        throw Error(code::config, concat("clone: unit \"", this->Holds::sharded_unit.name(), "\" is sharded; clone the model before `make` shards it, or load its weights into another one"));
    }
};

}  // namespace sharding

namespace place {

/// Parameters are spread over the ranks of `Comm` and gathered unit by unit, the next one ahead; gradients are reduce-scattered.
/// Needs 1/n of parameters, gradients and optimizer state on each of n ranks, and one or two units gathered at a time; moves the
/// parameters twice and the gradients once a step (`Reshard = false`: parameters once, and the model stays gathered until its
/// backward).
template <comm::communicator Comm, bool Reshard = true>
struct Sharded {
    template <class Block>
    using impl = sharding::ShardedImpl<Comm, Reshard, Block>;

    /// Cuts a recorded model: of each unit a rank computes and keeps what lies in its stretch.
    template <class Values = module::NoValues>
    static void materialize(torch::nn::Module& root, module::Tape const& tape, Comm const& ranks, Values const& values = {}) {
        for (auto& [holder, name, parameters, leaf] : sharding::unit_tree<sharding::HoldsShard<Comm>>(root))
            holder->sharded_unit.place(name, parameters, ranks.rank(), ranks.size(), at::kCPU, [&](at::Tensor const& p, at::Tensor const& into, int64_t from, int64_t to) {
                if (values.fill(p, into, from, to)) return;
                module::Replay replay(tape);
                replay.run({p});
                into.copy_(replay.value(p));
            });
        module::materialize(root, tape, values);  // buffers
    }

    /// Of each unit a rank casts what it keeps.
    static void cast(torch::nn::Module& root, at::ScalarType dtype) {
        for (auto const& node : sharding::unit_tree<sharding::HoldsShard<Comm>>(root))
            if (node.holder != nullptr && node.holder->sharded_unit.placed()) node.holder->sharded_unit.cast(dtype);
    }
};

}  // namespace place
}  // namespace accelerate
