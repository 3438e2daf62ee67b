#pragma once

#include <signal.h>
#include <unistd.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/log.hpp>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <random>
#include <string>
#include <string_view>
#include <system_error>

namespace accelerate::state {

inline std::string host_name() {
    char name[256] = "";
    ::gethostname(name, sizeof name - 1);
    return name;
}

/// A name for a file or folder in which `name` is prepared: hidden, and it says by which process.
inline std::string hidden_name(std::string const& name) {
    std::random_device random;
    return concat(".tmp~", name.substr(0, 100), "~", host_name().substr(0, 60), "~", ::getpid(), "~", random(), random());
}

/// Removes the hidden files and folders that processes of this machine left in `folder` when they were killed. Those of other machines stay:
/// nobody here can tell whether they still write.
inline void remove_leftovers(std::filesystem::path const& folder) {
    std::error_code failed;
    for (std::filesystem::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
        auto const path = at->path();
        auto name = path.filename().string();
        if (!name.starts_with(".tmp~")) continue;
        auto const last_field = [&] {
            auto const begin = name.rfind('~');
            auto field = begin == std::string::npos ? std::string() : name.substr(begin + 1);
            name.resize(begin == std::string::npos ? 0 : begin);
            return field;
        };
        last_field();
        auto const pid = last_field(), host = last_field();
        pid_t number = 0;
        bool const dead = std::from_chars(pid.data(), pid.data() + pid.size(), number).ec == std::errc() && number > 0 && host == host_name().substr(0, 60) && ::kill(number, 0) != 0 && errno == ESRCH;
        std::error_code kept;
        if (dead && std::filesystem::remove_all(path, kept) > 0 && !kept) log::info("removed ", path, ", which a save left that was killed");
    }
}

}  // namespace accelerate::state
