#pragma once

#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <array>
#include <exception>
#include <string>

namespace accelerate::state {

/// The code of that name, of those that saving and loading raise; E_INTERNAL for others.
inline Code code_named(std::string_view name) {
    static constexpr std::array known{code::io,         code::data,       code::no_space, code::not_regular, code::exists,        code::config,          code::call_order, code::st_changed,  code::st_truncated, code::st_shared_memory,
                                      code::st_bad_tensor, code::ck_keys, code::ck_incomplete, code::ck_bad_manifest, code::ck_version, code::ck_file_set, code::ck_hash,    code::ck_mesh,     code::ck_slices,    code::ck_accum,
                                      code::ck_rng};
    auto const found = std::find_if(known.begin(), known.end(), [&](Code const& c) { return c.name == name; });
    return found == known.end() ? code::internal : *found;
}

/// Does something on every rank; when it fails on one, all have the error of the first that failed. Collective.
template <class Comm, class F>
void together(Comm const& comm, F&& f) {
    std::string failure;  // code, line feed, message
    try {
        f();
    } catch (Error const& e) {
        std::string const what = e.what(), prefix = concat(e.code().name, ": ");
        failure = concat(e.code().name, "\n", what.starts_with(prefix) ? what.substr(prefix.size()) : what);
    } catch (std::exception const& e) {
        failure = concat(code::internal.name, "\n", e.what());
    }
    auto const all = comm.all_gather_bytes(failure);
    auto const first = std::find_if(all.begin(), all.end(), [](std::string const& one) { return !one.empty(); });
    if (first == all.end()) return;
    auto const line = first->find('\n');
    throw Error(code_named(first->substr(0, line)), concat(first->substr(line + 1), comm.size() > 1 ? concat(" (rank ", first - all.begin(), ")") : ""));
}

}  // namespace accelerate::state
