#pragma once

#include <accelerate/module/placement.hpp>
#include <accelerate/sharding/flat_model.hpp>
#include <limits>
#include <memory>

namespace accelerate::sharding {

/// A prepared model that talks to nobody: every rank trains on its own (or there is one).
class LocalModel : public FlatModel {
public:
    template <class Communicator>
    LocalModel(ModelParts parts, Communicator const&) : FlatModel(std::move(parts.parameters)) {
        constexpr auto whole = std::numeric_limits<int64_t>::max();
        adopt(plan_layout(parameters_, registration_order(), whole, whole),
              [](int64_t, int64_t numel, at::TensorOptions const& options) { return at::zeros({numel}, options); });
        for (size_t f = 0; f < flats_.size(); ++f) pieces_.push_back({static_cast<int64_t>(f), 0, flats_[f].gradients.numel(), flats_[f].gradients});
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
