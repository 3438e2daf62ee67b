#pragma once

#include <unistd.h>

#include "catch.hpp"

#include <cstdio>
#include <cstdlib>
#include <string>

/// What this process writes to stderr while `body` runs, whoever writes it.
template <class Body>
std::string stderr_of(Body&& body) {
    std::fflush(stderr);
    char path[] = "/tmp/accelerate_stderr_XXXXXX";
    int const file = ::mkstemp(path), before = ::dup(2);
    ::unlink(path);
    ::dup2(file, 2);
    body();
    std::fflush(stderr);
    ::dup2(before, 2);
    ::close(before);
    std::string text(static_cast<size_t>(::lseek(file, 0, SEEK_END)), '\0');
    auto const n = ::pread(file, text.data(), text.size(), 0);
    ::close(file);
    REQUIRE(n == static_cast<ssize_t>(text.size()));
    return text;
}
