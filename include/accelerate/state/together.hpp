#pragma once

#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <exception>
#include <span>
#include <string>
#include <string_view>

namespace accelerate::state {

/// The code of that name, of those that saving and loading raise; E_INTERNAL for others.
inline Code code_named(std::string_view name) {
    for (auto const& set : {std::span<Code const>(code::of_files), std::span<Code const>(code::general)})
        for (auto const& known : set)
            if (known.name == name) return known;
    return code::internal;
}

/// Does something on every rank; when it fails on one, all have the error of the first that failed. Collective.
template <class Comm, class F>
void together(Comm const& comm, F&& f) {
    std::string failure;  // code, line feed, message
    Code own = code::internal;
    try {
        f();
    } catch (Error const& e) {
        own = e.code();
        failure = concat(own.name, "\n", e.reason());
    } catch (std::exception const& e) {
        failure = concat(code::internal.name, "\n", e.what());
    }
    auto const all = comm.all_gather_bytes(failure);
    auto const first = std::find_if(all.begin(), all.end(), [](std::string const& one) { return !one.empty(); });
    if (first == all.end()) return;
    auto const line = first->find('\n');
    auto const name = first->substr(0, line);
    throw Error(own.name == name ? own : code_named(name), concat(first->substr(line + 1), comm.size() > 1 ? concat(" (rank ", first - all.begin(), ")") : ""));
}

}  // namespace accelerate::state
