#pragma once

#include <ATen/core/Tensor.h>

namespace accelerate {

/// Whether two tensors are the same elements in the same order: there is nothing to copy from one to the other.
inline bool same_memory(at::Tensor const& a, at::Tensor const& b) {
    return a.const_data_ptr() == b.const_data_ptr() && a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.strides() == b.strides();
}

}  // namespace accelerate
