#pragma once

#include <cstdint>
#include <string>

namespace accelerate::device {

/// How many devices of a kind this process sees, and where there is none, why not: what `device::X::available()` gives.
struct Availability {
    int64_t count = 0;
    std::string reason = {};  ///< empty where there is one

    explicit operator bool() const { return count > 0; }
};

}  // namespace accelerate::device
