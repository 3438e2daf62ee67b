#pragma once

#include <torch/nn/module.h>

#include <accelerate/module/replay.hpp>
#include <unordered_set>

namespace accelerate::module {

/// Where recorded tensors take values from instead of computing them: here, from nowhere.
struct NoValues {
    static constexpr bool has(at::Tensor const&) { return false; }  ///< of a recorded tensor
    /// Gives `into`, which is like the recorded tensor, at least the elements [from, to) in the order of memory. False: it has none.
    static constexpr bool fill(at::Tensor const&, at::Tensor const&, int64_t, int64_t) { return false; }
};

/// Gives every meta tensor that `root` registers, or that anybody else still holds from the recording, its recorded value, or the one that
/// `values` has. In place: handles, ties, views and `requires_grad` stay. What a placement has cut away before is not computed, nor
/// what is only needed for values that are given.
template <class Values = NoValues>
void materialize(torch::nn::Module const& root, Tape const& tape, Values const& values = {}) {
    auto wanted = tape.held();
    auto const add = [&](at::Tensor const& t) {
        if (t.defined() && t.is_meta()) wanted.push_back(t);
    };
    for (auto const& p : root.parameters()) add(p);
    for (auto const& b : root.buffers()) add(b);
    Replay replay(tape);
    std::unordered_set<c10::TensorImpl*> given;
    for (auto const& t : wanted)
        if (values.has(t) && replay.give(t)) values.fill(t, replay.value(t), 0, t.numel()), given.insert(t.unsafeGetTensorImpl());
    replay.run(wanted);
    for (auto const& t : wanted) {
        if (!t.is_meta()) continue;  // twice in the list
        auto const value = replay.value(t);
        if (!value.defined()) continue;
        if (!given.contains(t.unsafeGetTensorImpl())) values.fill(t, value, 0, t.numel());
        t.unsafeGetTensorImpl()->shallow_copy_from(value.getIntrusivePtr());
    }
}

}  // namespace accelerate::module
