#pragma once

#define ACCELERATE_VERSION_MAJOR 0
#define ACCELERATE_VERSION_MINOR 1
#define ACCELERATE_VERSION_PATCH 0

#include <cstdint>

namespace accelerate {

/// The library's version, for programs that would rather not use macros.
struct Version {
    int64_t major = ACCELERATE_VERSION_MAJOR;
    int64_t minor = ACCELERATE_VERSION_MINOR;
    int64_t patch = ACCELERATE_VERSION_PATCH;
};

inline constexpr Version version{};

}  // namespace accelerate
