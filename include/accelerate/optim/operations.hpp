#pragma once

namespace accelerate {

/// Which operations an optimizer and the clipping of its gradients are made of.
enum class Operations {
    Fused,  ///< over flat buffers: the fastest; equal to Python within rounding
    Torch,  ///< Python's operations in Python's order (one list entry per parameter): the same bits as `fused=True` in Python
};

}  // namespace accelerate
