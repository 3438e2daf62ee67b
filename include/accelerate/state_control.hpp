#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <accelerate/checkpoints.hpp>
#include <accelerate/comm/reduction.hpp>
#include <accelerate/core/stop_signals.hpp>
#include <optional>

namespace accelerate {

/// Checkpoints: the part of Python's `Accelerator` that saves and restores a run. `Derived` has `training_`, to which this is a friend.
template <class Derived, class Communicator>
class StateControl {
public:
    /// Adds objects of yours to what `save_state` saves, as "custom_checkpoint_0" and so on (Python's `register_for_checkpointing`). They have
    /// `state_dict()` and `load_state_dict(state)`, the same on every rank, and outlive the accelerator. Infinities and NaN among their values come
    /// back. One that also has `check_state_dict(state)` is asked first, with all others, whether a state fits.
    template <class... Objects>
    void register_for_checkpointing(Objects&... objects) {
        static_assert((stateful<Objects> && ...), "register_for_checkpointing: give each object StateDict state_dict() const and void load_state_dict(acc::StateDict const&)");
        if constexpr ((stateful<Objects> && ...))
            (own().training_->components.push_back(detail::registered_component(concat("custom_checkpoint_", own().training_->registered++), objects)), ...);
    }

    /// Calls `hook(components, dir)` before every `save_state`, or `load_state` and `resume`, on every rank (Python's functions of these names).
    RemovableHandle register_save_state_pre_hook(CheckpointHook hook) { return checkpoints_.save_hooks.add(std::move(hook)); }
    RemovableHandle register_load_state_pre_hook(CheckpointHook hook) { return checkpoints_.load_hooks.add(std::move(hook)); }

    /// Writes everything that was prepared or registered, and the random streams, as the folder `dir`: models, optimizers, schedules,
    /// scaler, loaders, and the accumulation window with its gradients. Resuming from it goes on as if nothing had happened, bit for bit;
    /// between windows also on another number of ranks or under another sharding. `dir` appears whole or not at all. Collective.
    /// Errors: E_EXISTS, E_NO_SPACE, E_IO, the same on every rank; with `.asynchronous` what fails behind the copy is the error of the next
    /// save or of `wait_for_checkpoint`.
    void save_state(std::filesystem::path const& dir, save_state_options const& how = {}) { checkpoints_.save(training(), dir, how, Derived::policies()); }
    /// The same as `project_dir/checkpoints/checkpoint_<n>`, one more than the newest; the file `latest` there names it then, and, where
    /// `total_limit` says so, older ones go. Gives the folder.
    std::filesystem::path save_state(save_state_options const& how = {}) { return checkpoints_.save_next(training(), how, Derived::policies()); }
    /// Returns when the last asynchronous save is done, or has its error, the same on every rank. Collective.
    void wait_for_checkpoint() { checkpoints_.wait(training()); }

    /// Restores what `save_state` wrote. Every file's hash is checked first, unless `.verify = false`. Collective. Errors: E_CK_* (see `state/codes.hpp`), E_IO;
    /// nothing has been changed where the folder is not as it was written, or is of another run; objects that were registered come first, so that
    /// what one of them throws leaves all else as it was. Parameters and optimizer state are read into place: a disk that fails after the
    /// hashes were checked leaves them half read.
    void load_state(std::filesystem::path const& dir, load_state_options const& options = {}) { checkpoints_.load(training(), dir, options); }

    /// Restores the newest checkpoint under `project_dir` that is whole; says which, and why newer ones were not taken. False where there
    /// is none. Error E_CK_INCOMPLETE where there are some and none is whole. Collective.
    bool resume(load_state_options const& options = {}) { return checkpoints_.resume(training(), options); }

protected:
    /// From now on a signal that asks to stop, to whichever rank, makes all of them save at the same place and throw E_REQUEUE:
    /// `accelerate::run` ends the process with code 75. Places are between two bodies of the outermost loop over a prepared loader, behind an
    /// optimizer step or, with no window open, where the body gathered or reduced, as in an evaluation; one process alone needs neither, and
    /// looks also while workers make its next batch. So is, in a loop inside that body, an evaluation (gradients are off) behind the body's
    /// step. What an evaluation has not done then is not made up for.
    void watch_signals() {
        auto& t = *own().training_;
        if (!t.options.checkpoint_on_signal || t.options.project_dir.empty()) return;
        signals_.emplace();
        t.loops->set_between([this](data::Loops::Between here) {
            auto& training = *own().training_;
            bool const stepped = training.guard->has_stepped();
            if (here.outermost) training.guard->forget_step();
            // Of steps and of collectives all ranks make equally many; of bodies, as of an evaluation, they need not. A window that is open is
            // finished first: its gradients would tie the checkpoint to this number of ranks.
            bool const together = own().num_processes() == 1 || (here.met && training.sync_gradients) || (here.outermost && stepped);
            // Whether the batch of a loop around this one has been trained on shows in its step.
            bool const complete = here.outermost ? !training.in_window() || stepped : stepped && !at::GradMode::is_enabled();
            if (!together || !complete) return;
            auto any = at::scalar_tensor(StopSignals::requested(), at::kInt);
            if (own().num_processes() > 1) training.settled().comm.all_reduce(any, comm::Reduction::Max);
            auto const number = any.template item<int>();
            if (number == 0) return;
            auto const dir = save_state();
            throw Error(code::requeue, concat("signal ", number, " asked to stop; run it again to go on from ", dir));
        });
    }

private:
    auto& training() { return own().training_->settled(); }

    std::optional<StopSignals> signals_;
    detail::Checkpoints<Communicator> checkpoints_;

    Derived& own() { return static_cast<Derived&>(*this); }
};

}  // namespace accelerate
