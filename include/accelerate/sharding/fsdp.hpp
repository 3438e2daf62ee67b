#pragma once

#include <ATen/ops/scalar_tensor.h>

#include <accelerate/sharding/flat_model.hpp>
#include <accelerate/sharding/replicate.hpp>
#include <accelerate/sharding/sharded.hpp>
#include <algorithm>
#include <exception>
#include <unordered_map>
#include <utility>
#include <vector>

namespace accelerate {

/// Options of `sharding::Fsdp`; names are those of PyTorch's FSDP.
struct fsdp {
    bool reshard_after_forward = true;  ///< false: units stay gathered from their forward to their backward: one gather less a step
};

namespace sharding {

/// A model whose units are spread over the ranks of a communicator: parameters, gradients and optimizer state. What is no unit (a
/// model that knows nothing of units, or loose parameters) is held as one more, the root.
template <comm::communicator Comm, fsdp O>
class FsdpModel : public FlatModel {
    using Unit = ShardedUnit<Comm>;

public:
    FsdpModel(ModelParts parts, Comm const& communicator) : FlatModel(std::move(parts.parameters)), module_(std::move(parts.module)), engine_(std::make_shared<ShardEngine<Comm>>(communicator)) {
        auto& comm = engine_->comm;
        if (comm.size() > 1) check_replicas(parameters_, parts.buffers, comm);
        auto const nodes = unit_tree<HoldsShard<Comm>>(*module_);
        for (auto const& node : nodes) {
            auto& unit = node.holder != nullptr ? node.holder->sharded_unit : own_root_;
            engine_->units.push_back(&unit);
            if (unit.placed()) {
                unit.place_on(parts.device);
                continue;
            }
            for (auto const& [name, p] : node.parameters) comm.broadcast(p.detach(), 0);
            unit.place(node.name, node.parameters, comm.rank(), comm.size(), parts.device, [](at::Tensor const& p, at::Tensor const& into, int64_t, int64_t) { into.copy_(p.detach()); });
        }
        auto const& units = engine_->units;
        engine_->touched.resize(parameters_.size());
        for (size_t i = 0; i < units.size(); ++i) {
            units[i]->bind(engine_, {i > 1 ? units[i - 1] : nullptr, i + 1 < units.size() ? units[i + 1] : nullptr, i == 0, nodes[i].leaf}, [&](at::Tensor const& p) { return registration_of(p); });
            add_flat(*units[i]);
        }
        for (auto& [name, b] : parts.buffers) {
            at::NoGradGuard no_grad;
            comm.broadcast(b, 0);
        }
        ++layout_;
    }
    ~FsdpModel() {
        for (auto* unit : engine_->units) unit->unbind();
    }

    void before_forward() {
        root().acquire();
        if (root().next() != nullptr) root().next()->prefetch();
    }
    void before_backward(at::Tensor const&) {
        engine_->reduced = 0;
        engine_->measures = window_.closed() && !flats_.empty() && flats_.front().gradients.is_cpu();
        forget_squares();
        root().before_backward();
    }
    void after_backward() {
        Unit::submit_reductions(*engine_, true);
        engine_->leaving = nullptr;
        for (auto* unit : engine_->units) unit->finish();
        for (size_t i = 0; i < touched_.size(); ++i) touched_[i] |= std::exchange(engine_->touched[i], uint8_t{0});
        if (!window_.closed()) return;
        double squares = 0;
        for (auto const* unit : engine_->units)
            if (unit->trains() && engine_->measures) squares += unit->squares();
        squares = agree(squares, [&](at::Tensor const& t) { fold(t, comm::Reduction::Sum); });
        stage_ = Stage::Reduced;
        if (engine_->measures) set_squares(squares);
    }

    std::vector<Slot const*> unreached() const { return stage_ == Stage::Accumulating ? untouched() : reached_by_none(); }

    void after_step() { release_units(); }  // what an evaluation left gathered is old now

    static constexpr bool owns_everything = false;
    /// Behind what is under way: a forward has prefetched a unit that nobody may have called.
    void fold(at::Tensor const& partial, comm::Reduction reduction) const {
        engine_->worker.submit([&] { engine_->comm.all_reduce(partial, reduction); }).wait();
    }
    double sum_over_ranks(double value) const {
        auto t = at::scalar_tensor(value, at::kDouble);
        fold(t, comm::Reduction::Sum);
        return t.template item<double>();
    }
    int64_t replicas() const { return engine_->comm.size(); }

