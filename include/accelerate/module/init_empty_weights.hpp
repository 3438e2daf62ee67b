#pragma once

#include <accelerate/module/record.hpp>

namespace accelerate {

/// While alive, modules are built without memory: every parameter and buffer is a meta tensor (Python's `init_empty_weights`).
/// Costs microseconds a layer, however large. Constructors that need the value of a tensor fail, with LibTorch's own error.
class [[nodiscard]] init_empty_weights : module::Recording {
public:
    init_empty_weights() : Recording(nullptr) {}
};

}  // namespace accelerate
