#pragma once

#include <ATen/ops/scalar_tensor.h>

#include <accelerate/comm/reduction.hpp>
#include <accelerate/core/version.hpp>
#include <accelerate/state/async_checkpoint.hpp>
#include <accelerate/state/checkpoint_hooks.hpp>
#include <accelerate/state/checkpoint_reader.hpp>
#include <accelerate/state/environment.hpp>
#include <accelerate/state/inspect.hpp>
#include <accelerate/state/latest.hpp>
#include <accelerate/state/leftovers.hpp>
#include <accelerate/state/rename.hpp>
#include <accelerate/state/together.hpp>
#include <accelerate/training_base.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <locale>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace accelerate {

/// How `load_state` and `resume` restore.
struct load_state_options {
    std::vector<std::string> skip = {};  ///< components that stay as they are, or are in the checkpoint only: "optimizer", "custom_checkpoint_0"; see `acc::inspect`
    std::vector<Rename> rename = {};     ///< what names of parameters in the checkpoint are called now, where the code has changed since
    bool verify = true;                  ///< false: sizes and structure are checked, but not the hashes, which costs one read of all files
};

/// How `save_state` writes.
struct save_state_options {
    bool asynchronous = false;  ///< copies the state and returns; a thread writes the copy while training goes on, in no hurry until somebody waits for it. Needs memory for the copy
    Hash hash = Hash::Xxh3;     ///< of the files
};

namespace detail {

/// Checkpoints of a project: `<project_dir>/checkpoints/checkpoint_<n>`, by number, the newest first. Error E_IO for a folder that cannot be
/// listed.
inline std::vector<std::pair<int64_t, std::filesystem::path>> numbered_checkpoints(std::filesystem::path const& folder) {
    std::vector<std::pair<int64_t, std::filesystem::path>> found;
    std::error_code failed;
    std::filesystem::directory_iterator entries(folder, failed);
    if (failed && failed != std::errc::no_such_file_or_directory) state::fail_io("cannot list the folder", folder, failed.value());  // nothing is not taken for none
    for (auto const& entry : entries) {
        auto const name = entry.path().filename().string();
        constexpr std::string_view prefix = "checkpoint_";
        auto const digits = name.starts_with(prefix) ? name.substr(prefix.size()) : "";
        bool const number = !digits.empty() && digits.size() <= 15 && digits.find_first_not_of("0123456789") == std::string::npos && (digits.size() == 1 || digits[0] != '0');
        bool const folder_itself = std::filesystem::is_directory(entry.symlink_status());
        if (name.starts_with(prefix) && (!number || !folder_itself)) log::warning_once("W_CK_IGNORED: ", entry.path(), " is no checkpoint: ", number ? "it is not a folder" : "its name does not end in a plain number");
        if (number && folder_itself) found.emplace_back(std::stoll(digits), entry.path());
    }
    std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) { return a.first > b.first; });
    return found;
}

/// A checkpoint whose files are as they were written, if that is to be verified: every rank reads some of them. Collective; errors are those
/// of all.
template <class Comm>
std::unique_ptr<state::CheckpointReader> open_checkpoint(Comm const& comm, std::filesystem::path const& dir, bool verify) {
    std::unique_ptr<state::CheckpointReader> reader;
    state::together(comm, [&] { reader = std::make_unique<state::CheckpointReader>(dir); });
    if (verify) state::together(comm, [&] { reader->verify(comm.rank(), comm.size()); });
    return reader;
}

/// Shows a component a state, or gives it to it; what does not fit has the component's code.
inline void give(state::Component const& component, std::function<void(StateDict const&)> const& to, StateDict const& state) try {
    to(state);
} catch (Error const& e) {
    bool const unfit = e.code() == code::data || e.code() == code::config;
    throw Error(unfit ? component.unfit : e.code(), concat("\"", component.name, "\": ", e.reason()));
}

/// What there is here and in the checkpoint must be the same, but for what is to be skipped: nothing is ignored unsaid.
inline void check_same_components(state::CheckpointReader const& reader, std::vector<state::Component> const& components, std::vector<std::string> const& skip) {
    auto const there = reader.components();
    auto const skipped = [&](std::string const& name) { return std::ranges::find(skip, name) != skip.end(); };
    auto const here = [&](std::string const& name) { return std::ranges::find(components, name, &state::Component::name) != components.end(); };
    for (auto const& name : skip) check(here(name) || std::ranges::find(there, name) != there.end(), code::ck_keys, "load_state: there is no \"", name, "\" to skip, neither here nor in ", reader.dir());
    std::string text;
    Code code = code::ck_keys;
    auto const add = [&](std::string const& name, char const* where) {
        text += concat("\n  ", state::quote(name), where);
        if (name == "scaler" || name.find("_precision") != std::string::npos) code = code::ck_precision;
    };
    for (auto const& c : components)
        if (!skipped(c.name) && std::ranges::find(there, c.name) == there.end()) add(c.name, " is here, but not in the checkpoint");
    for (auto const& name : there)
        if (!skipped(name) && !here(name)) add(name, " is in the checkpoint, but not here");
    check(text.empty(), code, "load_state: ", reader.dir(), " is of another run:", text, "\n  (.skip = {\"name\", ...} leaves those out that you name)");
}

