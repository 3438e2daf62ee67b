#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/maximum.h>

#include <limits>

namespace accelerate::precision {

/// The largest magnitude in `a`, fp32 []; NaN where there is one. One pass, nothing as large as `a` is written.
inline at::Tensor magnitude(at::Tensor const& a) {
    auto const [low, high] = at::aminmax(a);
    return at::maximum(low.neg(), high).to(at::kFloat);
}

/// The largest magnitude in each row, fp32 [rows, 1]; NaN where there is one.
inline at::Tensor row_magnitudes(at::Tensor const& a) {
    // One pass on GPUs; on CPUs LibTorch's loop for this norm takes five times as long as two passes.
    if (a.is_cuda()) return at::linalg_vector_norm(a, std::numeric_limits<double>::infinity(), {1}, true, at::kFloat);
    return a.abs().amax({1}, true).to(at::kFloat);
}

}  // namespace accelerate::precision
