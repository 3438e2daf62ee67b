#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/state_dict.hpp>
#include <accelerate/precision/magnitude.hpp>
#include <algorithm>
#include <concepts>
#include <cstdint>
#include <string>

namespace accelerate {

/// How `recipe::Delayed` makes one magnitude of its history (TransformerEngine's `amax_compute_algo`).
enum class AmaxCompute {
    MostRecent,  ///< that of the last step
    Max,         ///< the largest of the history
};

/// Options of `recipe::Delayed`; names and defaults are TransformerEngine's under Accelerate.
struct delayed {
    AmaxCompute amax_compute_algo = AmaxCompute::MostRecent;
    int64_t interval = 1;  ///< steps between two changes of the scales
};

namespace precision {

/// The largest magnitudes that an fp8 layer met in its last `length` optimizer steps, of activations and of gradients: what delayed
/// scaling goes by (TransformerEngine's `DelayedScaling`). The magnitudes of a window's micro-batches count as one, their largest, and
/// so do those of the ranks, which who steps it makes of `now`. What is not finite is left out. A few numbers on the device of the layer; no call waits for it.
class AmaxHistory {
public:
    enum Stream : int64_t { Activations, Gradients };
    static constexpr int64_t streams = 2;

    AmaxHistory(int64_t length, delayed const& options) : length_(length), options_(options) {}
    AmaxHistory(AmaxHistory const& other) : AmaxHistory(other.length_, other.options_) { *this = other; }
    /// Copies of the tensors: two layers never share a history.
    AmaxHistory& operator=(AmaxHistory const& other) {
        auto const copied = [](at::Tensor const& t) { return t.defined() ? t.clone() : t; };
        length_ = other.length_, options_ = other.options_, steps_ = other.steps_;
        past_ = copied(other.past_), amax_ = copied(other.amax_), now_ = copied(other.now_);
        return *this;
    }

    /// The magnitude to scale `a` by: that of the steps before; of `a` itself where there was none, and where it is not finite, so that
    /// an infinity does not become a large number. Notes the magnitude of `a`.
    at::Tensor amax(at::Tensor const& a, Stream stream) {
        place_on(a.device());
        auto const own = magnitude(a);
        auto noted = now_[stream];
        auto const finite = own.isfinite();
        noted.copy_(at::maximum(noted, at::where(finite, own, at::zeros_like(own))));
        return at::where(finite.logical_and(amax_[stream] > 0), amax_[stream], own);
    }

    /// The magnitudes of this step so far, fp32 [streams], to be made those of all ranks before `step`.
    at::Tensor& now(at::Device device) {
        place_on(device);
        return now_;
    }

    /// After an optimizer step: its magnitudes become history, and every `interval` steps those to scale by.
    void step() {
        if (!now_.defined()) return;  // has met nothing
        past_.select(1, steps_++ % length_).copy_(now_);
        if (steps_ % options_.interval == 0) {
            auto const next = options_.amax_compute_algo == AmaxCompute::Max ? past_.amax({1}) : now_;
            amax_.copy_(at::where(next > 0, next, amax_));
        }
        now_.zero_();
    }

    /// "amax_history" [streams, length] and "amax" [streams], fp32, in `tensors`, and "steps" in `values`, all behind `prefix`.
    template <std::same_as<StateDict> State>
    void save(State& state, std::string const& prefix) const {
        state.values[prefix + "steps"] = steps_;
        if (!now_.defined()) return;
        state.tensors.insert(prefix + "amax_history", past_.clone());
        state.tensors.insert(prefix + "amax", amax_.clone());
    }
    /// As saved. Another length than the saved history's keeps its newest steps. Nothing saved: as if it had met nothing.
    template <std::same_as<StateDict> State>
    void load(State const& state, std::string const& prefix) {
        *this = AmaxHistory(length_, options_);
        if (!state.tensors.contains(prefix + "amax_history")) return;
        auto const& past = state.tensors.at(prefix + "amax_history");
        auto const& amax = state.tensors.at(prefix + "amax");
        check(past.dim() == 2 && past.size(0) == streams && past.size(1) >= 1 && amax.dim() == 1 && amax.size(0) == streams, code::data, "fp8 state: \"", prefix,
              "amax_history\" and \"", prefix, "amax\" should be [", streams, ", steps] and [", streams, "], found ", past.sizes(), " and ", amax.sizes());
        auto const steps = state.template value<int64_t>(prefix + "steps", "fp8 state");
        check(steps >= 0, code::data, "fp8 state: \"", prefix, "steps\" is ", steps);
        place_on(past.device());
        auto const saved = past.size(1), kept = std::min({saved, length_, steps});
        for (int64_t back = 1; back <= kept; ++back) past_.select(1, (steps - back) % length_).copy_(past.select(1, (steps - back) % saved));
        amax_.copy_(amax);
        steps_ = steps;
    }

private:
    void place_on(at::Device device) {
        if (now_.defined() && now_.device() == device) return;
        auto const options = at::TensorOptions().dtype(at::kFloat).device(device);
        auto const moved = [&](at::Tensor& t, at::IntArrayRef sizes) { t = t.defined() ? t.to(device) : at::zeros(sizes, options); };
        moved(past_, {streams, length_}), moved(amax_, {streams}), moved(now_, {streams});
    }

    int64_t length_;
    delayed options_;
    int64_t steps_ = 0;
    at::Tensor past_, amax_, now_;
};

}  // namespace precision
}  // namespace accelerate
