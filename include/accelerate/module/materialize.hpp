#pragma once

#include <torch/nn/module.h>

#include <accelerate/module/replay.hpp>

namespace accelerate::module {

/// Gives every meta tensor that `root` registers, or that anybody else still holds from the recording, its recorded value. In
/// place: handles, ties, views and `requires_grad` stay. What a placement has cut away before is not computed.
inline void materialize(torch::nn::Module const& root, Tape const& tape) {
    auto wanted = tape.held();
    auto const add = [&](at::Tensor const& t) {
        if (t.defined() && t.is_meta()) wanted.push_back(t);
    };
    for (auto const& p : root.parameters()) add(p);
    for (auto const& b : root.buffers()) add(b);
    Replay replay(tape);
    replay.run(wanted);
    for (auto const& t : wanted) {
        if (!t.is_meta()) continue;  // twice in the list
        if (auto const value = replay.value(t); value.defined()) t.unsafeGetTensorImpl()->shallow_copy_from(value.getIntrusivePtr());
    }
}

}  // namespace accelerate::module
