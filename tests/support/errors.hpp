#pragma once
// What tests ask of errors.

#include "catch.hpp"

#include <accelerate/core/error.hpp>
#include <concepts>
#include <mutex>
#include <string>

inline std::mutex assertions;  ///< held by who asserts on a rank that is a thread: Catch2's assertions are not for several at once

/// An assertion that ranks which are threads may make.
inline void expect(bool fine, std::string const& what) {
    std::lock_guard const lock(assertions);
    INFO(what);
    CHECK(fine);
}

/// What a call throws: for an Error its code's name and its message.
template <class F>
std::string error_of(F&& f) {
    try {
        f();
    } catch (std::exception const& e) {
        return e.what();
    }
    return "nothing was thrown";
}

/// The code of the Error that a call throws.
template <class F>
accelerate::Code code_of(F&& f) {
    try {
        f();
    } catch (accelerate::Error const& e) {
        return e.code();
    }
    return {"nothing was thrown"};
}

/// Whether a text has all those parts.
inline bool has(std::string const& text, std::initializer_list<std::string> parts) {
    bool all = true;
    for (auto const& part : parts) {
        bool const found = text.find(part) != std::string::npos;
        expect(found, accelerate::concat("\"", part, "\" in \"", text, "\""));
        all = all && found;
    }
    return all;
}
template <class Part>
    requires std::convertible_to<Part const&, std::string>
bool has(std::string const& text, Part const& part) {
    return has(text, {std::string(part)});
}
