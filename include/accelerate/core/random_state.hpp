#pragma once

#include <ATen/Context.h>
#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <mutex>

namespace accelerate {

/// State of a device's default random generator: a copy, of some kilobytes.
inline at::Tensor random_state(at::DeviceType device) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard const lock(generator.mutex());
    return generator.get_state();
}

inline void set_random_state(at::DeviceType device, at::Tensor const& state) {
    auto generator = at::globalContext().defaultGenerator(device);
    std::lock_guard const lock(generator.mutex());
    generator.set_state(state);
}

}  // namespace accelerate
