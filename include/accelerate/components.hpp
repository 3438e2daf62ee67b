#pragma once

#include <ATen/core/grad_mode.h>

#include <accelerate/core/random_state.hpp>
#include <accelerate/core/same_memory.hpp>
#include <accelerate/rerun.hpp>
#include <accelerate/state/component.hpp>
#include <accelerate/state/quote.hpp>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>

namespace accelerate::detail {

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

/// The random streams of the CPU and of a device. `rerun`: null where windows are not computed again.
inline state::Component random_component(at::DeviceType device, std::shared_ptr<Rerun> const& rerun) {
    auto const set = [](at::DeviceType type, at::Tensor const& saved) {
        try {
            set_random_state(type, saved);
        } catch (c10::Error const& e) {
            throw Error(code::ck_rng, concat("load_state: the state of the random generator does not fit: ", e.what_without_backtrace()));
        }
    };
    auto const states = [=](auto&& state_of) {
        StateDict s;
        s.tensors.insert("cpu", state_of(at::kCPU));
        if (device != at::kCPU) s.tensors.insert("device", state_of(device));
        return s;
    };
    auto const now = [=] { return states([](at::DeviceType d) { return random_state(d); }); };
    auto const save = [=] { return rerun ? states([&](at::DeviceType d) { return rerun->saved_random_state(d); }) : now(); };
    auto const load = [=](StateDict const& s) {
        check(s.tensors.contains("cpu"), code::ck_rng, "load_state: the checkpoint has no state of the CPU's random generator");
        set(at::kCPU, s.tensors.at("cpu"));
        if (device != at::kCPU && s.tensors.contains("device")) set(device, s.tensors.at("device"));
    };
    return {.name = "random", .whose = state::Whose::Each, .save = save, .load = load, .fits = tried(now, load), .unfit = code::ck_rng};
}

/// A step guard's gradient scaler.
template <class Guard>
state::Component scaler_component(std::shared_ptr<Guard> const& guard, state::Whose whose) {
    auto const fits = [guard](StateDict const& s) {
        auto scaler = guard->scaler();
        scaler.load_state_dict(s);
    };
    auto const load = [guard](StateDict const& s) { guard->scaler().load_state_dict(s); };
    return {.name = "scaler", .whose = whose, .save = [guard] { return guard->scaler().state_dict(); }, .load = load, .fits = fits, .unfit = code::ck_scaler};
}

/// How many steps optimizers have made, how many were skipped since the last one, and whether a window is computed once more; to be loaded behind
/// the random streams. `independent`: each rank those of its own. `rerun`: null where none is.
template <class Guard>
state::Component progress_component(std::shared_ptr<Guard> const& guard, bool independent, std::shared_ptr<Rerun> const& rerun) {
    auto const save = [=] {
        StateDict s{{}, {{"steps", guard->steps()}, {"skipped_in_a_row", guard->skipped_in_a_row()}}};
        if (independent) s.values["independent"] = true;
        if (rerun) s.values["again"] = rerun->state();
        return s;
    };
    auto const progress_in = [](StateDict const& s) {
        auto const steps = s.value<int64_t>("steps", "progress");
        auto const skipped = s.values.contains("skipped_in_a_row") ? s.value<int64_t>("skipped_in_a_row", "progress") : 0;  // older checkpoints do not say
        check(steps >= 0 && skipped >= 0, code::data, "step ", steps, " behind ", skipped, " skipped ones cannot be");
        auto const again = s.values.contains("again") ? s.value<std::string>("again", "progress") : "neither";
        check(Rerun::is_state(again), code::data, "the window that is computed once more cannot be ", state::quote(again));
        return std::tuple(steps, skipped, again);
    };
    auto const load = [=](StateDict const& s) {
        auto const [steps, skipped, again] = progress_in(s);
        guard->restore(steps, skipped);
        if (rerun) rerun->restore(again);
    };
    return {.name = "progress", .whose = state::Whose::EachOrFirst, .save = save, .load = load,
            .fits = [=](StateDict const& s) { progress_in(s); }};
}

}  // namespace accelerate::detail
