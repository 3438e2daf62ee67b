#pragma once

#include <accelerate/module/placement.hpp>
#include <accelerate/sharding/flat_model.hpp>
#include <memory>

namespace accelerate::sharding {

/// A prepared model that talks to nobody: every rank trains on its own (or there is one).
class LocalModel : public FlatModel {
public:
    template <class Communicator>
    LocalModel(ModelParts parts, Communicator const&) : FlatModel(std::move(parts.parameters)) {
        adopt_whole();
    }

    void before_forward() {}
    void before_backward(at::Tensor const& /*loss*/) {}
    void after_backward() {
        repair_all();
        if (window_.closed()) stage_ = Stage::Reduced;
    }
    static constexpr bool owns_everything = true;
    double sum_over_ranks(double value) const { return value; }
    int64_t replicas() const { return 1; }
};

/// No sharding: parameters, gradients and optimizer state live whole on every rank and no gradient is exchanged. Costs nothing.
/// For one process; with several ranks each trains a model of its own.
struct None {
    static constexpr char const* name = "None";
    template <class Device>
    using placement = place::Resident;
    template <class Device>
    using model = LocalModel;
};

}  // namespace accelerate::sharding
