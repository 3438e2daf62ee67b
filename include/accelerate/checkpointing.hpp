#pragma once

#include <accelerate/core/random_state.hpp>
#include <accelerate/core/same_memory.hpp>
#include <accelerate/module/unique_parameters.hpp>
#include <accelerate/state/checkpoint_reader.hpp>
#include <accelerate/state/rename.hpp>
#include <accelerate/state/together.hpp>
#include <accelerate/training.hpp>
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace accelerate {

/// How `load_state` and `resume` restore.
struct load_state_options {
    std::vector<std::string> skip = {};  ///< components that stay as they are, or are in the checkpoint only: "optimizer", "custom_checkpoint_0"; see `acc::inspect`
    std::vector<Rename> rename = {};     ///< what names of parameters in the checkpoint are called now, where the code has changed since
    bool verify = true;                  ///< false: sizes and structure are checked, but not the hashes, which costs one read of all files
};

namespace detail {

/// What loaded tensors and those that are there do not have in common, and shapes and dtypes that differ, are one error E_CK_KEYS that lists
/// them.
inline void check_by_name(std::string const& who, TensorMap const& here, TensorMap const& loaded) {
    std::string differences;
    int64_t count = 0;
    auto const add = [&](auto const&... parts) {
        if (++count <= 20) differences += concat("\n  ", parts...);
    };
    for (auto const& [name, t] : here) {
        auto const found = loaded.find(name);
        if (found == loaded.end()) add(state::quote(name), " is missing");
        else if (found->second.sizes() != t.sizes() || found->second.scalar_type() != t.scalar_type())
            add(state::quote(name), " has shape ", found->second.sizes(), " and dtype ", found->second.scalar_type(), " there, here ", t.sizes(), " and ", t.scalar_type());
    }
    for (auto const& [name, t] : loaded)
        if (!here.contains(name)) add(state::quote(name), " is unexpected");
    check(count == 0, code::ck_keys, "load_state: \"", who, "\" does not fit:", differences, count > 20 ? concat("\n  and ", count - 20, " more") : "");
}

/// Copies loaded tensors, which fit, into those that are there.
inline void copy_by_name(TensorMap const& here, TensorMap const& loaded) {
    at::NoGradGuard const no_grad;
    for (auto const& [name, t] : here)
        if (auto const& from = loaded.at(name); !same_memory(t, from)) t.copy_(from);
}

/// Whether every rank keeps only some of a model's parameters and of their optimizer state.
template <class Model>
inline constexpr bool in_parts = requires(Model const& m) { m.for_each_part([](auto const&, auto const&, int64_t) {}); };

/// A rank's gradients, where they are: of each trainable parameter that it keeps some of, a 1-D tensor in memory order.
template <class Model>
TensorMap gradients_of(Model const& model) {
    TensorMap all;
    for (auto const& flat : std::span<sharding::Flat const>(model.flats()))
        for (auto const& slot : flat.slots) {
            auto const from = std::max<int64_t>(slot.begin, 0), to = std::min(slot.end(), flat.gradients.numel());
            if (from < to) all.insert(slot.name, flat.gradients.narrow(0, from, to - from));
        }
    return all;
}

/// Parameters; buffers; the accumulation window, with its gradients. `options`: the accelerator's, which outlive what is made.
template <class Module, class Model>
std::vector<state::Component> model_components(std::string const& name, std::shared_ptr<Module> const& module, std::shared_ptr<Model> const& model, state::Whose whose, accelerator_options const& options) {
    auto const steps = [of = &options] { return of->gradient_accumulation_steps; };
    auto const parameters = [=] {
        StateDict s;
        if constexpr (in_parts<Model>) {
            model->for_each_part([&](sharding::Slot const& slot, at::Tensor const& part, int64_t from) {
                s.tensors.insert(slot.name, part);
                s.values["slices"][slot.name] = {from, from + part.numel()};
                s.values["shapes"][slot.name] = {{"shape", slot.parameter.sizes().vec()}, {"strides", slot.parameter.strides().vec()}};
            });
        } else {
            for (auto const& [key, p] : unique_parameters(*module)) s.tensors.insert(key, p.detach());
        }
        return s;
    };
    auto const load_parameters = [=](StateDict const& s) {
        copy_by_name(parameters().tensors, s.tensors);
        model->parameters_changed();
    };
    auto const buffers = [=] {
        StateDict s;
        for (auto const& b : module->named_buffers())
            if (b.value().defined()) s.tensors.insert(b.key(), b.value());
        return s;
    };
    auto const parameters_fit = [=](StateDict const& s) { check_by_name(name, parameters().tensors, s.tensors); };
    auto const buffers_fit = [=](StateDict const& s) { check_by_name(name + "_buffers", buffers().tensors, s.tensors); };
    auto const load_buffers = [=](StateDict const& s) { copy_by_name(buffers().tensors, s.tensors); };
    auto const window = [=] {
        using sharding::Stage;
        auto const stage = model->stage();
        bool const gradients = !model->window_closed() || stage == Stage::Reduced || stage == Stage::Unscaled || stage == Stage::Clipped;
        StateDict s;
        s.values = {{"position", model->window().position()}, {"micro_batches", model->window().micro_batches()}, {"closed", model->window_closed()}, {"stage", static_cast<int>(stage)},
                    {"weight", model->weight}, {"weighted", model->weighted}, {"losses", model->losses}, {"finished", model->finished}, {"loss_scale", model->loss_scale}, {"gradient_scale", model->gradient_scale()}, {"gradients", gradients},
                    {"ranks", model->replicas()}, {"steps", steps()}};
        if (gradients) {
            s.tensors = gradients_of(*model);
            if constexpr (sharding::tells_unreached<Model>)
                for (auto const* slot : model->unreached()) s.values["unreached"].push_back(slot->name);
        }
        return s;
    };
    auto const unreached_in = [=](StateDict const& s) {
        return s.values.contains("unreached") ? s.value<std::set<std::string>>("unreached", name + "_window") : std::set<std::string>();
    };
    // Older checkpoints do not say: a micro-batch had one loss.
    auto const losses_in = [=](StateDict const& s) {
        auto const who = name + "_window";
        return s.values.contains("losses") ? s.value<int64_t>("losses", who) : std::max(s.value<int64_t>("weighted", who), s.value<int64_t>("micro_batches", who));
    };
    auto const finished_in = [=](StateDict const& s) { return s.values.contains("finished") ? s.value<double>("finished", name + "_window") : 1; };
    auto const window_fits = [=](StateDict const& s) {
        auto const who = name + "_window";
        bool const with_gradients = s.value<bool>("gradients", who), closed = s.value<bool>("closed", who);
        auto const ranks = s.value<int64_t>("ranks", who), of = s.value<int64_t>("steps", who), stage = s.value<int64_t>("stage", who), position = s.value<int64_t>("position", who), micro_batches = s.value<int64_t>("micro_batches", who);
        check(!with_gradients || ranks == model->replicas(), code::ck_accum, "load_state: the checkpoint was saved by ", ranks, " ranks inside an accumulation window of \"", name,
              "\"; it can be gone on with on as many, here are ", model->replicas(), ". Save at a window's end to change that");
        auto const loss_scale = s.value<double>("loss_scale", who), gradient_scale = s.value<double>("gradient_scale", who);
        bool const possible = stage >= 0 && stage <= static_cast<int64_t>(sharding::Stage::Stepped) && position >= 0 && micro_batches >= 0 && loss_scale >= 0 && std::isfinite(gradient_scale);
        check(possible, code::ck_accum, "what cannot be: ", s.values.dump());
        check(closed || (micro_batches < steps() && of == steps()), code::ck_accum, "the checkpoint is inside a window of gradient_accumulation_steps ", of, ", behind its micro-batch ", micro_batches, "; here they are ", steps(),
              ". Save at a window's end to change that");
        static_cast<void>(s.value<double>("weight", who));
        auto const weighted = s.value<int64_t>("weighted", who);
        check(weighted >= 0 && losses_in(s) >= weighted && finished_in(s) > 0, code::ck_accum, "what cannot be: ", s.values.dump());
        static_cast<void>(unreached_in(s));
        if (with_gradients) check_by_name(who, gradients_of(*model), s.tensors);
    };
    auto const load_window = [=](StateDict const& s) {
        auto const who = name + "_window";
        auto unreached = unreached_in(s);
        if (s.value<bool>("gradients", who)) copy_by_name(gradients_of(*model), s.tensors);
        else {
            for (auto const& [key, t] : gradients_of(*model)) t.zero_();
            for (auto const& [key, p] : model->parameters()) unreached.insert(key);
        }
        if constexpr (sharding::tells_unreached<Model>) model->restore_unreached(unreached);
        model->window().restore(s.value<int64_t>("position", who), s.value<int64_t>("micro_batches", who), s.value<bool>("closed", who));
        if (s.value<int64_t>("steps", who) != steps()) model->window().restart();
        model->restore_stage(static_cast<sharding::Stage>(s.value<int64_t>("stage", who)));
        model->unfinished = !model->window_closed();
        if constexpr (sharding::tells_unreached<Model>) model->unfinished = model->unfinished && !model->idle();
        model->forget_verdict();
        model->take_scale();
        model->scale_gradients(s.value<double>("gradient_scale", who));
        model->loss_scale = s.value<double>("loss_scale", who);
        model->begin_window();
        model->weight = s.value<double>("weight", who), model->weighted = s.value<int64_t>("weighted", who);
        model->losses = losses_in(s), model->finished = finished_in(s);
    };
    using state::Names;
    return {{.name = name, .whose = whose, .save = parameters, .load = load_parameters, .fits = parameters_fit, .into = [=] { return parameters().tensors; }, .names = Names::Parameter},
            {.name = name + "_buffers", .whose = state::Whose::EachOrFirst, .save = buffers, .load = load_buffers, .fits = buffers_fit, .names = Names::Parameter},
            {.name = name + "_window", .whose = state::Whose::EachOrFirst, .save = window, .load = load_window, .fits = window_fits, .unfit = code::ck_accum, .names = Names::Parameter}};
}

/// Anything that gives and takes a `StateDict`, by a handle that is kept.
template <class Handle>
state::Component stateful_component(std::string name, state::Whose whose, Code const& unfit, Handle handle) {
    auto const kept = std::make_shared<Handle>(std::move(handle));
    state::Component c{.name = std::move(name), .whose = whose, .save = [kept] {
                           if constexpr (requires { kept->live_state(); }) return kept->live_state();
                           else return kept->state_dict();
                       }, .load = [kept](StateDict const& s) { kept->load_state_dict(s); }, .unfit = unfit};
    if constexpr (requires(StateDict const& s) { kept->check_state_dict(s); }) c.fits = [kept](StateDict const& s) { kept->check_state_dict(s); };
    if constexpr (requires { kept->gone(); }) c.gone = [kept] { return kept->gone(); };
    if constexpr (requires { kept->make_state(), kept->live_state(); })
        c.into = [kept] {
            kept->make_state();
            return kept->live_state().tensors;
        };
    if constexpr (requires { kept->make_state(); })
        c.holds = [kept] {
            kept->make_state();
            return kept->state_dict();
        };
    return c;
}

/// An object of the user's, which outlives this.
template <class Object>
state::Component registered_component(std::string name, Object& object) {
    state::Component c{.name = std::move(name), .whose = state::Whose::All, .save = [&object] { return StateDict(object.state_dict()); }, .load = [&object](StateDict const& s) { object.load_state_dict(s); }};
    if constexpr (requires(StateDict const& s) { object.check_state_dict(s); }) c.fits = [&object](StateDict const& s) { object.check_state_dict(s); };
    return c;
}

/// Whether a small state fits, found out by taking it and going back.
template <class Save, class Load>
std::function<void(StateDict const&)> tried(Save save, Load load) {
    return [=](StateDict const& s) {
        auto before = save();
        for (auto& item : before.tensors) item.second = item.second.clone();
        try {
            load(s);
        } catch (...) {
            load(before);
            throw;
        }
        load(before);
    };
}

/// The random streams of the CPU and of a device.
inline state::Component random_component(at::DeviceType device) {
    auto const set = [](at::DeviceType type, at::Tensor const& saved) {
        try {
            set_random_state(type, saved);
        } catch (c10::Error const& e) {
            throw Error(code::ck_rng, concat("load_state: the state of the random generator does not fit: ", e.what_without_backtrace()));
        }
    };
    auto const save = [=] {
        StateDict s;
        s.tensors.insert("cpu", random_state(at::kCPU));
        if (device != at::kCPU) s.tensors.insert("device", random_state(device));
        return s;
    };
    auto const load = [=](StateDict const& s) {
        check(s.tensors.contains("cpu"), code::ck_rng, "load_state: the checkpoint has no state of the CPU's random generator");
        set(at::kCPU, s.tensors.at("cpu"));
        if (device != at::kCPU && s.tensors.contains("device")) set(device, s.tensors.at("device"));
    };
    return {.name = "random", .whose = state::Whose::Each, .save = save, .load = load, .fits = tried(save, load), .unfit = code::ck_rng};
}

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

}  // namespace detail
}  // namespace accelerate
