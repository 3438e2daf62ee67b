#pragma once

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>

#include <accelerate/precision/autocast.hpp>
#include <accelerate/training.hpp>
#include <algorithm>
#include <optional>
#include <utility>

namespace accelerate {

/// A loss that is a sum over `weight` things (tokens, valid samples): `backward(weighted(sum, count))` divides the gradients of a
/// window by its weight over all micro-batches and ranks, which is the right mean where micro-batches differ in size. Of a window's losses
/// all are weighted or none, and the window before has been stepped or cleared (E_CALL_ORDER).
struct weighted {
    at::Tensor sum;
    double weight = 0;

    weighted(at::Tensor loss_sum, double count) : sum(std::move(loss_sum)), weight(count) {}
    weighted(at::Tensor loss_sum, at::Tensor const& count) : sum(std::move(loss_sum)), weight(count.item<double>()) {}
};

/// How `accelerator.backward` goes through the graph.
struct backward_options {
    bool retain_graph = false;  ///< what the forward has saved stays, for another backward through it
};

namespace detail {

/// What turns the sums of a window, averaged over the ranks, into the mean by weight. Collective.
template <class Model>
double mean_over_weight(Model const& model) {
    auto const total = model.sum_over_ranks(model.weight);
    check(total > 0, code::data, "accelerator.backward: the losses of this window weigh ", total, " over all ranks; the weight must be positive");
    return static_cast<double>(model.replicas()) / total;
}

/// Multiplies the gradients of a window, which must be all there are.
template <class Model>
void scale_window(Model& model, double factor) {
    check(factor == 1 || !model.left_over, code::call_order, "accelerator.backward: gradients of an earlier window still wait for a step, and what makes this window's a mean would divide them once more; "
          "call optimizer.step or optimizer.zero_grad where a window has ended");
    optim::scale_gradients(model, factor);
}

/// After the last backward of a window: turns sums into the mean that the user asked for.
template <class Training, class Model>
void finish_window(Training const& training, Model& model, bool scaled_before) {
    auto const steps = training.options.gradient_accumulation_steps;
    auto const had = model.window().micro_batches();
    if (model.weighted > 0) {
        check(model.weighted == model.losses, code::call_order, "accelerator.backward: ", model.weighted, " of the ", model.losses,
              " losses of this window were weighted(sum, weight); weight all or none");
        if (scaled_before) return;
        model.finished = mean_over_weight(model);
    } else if (training.options.short_window == ShortWindow::Rescale && had > 0) {
        model.finished = static_cast<double>(steps) / static_cast<double>(had);
    }
    scale_window(model, model.finished);
}

/// Takes that back, for a micro-batch that has another loss.
template <class Model>
void resume_window(Model& model) {
    scale_window(model, 1 / std::exchange(model.finished, 1));
}

}  // namespace detail

/// The backward of `Accelerator::backward`: outside any autocast, over the models that `Training::armed` names.
template <class Training>
void run_backward(Training& training, at::Tensor loss, std::optional<double> weight, backward_options const& how) {
    training.settled();
    [[maybe_unused]] typename Training::autocast_pause const pause;
    check(loss.defined(), code::data, "accelerator.backward: the loss must have one element, found an undefined tensor");
    check(loss.numel() == 1, code::data, "accelerator.backward: the loss must have one element, found shape ", loss.sizes());
    check(loss.requires_grad(), code::data, "accelerator.backward: the loss depends on no parameter that requires gradients; was it detached, made under torch::NoGradGuard, or are all parameters frozen?");
    auto const steps = training.options.gradient_accumulation_steps;
    if constexpr (Training::autocasts) training.mention_bare_forward();
    auto const models = training.armed(loss);
    auto const passed = training.passed(loss);
    if (training.loops->at_stand_in()) {  // this rank has run out of data and only keeps step
        loss = loss * 0;
        if (weight) weight = 0;
    }
    for (auto* model : models) {
        model->expect_backward();
        detail::resume_window(*model);
        model->losses += model->reached ? 1 : 0;
    }
    bool scaled_before = false;
    if (weight) {
        for (auto* model : models)
            if (model->reached) model->weight += *weight, ++model->weighted;
        // Where a window begins and ends here its weight is known now: scaling the loss saves a pass over the gradients, and leaves alone what
        // earlier windows have left in them.
        scaled_before = std::ranges::all_of(models, [](auto const* model) { return model->reached && model->window_closed() && model->weighted == 1; });
        if (scaled_before) {
            auto const factor = detail::mean_over_weight(*models.front());
            for (auto* model : models) model->finished = factor;
            loss = loss * factor;
        }
    } else if (steps > 1) {
        loss = loss / steps;
    }
    if constexpr (Training::scales) {
        auto const scale = training.guard->scale_loss(models);
        loss = (loss.scalar_type() == at::kDouble ? loss : loss.to(at::kFloat)) * scale;  // a loss in fp16 would overflow
    }
    for (auto* model : models) {
        model->forget_verdict();
        model->before_backward(model->reached ? loss : at::Tensor());
    }
    for (auto* model : passed) model->before_backward(loss);
    torch::autograd::backward({loss}, {}, how.retain_graph);
    for (auto* model : passed) model->let_pass();
    for (auto* model : models) {
        model->after_backward();
        if (model->reached) model->forwarded = false;
        model->unfinished = !model->window_closed();
        if (model->unfinished) {
            // What an earlier backward had completed is complete no more: on several ranks it now differs from one to the other.
            if (sharding::waits_for_step(model->stage())) model->restore_stage(sharding::Stage::Accumulating);
            continue;
        }
        detail::finish_window(training, *model, scaled_before);
        if (!training.in_window()) model->begin_window();
    }
}

}  // namespace accelerate