/// All components' states from a checkpoint, then into the components. Nothing has been changed on any rank when one cannot be had or does not
/// fit; where only an object of the user's can say that, those that it comes behind have theirs. Where the disk fails while states are read
/// into place, what was read stays. Collective.
template <class Comm>
void load_components(Comm const& comm, state::CheckpointReader& reader, std::vector<state::Component> const& components, load_state_options const& options) {
    std::vector<std::optional<StateDict>> states(components.size());
    auto const skipped = [&](state::Component const& c) { return std::ranges::find(options.skip, c.name) != options.skip.end(); };
    state::together(comm, [&] {
        check_same_components(reader, components, options.skip);
        for (size_t i = 0; i < components.size(); ++i)
            if (!skipped(components[i])) states[i] = reader.state_of(components[i], comm.rank(), options.rename);
        for (size_t i = 0; i < components.size(); ++i)
            if (states[i] && components[i].fits) give(components[i], components[i].fits, *states[i]);
    });
    state::together(comm, [&] {
        for (size_t i = 0; i < components.size(); ++i)
            if (states[i] && !components[i].fits) give(components[i], components[i].load, *states[i]);
    });
    state::together(comm, [&] { reader.read_into_place(); });
    state::together(comm, [&] {
        for (size_t i = 0; i < components.size(); ++i) {
            if (skipped(components[i])) continue;
            if (states[i] && components[i].fits) give(components[i], components[i].load, *states[i]);
            else if (!states[i]) log::warning("load_state: the checkpoint is of ", reader.manifest().world, " ranks and has no \"", components[i].name, "\" of rank ", comm.rank(), "; it goes on with its own");
        }
    });
}

/// Saves and restores what a training consists of; what it does is told at `StateControl`. Every function is collective.
template <class Comm>
class Checkpoints {
public:
    using Training = TrainingBase<Comm>;

    state::CheckpointHooks save_hooks, load_hooks;

    /// `behind` is called by rank 0, or its thread, when the folder is there.
    void save(Training& training, std::filesystem::path const& named, save_state_options const& how, std::string const& policies, std::function<void()> const& behind = [] {}) {
        wait(training);
        check(!named.empty(), code::config, "save_state: the folder's name is empty");
        auto const dir = named.has_filename() ? named : named.parent_path();  // "out/" is "out"
        auto const begin = std::chrono::steady_clock::now();
        auto components = training.all_components();
        check_agreed(training, "save_state", {how.asynchronous ? "an asynchronous save" : "a save that waits", how.hash == Hash::Xxh3 ? "XXH3" : "SHA-256"}, components);
        save_hooks.call(components, dir);
        auto& writers = training.writers();
        bool const whole = std::ranges::find(components, state::Whose::Parts, &state::Component::whose) == components.end();
        check(whole || writers.size() == training.comm.size(), code::config, "save_state: with save_on_each_node each node needs the whole state, and of a sharded model (", policies,
              ") it has only a part; save to a disk that all nodes see");
        nlohmann::json const about{{"policies", policies}, {"accelerate", concat(version.major, ".", version.minor, ".", version.patch)}, {"environment", state::environment(training.comm)}};
        auto const published = [=](int64_t bytes) {
            behind();
            log::info("save_state: ", dir, ", ", bytes, " bytes, ", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), " s");
        };
        on_each_node(training, [&] {
            if (how.asynchronous) pending_ = state::begin_async_checkpoint(writers, dir, components, about, how.hash, snapshot_, training.deadline(), published);
            else if (auto const bytes = state::write_checkpoint(writers, dir, components, about, how.hash); training.writes()) published(bytes);
        });
    }

    /// The next of the project's.
    std::filesystem::path save_next(Training& training, save_state_options const& how, std::string const& policies) {
        wait(training);
        auto const folder = folder_of(training);
        auto const next = at::scalar_tensor(0, at::kLong);
        state::together(training.comm, [&] {
            if (!training.writes()) return;
            auto const there = numbered_checkpoints(folder);
            if (!there.empty()) next.fill_(there.front().first + 1);
        });
        training.comm.all_reduce(next, comm::Reduction::Max);
        auto const name = concat("checkpoint_", next.template item<int64_t>());
        save(training, folder / name, how, policies, [folder, name, limit = training.options.total_limit] { tidy(folder, name, limit); });
        return folder / name;
    }

    void wait(Training& training) {
        if (!pending_) return;
        on_each_node(training, [&] { state::wait_together(training.writers(), std::move(pending_)); });
    }

    void load(Training& training, std::filesystem::path const& dir, load_state_options const& options) {
        wait(training);
        auto components = training.all_components();
        check_agreed(training, "load_state", options, components);
        load(training, *open(training, dir, options.verify), std::move(components), options);
    }

    bool resume(Training& training, load_state_options const& options) {
        wait(training);
        auto components = training.all_components();
        check_agreed(training, "resume", options, components);
        auto const folder = folder_of(training);
        std::string numbers;
        state::together(training.comm, [&] {
            if (!training.writes()) return;
            state::remove_leftovers(folder);
            for (auto const& checkpoint : numbered_checkpoints(folder)) numbers += concat(checkpoint.first, " ");
            try {
                state::check_latest(folder);
            } catch (Error const& e) {
                log::warning("resume: ", e.what(), "; the newest checkpoint that is whole is taken all the same");
            }
        });
        training.comm.broadcast_bytes(numbers, 0);
        std::istringstream newest_first(numbers);
        newest_first.imbue(std::locale::classic());
        int64_t passed_over = 0;
        for (int64_t number; newest_first >> number; ++passed_over) {
            auto const dir = folder / concat("checkpoint_", number);
            std::unique_ptr<state::CheckpointReader> reader;
            try {
                reader = open(training, dir, options.verify);
            } catch (Error const& e) {
                if (e.exit_code() != code::data.exit && e.exit_code() != code::io.exit) throw;  // a peer is gone
                log::warning("resume: ", dir, " is passed over: ", e.what());
                continue;
            }
            load(training, *reader, std::move(components), options);
            log::info("resume: ", dir);
            return true;
        }
        check(passed_over == 0, code::ck_incomplete, "resume: none of the ", passed_over, " checkpoints in ", folder, " is whole");
        return false;
    }

