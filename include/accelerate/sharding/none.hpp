#pragma once

#include <accelerate/core/reductions.hpp>
#include <accelerate/module/placement.hpp>
#include <accelerate/sharding/flat_model.hpp>
#include <accelerate/sharding/ready_hook.hpp>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

namespace accelerate::sharding {

/// A prepared model that talks to nobody: every rank trains on its own (or there is one).
///
/// Once somebody has asked for the norm of the gradients, squares are added up as backward completes each of them, while it is in the
/// cache: clipping then reads no gradient.
class LocalModel : public FlatModel {
public:
    template <class Communicator>
    LocalModel(ModelParts parts, Communicator const&) : FlatModel(std::move(parts.parameters)) {
        adopt_whole();
    }
    ~LocalModel() {
        if (measures_) for_each_slot([&](size_t f, size_t s) { ReadyHook<LocalModel>::remove(flats_[f].slots[s].parameter, this); });
    }

    void before_forward() {}
    void before_backward(at::Tensor const& /*loss*/) {
        squares_.assign(measures_ && window_.closed() ? parameters_.size() : 0, unknown);
    }
    void after_backward() {
        repair_all();
        if (!window_.closed()) return;
        stage_ = Stage::Reduced;
        if (!squares_.empty()) measured_ = writes();
    }

    /// The sum of the squares of all gradients, where it is known without reading them: from the second time it is asked for, on the
    /// CPU, in fp32, and as long as nobody has written into them since backward. The bits are the same for the same gradients.
    std::optional<double> sum_of_squares() {
        if (!measures_) {
            measures_ = true;
            for_each_slot([&](size_t f, size_t s) { ReadyHook<LocalModel>::install(flats_[f].slots[s].parameter, this, f, s); });
            return {};
        }
        return known_squares();
    }
    /// The same where it has been asked for before.
    std::optional<double> known_squares() const {
        if (squares_.empty() || measured_ != writes()) return {};
        double sum = 0;
        for (auto square : squares_) sum += square;
        if (!std::isfinite(sum)) return {};  // a gradient that backward did not reach, or one that is not finite
        return sum;
    }

    /// Called by the hook of each parameter when its gradient of this backward is complete.
    void ready(size_t flat, size_t slot) {
        if (squares_.empty() || !aliased(flat, slot)) return;
        auto const& place = flats_[flat].slots[slot];
        auto const& gradients = flats_[flat].gradients;
        if (!gradients.is_cpu() || gradients.scalar_type() != at::kFloat) return;
        squares_[static_cast<size_t>(place.registration)] = kernel::sum_of_squares(gradients.const_data_ptr<float>() + place.begin, place.numel);
    }

    static constexpr bool owns_everything = true;
    double sum_over_ranks(double value) const { return value; }
    int64_t replicas() const { return 1; }

private:
    static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

    template <class F>
    void for_each_slot(F&& f) {
        for (size_t i = 0; i < flats_.size(); ++i)
            for (size_t s = 0; s < flats_[i].slots.size(); ++s) f(i, s);
    }

    bool measures_ = false;
    std::vector<double> squares_;      ///< of each parameter in this backward; none where nobody asks
    uint64_t measured_ = 0;            ///< writes into the gradients after which they were those
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
