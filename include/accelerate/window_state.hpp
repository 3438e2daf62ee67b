#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/sharding/window.hpp>
#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <optional>
#include <set>
#include <string>
#include <utility>

namespace accelerate::detail {

/// Where a model is in its accumulation window: what a checkpoint keeps of that beside the gradients.
struct WindowState {
    int64_t position = 0, micro_batches = 0;
    bool closed = true;
    sharding::Stage stage = {};
    double weight = 0;
    int64_t weighted = 0, losses = 0;
    double finished = 1, loss_scale = 0, gradient_scale = 1;
    bool gradients = false;              ///< are saved with it
    int64_t ranks = 1, steps = 1;        ///< that share the model; micro-batches of a whole window
    std::set<std::string> unreached = {};  ///< parameters that no loss has reached since the last step
    std::optional<double> last_norm = {};  ///< what clipping returns inside a window
    bool left_over = false;                ///< gradients of earlier windows are among them
    std::optional<bool> finite = {}, allowed = {};  ///< they are; a step may use them: where somebody has looked, or decided

    /// Whether micro-batches have left gradients that others will add to, or a step will use. Those of `no_sync` are there in a closed window.
    bool in_use() const { return !closed || losses > 0 || sharding::waits_for_step(stage); }

    template <std::same_as<StateDict> State>  // a template: who saves nothing does not compile JSON
    State state_dict(TensorMap tensors) const {
        State s;
        s.tensors = std::move(tensors);
        s.values = {{"position", position}, {"micro_batches", micro_batches}, {"closed", closed}, {"stage", static_cast<int>(stage)}, {"weight", weight},
                    {"weighted", weighted}, {"losses", losses}, {"finished", finished}, {"loss_scale", loss_scale}, {"gradient_scale", gradient_scale},
                    {"gradients", gradients}, {"ranks", ranks}, {"steps", steps}};
        if (!unreached.empty()) s.values["unreached"] = unreached;
        if (last_norm) s.values["last_norm"] = *last_norm;
        if (left_over) s.values["left_over"] = true;
        if (finite) s.values["finite"] = *finite;
        if (allowed) s.values["allowed"] = *allowed;
        return s;
    }

    /// Error E_DATA for what is missing or of another type; E_CK_ACCUM for what cannot be. `who`: the component.
    template <std::same_as<StateDict> State>
    static WindowState of(State const& s, std::string const& who) {
        auto const integer = [&](char const* key) { return s.template value<int64_t>(key, who); };
        auto const real = [&](char const* key) { return s.template value<double>(key, who); };
        auto const truth = [&](char const* key) { return s.template value<bool>(key, who); };
        auto const stage = integer("stage");
        WindowState w{.position = integer("position"), .micro_batches = integer("micro_batches"), .closed = truth("closed"), .stage = static_cast<sharding::Stage>(stage), .weight = real("weight"),
                      .weighted = integer("weighted"), .loss_scale = real("loss_scale"), .gradient_scale = real("gradient_scale"), .gradients = truth("gradients"), .ranks = integer("ranks"), .steps = integer("steps")};
        // Older checkpoints do not say: a micro-batch had one loss.
        w.losses = s.values.contains("losses") ? integer("losses") : std::max(w.weighted, w.micro_batches);
        if (s.values.contains("finished")) w.finished = real("finished");
        if (s.values.contains("unreached")) w.unreached = s.template value<std::set<std::string>>("unreached", who);
        if (s.values.contains("last_norm")) w.last_norm = real("last_norm");
        if (s.values.contains("left_over")) w.left_over = truth("left_over");
        if (s.values.contains("finite")) w.finite = truth("finite");
        if (s.values.contains("allowed")) w.allowed = truth("allowed");
        check(stage >= 0 && stage <= static_cast<int64_t>(sharding::Stage::Stepped) && w.position >= 0 && w.micro_batches >= 0 && w.loss_scale >= 0 && std::isfinite(w.gradient_scale) &&
                  w.weighted >= 0 && w.losses >= w.weighted && w.finished > 0,
              code::ck_accum, "what cannot be: ", s.values.dump());
        return w;
    }

    /// Error E_CK_ACCUM where a job of so many ranks and micro-batches a window cannot go on from here with that model.
    void check_fits(std::string const& model, int64_t ranks_here, int64_t steps_here) const {
        check(!gradients || ranks == ranks_here, code::ck_accum, "load_state: the checkpoint was saved by ", ranks, " ranks inside an accumulation window of \"", model,
              "\"; it can be gone on with on as many, here are ", ranks_here, ". Save at a window's end to change that");
        check(closed || (micro_batches < steps_here && steps == steps_here), code::ck_accum, "the checkpoint is inside a window of gradient_accumulation_steps ", steps, ", behind its micro-batch ", micro_batches,
              "; here they are ", steps_here, ". Save at a window's end to change that");
    }
};

}  // namespace accelerate::detail
