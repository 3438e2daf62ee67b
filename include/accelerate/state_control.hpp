#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <accelerate/checkpointing.hpp>
#include <accelerate/core/stop_signals.hpp>
#include <accelerate/core/version.hpp>
#include <accelerate/state/async_checkpoint.hpp>
#include <accelerate/state/checkpoint_hooks.hpp>
#include <accelerate/state/environment.hpp>
#include <accelerate/state/inspect.hpp>
#include <accelerate/state/latest.hpp>
#include <accelerate/state/leftovers.hpp>
#include <chrono>
#include <memory>
#include <optional>
#include <sstream>

namespace accelerate {

/// How `save_state` writes.
struct save_state_options {
    bool asynchronous = false;  ///< copies the state and returns; a thread writes the copy while training goes on, in no hurry until somebody waits for it. Needs memory for the copy
    Hash hash = Hash::Xxh3;     ///< of the files
};

/// Checkpoints: the part of Python's `Accelerator` that saves and restores a run. `Derived` has `training_`, to which this is a friend.
template <class Derived>
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
    RemovableHandle register_save_state_pre_hook(CheckpointHook hook) { return save_hooks_.add(std::move(hook)); }
    RemovableHandle register_load_state_pre_hook(CheckpointHook hook) { return load_hooks_.add(std::move(hook)); }

    /// Writes everything that was prepared or registered, and the random streams, as the folder `dir`: models, optimizers, schedules,
    /// scaler, loaders, and the accumulation window with its gradients. Resuming from it goes on as if nothing had happened, bit for bit;
    /// between windows also on another number of ranks or under another sharding. `dir` appears whole or not at all. Collective.
    /// Errors: E_EXISTS, E_NO_SPACE, E_IO, the same on every rank; with `.asynchronous` what fails behind the copy is the error of the next
    /// save or of `wait_for_checkpoint`.
    void save_state(std::filesystem::path const& dir, save_state_options const& how = {}) { save(dir, how, [] {}); }
    /// The same as `project_dir/checkpoints/checkpoint_<n>`, one more than the newest; the file `latest` there names it then, and, where
    /// `total_limit` says so, older ones go. Gives the folder.
    std::filesystem::path save_state(save_state_options const& how = {}) {
        wait_for_checkpoint();
        auto const folder = checkpoints();
        auto& comm = own().training_->settled().comm;
        auto const next = at::scalar_tensor(0, at::kLong);
        state::together(comm, [&] {
            if (!own().training_->writes()) return;
            auto const there = detail::numbered_checkpoints(folder);
            if (!there.empty()) next.fill_(there.front().first + 1);
        });
        comm.all_reduce(next, comm::Reduction::Max);
        auto const name = concat("checkpoint_", next.template item<int64_t>());
        save(folder / name, how, [folder, name, limit = own().training_->options.total_limit] { tidy(folder, name, limit); });
        return folder / name;
    }
    /// Returns when the last asynchronous save is done, or has its error, the same on every rank. Collective.
    void wait_for_checkpoint() {
        if (!pending_) return;
        on_each_node([&] { state::wait_together(own().training_->writers(), std::move(pending_)); });
    }

    /// Restores what `save_state` wrote. Every file's hash is checked first, unless `.verify = false`. Collective. Errors: E_CK_* (see `state/codes.hpp`), E_IO;
    /// nothing has been changed where the folder is not as it was written, or is of another run; objects that were registered come first, so that
    /// what one of them throws leaves all else as it was. Parameters and optimizer state are read into place: a disk that fails after the
    /// hashes were checked leaves them half read.
    void load_state(std::filesystem::path const& dir, load_state_options const& options = {}) {
        wait_for_checkpoint();
        check_agreed("load_state", options);
        load(*open(dir, options.verify), options);
    }

