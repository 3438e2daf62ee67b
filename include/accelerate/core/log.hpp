#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/session.hpp>
#include <cstdio>

namespace accelerate::log {

/// Who speaks: by default rank 0 for all, since N ranks saying the same thing is noise.
enum class From { Main, Everyone };

namespace detail {
inline void line(char const* level, std::string const& text) {
    // One write, so that lines of several ranks do not interleave.
    auto const whole = concat("[accelerate", Session::instance().size() > 1 ? concat(" rank ", Session::instance().rank()) : "", "] ", level, text, "\n");
    std::fwrite(whole.data(), 1, whole.size(), stderr);
}
inline bool speaks(From from) { return from == From::Everyone || Session::instance().rank() == 0; }
}  // namespace detail

/// Notices go to stderr: stdout belongs to the user (and to `accelerator.print`).
template <class... Parts>
void info(Parts const&... parts) {
    if (detail::speaks(From::Main)) detail::line("", concat(parts...));
}

template <class... Parts>
void warning(From from, Parts const&... parts) {
    if (detail::speaks(from)) detail::line("warning: ", concat(parts...));
}

template <class... Parts>
void warning(Parts const&... parts) {
    warning(From::Main, parts...);
}

/// Says each text once in the life of the process.
template <class... Parts>
void warning_once(Parts const&... parts) {
    auto text = concat(parts...);
    if (detail::speaks(From::Main) && Session::instance().first_time(text)) detail::line("warning: ", text);
}

}  // namespace accelerate::log