private:
    /// Ranks that saved or loaded other things would lose some, or wait for each other.
    static void check_agreed(Training& training, std::string_view who, std::vector<std::string> how, std::vector<state::Component> const& components) {
        for (auto const& component : components) how.push_back(state::quote(component.name));
        state::check_agreed(training.comm, who, how);
    }
    static void check_agreed(Training& training, std::string_view who, load_state_options const& options, std::vector<state::Component> const& components) {
        std::vector<std::string> how{options.verify ? "hashes that are verified" : "hashes that are not verified"};
        for (auto const& name : options.skip) how.push_back(concat(state::quote(name), " to skip"));
        check_agreed(training, who, std::move(how), components);
    }

    /// Does something that ends alike on all ranks of a node: an error on one node is the error of all.
    template <class F>
    static void on_each_node(Training& training, F&& f) {
        if (training.writers().size() == training.comm.size()) f();
        else state::together(training.comm, f, "on the node of rank");
    }

    static std::unique_ptr<state::CheckpointReader> open(Training& training, std::filesystem::path const& dir, bool verify) {
        std::unique_ptr<state::CheckpointReader> reader;
        on_each_node(training, [&] { reader = open_checkpoint(training.writers(), dir, verify); });
        return reader;
    }

    void load(Training& training, state::CheckpointReader& reader, std::vector<state::Component> components, load_state_options const& options) {
        load_hooks.call(components, reader.dir());
        on_each_node(training, [&] { load_components(training.writers(), reader, components, options); });
        auto const& about = reader.manifest().about;
        if (training.comm.rank() == 0 && about.is_object()) state::warn_if_changed(about.value("environment", nlohmann::json()), state::environment(training.comm), reader.dir());
    }

    /// Names the newest checkpoint and removes what is older than the limit; that it cannot is no failure of a save that has been made.
    static void tidy(std::filesystem::path const& folder, std::string const& newest, int64_t limit) try {
        state::write_latest(folder, newest);
        auto const there = numbered_checkpoints(folder);
        for (auto i = static_cast<size_t>(limit); limit > 0 && i < there.size(); ++i) std::filesystem::remove_all(there[i].second);
    } catch (std::exception const& e) {
        log::warning("save_state: the checkpoint is there, but not all is tidy: ", e.what());
    }

    static std::filesystem::path folder_of(Training const& training) {
        auto const& project = training.options.project_dir;
        check(!project.empty(), code::config, "save_state and resume need a place: give the accelerator .project_dir, or save_state and load_state a folder");
        return project / "checkpoints";
    }

    state::Snapshot snapshot_;
    std::unique_ptr<state::PendingSave> pending_;
};

}  // namespace detail
}  // namespace accelerate