    /// Restores the newest checkpoint under `project_dir` that is whole; says which, and why newer ones were not taken. False where there
    /// is none. Error E_CK_INCOMPLETE where there are some and none is whole. Collective.
    bool resume(load_state_options const& options = {}) {
        wait_for_checkpoint();
        check_agreed("resume", options);
        auto& comm = own().training_->settled().comm;
        auto const folder = checkpoints();
        std::string numbers;
        state::together(comm, [&] {
            if (!own().training_->writes()) return;
            state::remove_leftovers(folder);
            for (auto const& checkpoint : detail::numbered_checkpoints(folder)) numbers += concat(checkpoint.first, " ");
            try {
                state::check_latest(folder);
            } catch (Error const& e) {
                log::warning("resume: ", e.what(), "; the newest checkpoint that is whole is taken all the same");
            }
        });
        comm.broadcast_bytes(numbers, 0);
        std::istringstream newest_first(numbers);
        int64_t passed_over = 0;
        for (int64_t number; newest_first >> number; ++passed_over) {
            auto const dir = folder / concat("checkpoint_", number);
            std::unique_ptr<state::CheckpointReader> reader;
            try {
                reader = open(dir, options.verify);
            } catch (Error const& e) {
                if (e.exit_code() != code::data.exit && e.exit_code() != code::io.exit) throw;  // a peer is gone
                log::warning("resume: ", dir, " is passed over: ", e.what());
                continue;
            }
            load(*reader, options);
            log::info("resume: ", dir);
            return true;
        }
        check(passed_over == 0, code::ck_incomplete, "resume: none of the ", passed_over, " checkpoints in ", folder, " is whole");
        return false;
    }

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
    /// `behind` is called by rank 0, or its thread, when the folder is there.
    template <class Behind>
    void save(std::filesystem::path const& named, save_state_options const& how, Behind const& behind) {
        wait_for_checkpoint();
        check(!named.empty(), code::config, "save_state: the folder's name is empty");
        auto const dir = named.has_filename() ? named : named.parent_path();  // "out/" is "out"
        auto const begin = std::chrono::steady_clock::now();
        auto& t = own().training_->settled();
        check_agreed("save_state", {how.asynchronous ? "an asynchronous save" : "a save that waits", how.hash == Hash::Xxh3 ? "XXH3" : "SHA-256"});
        auto components = all_components();
        save_hooks_.call(components, dir);
        auto& writers = t.writers();
        check(!detail::in_parts<typename Derived::model_state> || writers.size() == t.comm.size(), code::config, "save_state: with save_on_each_node each node needs the whole state, and under ", Derived::sharding_type::name,
              " it has only a part; save to a disk that all nodes see");
        nlohmann::json const about{{"policies", Derived::policies()}, {"accelerate", concat(version.major, ".", version.minor, ".", version.patch)}, {"environment", state::environment(t.comm)}};
        auto const published = [=](int64_t bytes) {
            behind();
            log::info("save_state: ", dir, ", ", bytes, " bytes, ", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), " s");
        };
        if (how.asynchronous) {
            on_each_node([&] { pending_ = state::begin_async_checkpoint(writers, dir, components, about, how.hash, snapshot_, t.deadline(), published); });
            return;
        }
        on_each_node([&] {
            auto const bytes = state::write_checkpoint(writers, dir, components, about, how.hash);
            if (t.writes()) published(bytes);
        });
    }

    /// Ranks that saved or loaded other things would lose some, or wait for each other.
    void check_agreed(std::string_view who, std::vector<std::string> how) const {
        for (auto const& component : all_components()) how.push_back(state::quote(component.name));
        state::check_agreed(own().training_->settled().comm, who, how);
    }
    void check_agreed(std::string_view who, load_state_options const& options) const {
        std::vector<std::string> how{options.verify ? "hashes that are verified" : "hashes that are not verified"};
        for (auto const& name : options.skip) how.push_back(concat(state::quote(name), " to skip"));
        check_agreed(who, std::move(how));
    }

    /// Does something that ends alike on all ranks of a node: an error on one node is the error of all.
    template <class F>
    void on_each_node(F&& f) const {
        auto& t = *own().training_;
        if (t.writers().size() == t.comm.size()) f();
        else state::together(t.comm, f, "on the node of rank");
    }

    std::unique_ptr<state::CheckpointReader> open(std::filesystem::path const& dir, bool verify) const {
        std::unique_ptr<state::CheckpointReader> reader;
        on_each_node([&] { reader = detail::open_checkpoint(own().training_->writers(), dir, verify); });
        return reader;
    }

    void load(state::CheckpointReader& reader, load_state_options const& options) {
        auto components = all_components();
        load_hooks_.call(components, reader.dir());
        auto const& comm = own().training_->comm;
        on_each_node([&] { detail::load_components(own().training_->writers(), reader, components, options); });
        auto const& about = reader.manifest().about;
        if (own().is_main_process() && about.is_object()) state::warn_if_changed(about.value("environment", nlohmann::json()), state::environment(comm), reader.dir());
    }

    /// Names the newest checkpoint and removes what is older than the limit; that it cannot is no failure of a save that has been made.
    static void tidy(std::filesystem::path const& folder, std::string const& newest, int64_t limit) try {
        state::write_latest(folder, newest);
        auto const there = detail::numbered_checkpoints(folder);
        for (auto i = static_cast<size_t>(limit); limit > 0 && i < there.size(); ++i) std::filesystem::remove_all(there[i].second);
    } catch (std::exception const& e) {
        log::warning("save_state: the checkpoint is there, but not all is tidy: ", e.what());
    }

    std::filesystem::path checkpoints() const {
        check(!own().project_dir().empty(), code::config, "save_state and resume need a place: give the accelerator .project_dir, or save_state and load_state a folder");
        return own().project_dir() / "checkpoints";
    }

    std::vector<state::Component> all_components() const {
        auto all = own().training_->components;
        std::erase_if(all, [](auto const& c) { return c.gone && c.gone(); });
        auto const guard = own().training_->guard;
        if constexpr (std::remove_cvref_t<decltype(*own().training_)>::scales) {
            all.push_back({.name = "scaler", .whose = own().shared(), .save = [guard] { return guard->scaler().state_dict(); }, .load = [guard](StateDict const& s) { guard->scaler().load_state_dict(s); },
                           .fits = [guard](StateDict const& s) {
                               auto scaler = guard->scaler();
                               scaler.load_state_dict(s);
                           },
                           .unfit = code::ck_scaler});
        }
        auto const progress = [guard, independent = state::is_own(own().shared())] {
            StateDict s{{}, {{"steps", guard->steps()}}};
            if (independent) s.values["independent"] = true;
            return s;
        };
        auto const steps_in = [](StateDict const& s) {
            auto const steps = s.value<int64_t>("steps", "progress");
            check(steps >= 0, code::data, "step ", steps, " cannot be");
            return steps;
        };
        all.push_back({.name = "progress", .whose = state::Whose::EachOrFirst, .save = progress, .load = [=](StateDict const& s) { guard->set_steps(steps_in(s)); }, .fits = [=](StateDict const& s) { steps_in(s); }});
        all.push_back(detail::random_component(Derived::device_type::type));
        return all;
    }

    std::optional<StopSignals> signals_;
    state::CheckpointHooks save_hooks_, load_hooks_;
    state::Snapshot snapshot_;
    std::unique_ptr<state::PendingSave> pending_;

    Derived& own() { return static_cast<Derived&>(*this); }
    Derived const& own() const { return static_cast<Derived const&>(*this); }
};

}  // namespace accelerate
