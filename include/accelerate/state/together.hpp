#pragma once

#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::state {

/// An error as text for another rank: its code, a line feed, its message.
inline std::string told(Error const& e) { return concat(e.code().name, "\n", e.reason()); }
/// The error that was told, with `behind` behind its message; `own` where its code is that one.
inline Error error_told(std::string const& text, std::string const& behind, Code const& own = code::internal) {
    auto const line = text.find('\n');
    auto const name = text.substr(0, line);
    return {own.name == name ? own : code::named(name, code::named(name), code::of_files), text.substr(line + 1) + behind};
}

/// What went wrong on this rank, if anything did.
struct Failure {
    std::string text;  ///< as told; empty: nothing
    Code code = code::internal;

    /// The exception that is being handled.
    static Failure caught() {
        try {
            throw;
        } catch (Error const& e) {
            return {told(e), e.code()};
        } catch (std::exception const& e) {
            return {told(Error(code::internal, e.what())), code::internal};
        }
    }
};

/// Throws, on every rank, the error of the first that has one, which is `who` that rank. Collective.
template <class Comm>
void throw_first(Comm const& comm, Failure const& own, std::string_view who) {
    auto const all = comm.all_gather_bytes(own.text);
    auto const first = std::find_if(all.begin(), all.end(), [](std::string const& one) { return !one.empty(); });
    if (first != all.end()) throw error_told(*first, comm.size() > 1 ? concat(" (", who, " ", first - all.begin(), ")") : "", own.code);
}

/// Does something on every rank; when it fails on one, all have the error of the first that failed, which is `who` that rank. Collective.
template <class Comm, class F>
void together(Comm const& comm, F&& f, std::string_view who = "rank") {
    Failure failure;
    try {
        f();
    } catch (...) {
        failure = Failure::caught();
    }
    throw_first(comm, failure, who);
}

/// Error E_COLLECTIVE_MISMATCH on all ranks where one calls `who` with other `items` than rank 0. Collective.
template <class Comm>
void check_agreed(Comm const& comm, std::string_view who, std::vector<std::string> const& items) {
    std::string mine;
    for (auto const& item : items) mine += item + '\n';
    auto const all = comm.all_gather_bytes(mine);
    auto const other = std::find_if(all.begin(), all.end(), [&](std::string const& one) { return one != all[0]; });
    if (other == all.end()) return;
    auto const split = [](std::string const& text) {
        std::vector<std::string> lines;
        std::istringstream in(text);
        for (std::string line; std::getline(in, line);) lines.push_back(line);
        return lines;
    };
    auto const here = split(all[0]), there = split(*other);
    auto const differ = std::mismatch(here.begin(), here.end(), there.begin(), there.end());
    auto const item = [](auto at, auto end) { return at == end ? std::string("nothing more") : *at; };
    throw Error(code::collective_mismatch, concat(who, ": the ranks disagree: rank 0 has ", item(differ.first, here.end()), ", rank ", other - all.begin(), " has ", item(differ.second, there.end()),
                                                  "; every rank must call it alike, with the same objects prepared and registered"));
}

}  // namespace accelerate::state
