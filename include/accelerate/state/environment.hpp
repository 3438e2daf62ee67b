#pragma once

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/version.h>

#include <accelerate/core/log.hpp>
#include <accelerate/state/json_values.hpp>
#include <accelerate/state/quote.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace accelerate::state {

/// What the bits of a run depend on beside its program and its data: ranks, threads of each, the vector instructions that LibTorch uses, its
/// version, and in which order sums over ranks are added.
template <class Comm>
nlohmann::json environment(Comm const& comm) {
    nlohmann::json e{{"ranks", comm.size()}, {"threads", at::get_num_threads()}, {"isa", at::get_cpu_capability()}, {"torch", TORCH_VERSION}};
    if constexpr (requires { comm.summation(); }) e["summation"] = comm.summation();
    return e;
}

namespace detail {
/// A value that somebody else may have written, as one line of text.
inline std::string shown(nlohmann::json const& value) { return value.is_string() ? quote(value.get<std::string>()) : value.is_primitive() ? value.dump() : value.type_name(); }
}  // namespace detail

/// Warns (W_ENV_CHANGED) of what is not as it was when a checkpoint was saved: the state is the same to the last bit, what it becomes need not be.
inline void warn_if_changed(nlohmann::json const& saved, nlohmann::json const& now, std::filesystem::path const& dir) {
    if (!saved.is_object()) return;
    std::string changes;
    for (auto const& [name, value] : now.items())
        if (auto const before = saved.find(name); before != saved.end() && !same_text(*before, value)) changes += concat(changes.empty() ? "" : ", ", name, " was ", detail::shown(*before), " and is ", detail::shown(value));
    if (!changes.empty()) log::warning("W_ENV_CHANGED: ", dir, " was saved where ", changes, "; the run goes on, but not to the same bits");
}

}  // namespace accelerate::state
