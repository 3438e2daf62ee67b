#pragma once

#include <accelerate/training.hpp>
#include <utility>
#include <vector>

namespace accelerate {

/// One micro-batch of the window of some models (Python's `with accelerator.accumulate(model)`): decides whether the window ends
/// here and holds the autocast scope for forward and loss. Lives until the end of the loop body; not copyable.
template <class Training>
class [[nodiscard("the window is this object: write auto window = accelerator.accumulate(model);")]] Accumulation {
public:
    template <class... Models>
    explicit Accumulation(Training& training, Models&... models) : training_(training.settled()), scope_(training.op_precision.get()) {
        check(!training_.in_window(), code::call_order, "accelerator.accumulate inside another accumulate; name both models in one call: accumulate(a, b)");
        training_.scoped = true;
        (training_.window.push_back(&models), ...);
        if (training_.rerun && training_.window.front()->window_closed()) training_.rerun->window_begins();
        auto const last = training_.options.sync_with_dataloader && training_.loops->at_last_batch();
        training_.sync_gradients = false;
        for (auto* model : training_.window) {
            if (model->window_closed()) model->begin_window();
            training_.sync_gradients |= model->window().next(training_.options.gradient_accumulation_steps, last);
        }
    }
    ~Accumulation() { training_.window.clear(); }
    Accumulation(Accumulation const&) = delete;
    Accumulation& operator=(Accumulation const&) = delete;

private:
    Training& training_;
    [[no_unique_address]] typename Training::autocast_scope scope_;
};

/// While alive, the windows of some models are open: their backwards add gradients and reduce nothing.
template <class Training>
class [[nodiscard("keep the scope alive: auto local = accelerator.no_sync(model);")]] NoSync {
public:
    using model_type = typename Training::model_type;

    explicit NoSync(std::vector<model_type*> models) {
        for (auto* model : models) before_.emplace_back(model, model->window().hold_open(true));
    }
    ~NoSync() {
        for (auto& [model, held] : before_) model->window().hold_open(held);
    }
    NoSync(NoSync const&) = delete;
    NoSync& operator=(NoSync const&) = delete;

private:
    std::vector<std::pair<model_type*, bool>> before_;
};

}  // namespace accelerate