    /// Calls `f(i)` for each of the model's `tensors` (parameters and buffers, also views of them) in their order, when its values are on this
    /// rank. Units are gathered one after another, the next one ahead, so that no more than two are there at a time. Collective: the same
    /// tensors on every rank. What is written into parameters is lost.
    template <class F>
    void for_each_whole(std::vector<at::Tensor> const& tensors, F&& f) {
        std::unordered_map<c10::StorageImpl const*, Unit*> unit_of;
        for (auto* unit : engine_->units)
            for (auto const* storage : unit->storages()) unit_of.emplace(storage, unit);
        std::vector<Unit*> turns;  // nullptr: a buffer
        for (auto const& t : tensors) {
            auto const found = unit_of.find(t.has_storage() ? t.storage().unsafeGetStorageImpl() : nullptr);
            turns.push_back(found == unit_of.end() ? nullptr : found->second);
        }
        struct Released {
            FsdpModel& model;
            ~Released() {
                try {
                    model.release_units();
                } catch (...) {  // a gather is still under way only where another one has failed, whose error is heard of
                }
            }
        } const at_the_end{*this};
        Unit* here = nullptr;
        for (size_t i = 0; i < tensors.size(); ++i) {
            if (auto* const unit = turns[i]; unit != nullptr && unit != here) {
                if (here != nullptr) here->release();
                here = unit;
                here->acquire();
                auto const next = std::find_if(turns.begin() + static_cast<std::ptrdiff_t>(i), turns.end(), [&](Unit const* other) { return other != nullptr && other != here; });
                if (next != turns.end()) (*next)->prefetch();
            }
            if (turns[i] != nullptr) here->lend(tensors[i]);
            f(i);
        }
    }

    ShardEngine<Comm> const& engine() const { return *engine_; }

    /// Calls `f(slot, part, from)` for each parameter of which this rank keeps some, trainable or not: `part` is its elements from `from`
    /// on, in memory order, where they are kept.
    template <class F>
    void for_each_part(F&& f) const {
        for (auto const* unit : engine_->units)
            for (auto const& slot : unit->slots()) {
                auto const [from, to] = slot.within(unit->begin(), unit->begin() + unit->shard().numel());
                if (from < to || slot.numel == 0) f(slot, unit->shard().narrow(0, std::max<int64_t>(from - unit->begin(), 0), std::max<int64_t>(to - from, 0)), from - slot.begin);
            }
    }

private:
    Unit& root() { return *engine_->units.front(); }

    /// All parameters leave; throws the first error behind the last unit.
    void release_units() {
        std::exception_ptr failure;
        for (auto* unit : engine_->units) try {
                unit->release();
            } catch (...) {
                if (!failure) failure = std::current_exception();
            }
        if (failure) std::rethrow_exception(failure);
    }

    /// The optimizer's view of a unit: this rank's stretch, in which slots may begin before it and end behind it.
    void add_flat(Unit& unit) {
        if (!unit.trains()) return;
        Flat flat{unit.shard(), unit.gradient(), {}};
        for (auto slot : unit.slots()) {
            if (!slot.parameter.requires_grad()) continue;
            slot.begin -= unit.begin();
            slot.registration = registration_of(slot.parameter);
            flat.slots.push_back(std::move(slot));
        }
        // Neighbouring trainable slots are one piece; frozen ones in between are none.
        auto const frozen_between = [&](int64_t from, int64_t to) {
            return std::ranges::any_of(unit.slots(), [&](Slot const& s) { return !s.parameter.requires_grad() && s.begin - unit.begin() >= from && s.begin - unit.begin() < to; });
        };
        auto const add_piece = [&](int64_t from, int64_t to) {
            from = std::clamp<int64_t>(from, 0, flat.parameters.numel()), to = std::clamp<int64_t>(to, 0, flat.parameters.numel());
            if (from < to) pieces_.push_back({static_cast<int64_t>(flats_.size()), from, to, flat.gradients.narrow(0, from, to - from)});
        };
        auto from = flat.slots.front().begin, to = from;
        for (auto const& slot : flat.slots) {
            if (frozen_between(to, slot.begin)) add_piece(from, to), from = slot.begin;
            to = slot.end();
        }
        add_piece(from, to);
        flats_.push_back(std::move(flat));
    }
    int64_t registration_of(at::Tensor const& parameter) const {
        auto const found = std::find_if(parameters_.begin(), parameters_.end(), [&](auto const& named) { return named.second.is_same(parameter); });
        return found - parameters_.begin();
    }

    std::shared_ptr<torch::nn::Module> module_;
    Unit own_root_;
    std::shared_ptr<ShardEngine<Comm>> engine_;
};

/// Fully sharded data parallel (Zhao et al., VLDB 2023; PyTorch's FSDP2): each rank keeps 1/n of parameters, gradients and
/// optimizer state and gathers one unit at a time. Models are built with `accelerator.make<Model>` over `Run::strategy`; one that
/// knows nothing of units is accepted and held as a single unit, gathered whole for each step.
template <fsdp O = fsdp{}>
struct Fsdp {
    static constexpr char const* name = "Fsdp";
    static constexpr char const* distributed_type = "FSDP";
    static constexpr fsdp options = O;
    template <class Device>
    using placement = place::Sharded<typename Device::communicator, O.reshard_after_forward>;
    template <class Device>
    using model = FsdpModel<typename Device::communicator, O>;
};

}  // namespace sharding
}  // namespace accelerate
