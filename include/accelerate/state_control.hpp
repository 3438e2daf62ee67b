#pragma once

#include <ATen/ops/scalar_tensor.h>
#include <torch/version.h>

#include <accelerate/checkpointing.hpp>
#include <accelerate/core/stop_signals.hpp>
#include <accelerate/core/version.hpp>
#include <accelerate/state/inspect.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <sstream>

namespace accelerate {

/// Checkpoints: the part of Python's `Accelerator` that saves and restores a run. `Derived` has `training_`, to which this is a friend.
template <class Derived>
class StateControl {
public:
    /// Adds objects of yours to what `save_state` saves, as "custom_checkpoint_0" and so on (Python's `register_for_checkpointing`). They have
    /// `state_dict()` and `load_state_dict(state)`, the same on every rank, and outlive the accelerator.
    template <class... Objects>
    void register_for_checkpointing(Objects&... objects) {
        static_assert((stateful<Objects> && ...), "register_for_checkpointing: give each object StateDict state_dict() const and void load_state_dict(acc::StateDict const&)");
        if constexpr ((stateful<Objects> && ...))
            (own().training_->components.push_back({concat("custom_checkpoint_", own().training_->registered++), state::Whose::All, [&objects] { return StateDict(objects.state_dict()); },
                                              [&objects](StateDict const& s) { objects.load_state_dict(s); }}), ...);
    }

    /// Writes everything that was prepared or registered, and the random streams, as the folder `dir`: models, optimizers, schedules,
    /// scaler, loaders, and the accumulation window with its gradients. Resuming from it goes on as if nothing had happened, bit for bit;
    /// between windows also on another number of ranks or under another sharding. `dir` appears whole or not at all. Collective.
    /// Errors: E_EXISTS, E_NO_SPACE, E_IO, the same on every rank.
    void save_state(std::filesystem::path const& dir) {
        auto const begin = std::chrono::steady_clock::now();
        auto& t = own().training_->settled();
        auto const bytes = state::write_checkpoint(t.comm, dir, all_components(), {{"policies", Derived::policies()}, {"ranks", own().num_processes()}, {"accelerate", concat(version.major, ".", version.minor, ".", version.patch)}, {"torch", TORCH_VERSION}});
        log::info("save_state: ", dir, ", ", bytes, " bytes, ", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), " s");
    }
    /// The same as `project_dir/checkpoints/checkpoint_<n>`, one more than the newest; then, where `total_limit` says so, older ones go.
    /// Gives the folder.
    std::filesystem::path save_state() {
        auto const folder = checkpoints();
        auto& comm = own().training_->settled().comm;
        std::string name;
        state::together(comm, [&] {
            if (!own().is_main_process()) return;
            auto const there = detail::numbered_checkpoints(folder);
            name = concat("checkpoint_", there.empty() ? 0 : there.front().first + 1);
        });
        comm.broadcast_bytes(name, 0);
        save_state(folder / name);
        if (own().is_main_process() && own().training_->options.total_limit > 0) retire(folder);
        return folder / name;
    }

    /// Restores what `save_state` wrote. Every file's hash is checked first. Collective. Errors: E_CK_* (see `state/codes.hpp`), E_IO;
    /// nothing has been changed where the folder cannot be read.
    void load_state(std::filesystem::path const& dir) {
        auto& comm = own().training_->settled().comm;
        detail::load_components(comm, *detail::open_checkpoint(comm, dir), all_components());
    }

    /// Restores the newest checkpoint under `project_dir` that is whole; says which, and why newer ones were not taken. False where there
    /// is none. Error E_CK_INCOMPLETE where there are some and none is whole. Collective.
    bool resume() {
        auto& comm = own().training_->settled().comm;
        auto const folder = checkpoints();
        std::string numbers;
        state::together(comm, [&] {
            if (!own().is_main_process()) return;
            for (auto const& checkpoint : detail::numbered_checkpoints(folder)) numbers += concat(checkpoint.first, " ");
        });
        comm.broadcast_bytes(numbers, 0);
        std::istringstream newest_first(numbers);
        int64_t passed_over = 0;
        for (int64_t number; newest_first >> number; ++passed_over) {
            auto const dir = folder / concat("checkpoint_", number);
            std::unique_ptr<state::CheckpointReader> reader;
            try {
                reader = detail::open_checkpoint(comm, dir);
            } catch (Error const& e) {
                if (e.exit_code() != code::data.exit && e.exit_code() != code::io.exit) throw;  // a peer is gone
                log::warning("resume: ", dir, " is passed over: ", e.what());
                continue;
            }
            detail::load_components(comm, *reader, all_components());
            log::info("resume: ", dir);
            return true;
        }
        check(passed_over == 0, code::ck_incomplete, "resume: none of the ", passed_over, " checkpoints in ", folder, " is whole");
        return false;
    }

protected:
    /// From now on a signal that asks to stop, to whichever rank, makes all of them save behind the same optimizer step, between two bodies
    /// of the outermost loop over a prepared loader, and throw E_REQUEUE: `accelerate::run` ends the process with code 75.
    void watch_signals() {
        auto& t = *own().training_;
        if (!t.options.checkpoint_on_signal || t.options.project_dir.empty()) return;
        signals_.emplace();
        t.loops->set_between([this] {
            auto& training = *own().training_;
            if (!training.guard->take_stepped() || training.in_window()) return;
            auto any = at::scalar_tensor(StopSignals::requested(), at::kInt);
            if (own().num_processes() > 1) training.settled().comm.all_reduce(any, comm::Reduction::Max);
            auto const number = any.template item<int>();
            if (number == 0) return;
            auto const dir = save_state();
            throw Error(code::requeue, concat("signal ", number, " asked to stop; run it again to go on from ", dir));
        });
    }

private:
    /// Removes what is older than the limit; that it cannot is no failure of a save that has been made.
    void retire(std::filesystem::path const& folder) const try {
        auto const there = detail::numbered_checkpoints(folder);
        for (auto i = static_cast<size_t>(own().training_->options.total_limit); i < there.size(); ++i) std::filesystem::remove_all(there[i].second);
    } catch (std::exception const& e) {
        log::warning("save_state: an old checkpoint stays: ", e.what());
    }

    std::filesystem::path checkpoints() const {
        check(!own().project_dir().empty(), code::config, "save_state and resume need a place: give the accelerator .project_dir, or save_state and load_state a folder");
        return own().project_dir() / "checkpoints";
    }

    std::vector<state::Component> all_components() const {
        auto all = own().training_->components;
        std::erase_if(all, [](auto const& c) { return c.gone && c.gone(); });
        if constexpr (std::remove_cvref_t<decltype(*own().training_)>::scales) {
            auto guard = own().training_->guard;
            all.push_back({"scaler", own().shared(), [guard] { return guard->scaler().state_dict(); }, [guard](StateDict const& s) { guard->scaler().load_state_dict(s); }});
        }
        all.push_back(detail::random_component(Derived::device_type::type));
        return all;
    }

    std::optional<StopSignals> signals_;

    Derived& own() { return static_cast<Derived&>(*this); }
    Derived const& own() const { return static_cast<Derived const&>(*this); }
};

}  // namespace accelerate
