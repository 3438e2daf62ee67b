#pragma once

#include <accelerate/module/placement.hpp>
#include <accelerate/precision/fp32.hpp>

namespace accelerate {

/// What a model is a template over: how its units are held and how its arithmetic leaves compute. `Accelerator::strategy` is one.
template <class Placement, class Precision>
struct Strategy {
    using placement = Placement;
    using precision = Precision;
};

/// Resident and fp32: a model over it is an ordinary LibTorch module.
using Plain = Strategy<place::Resident, precision::Fp32>;

template <class S>
concept strategy = placement<typename S::placement> && precision_policy<typename S::precision>;

}  // namespace accelerate
