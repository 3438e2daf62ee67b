#pragma once

#include <compare>
#include <cstdint>

namespace accelerate {

/// A count that knows what it counts: `OptimizerSteps{100}` cannot be passed where `Samples` are meant. Zero cost.
template <class Tag>
struct Count {
    int64_t value = 0;

    constexpr Count() = default;
    constexpr explicit Count(int64_t n) : value(n) {}

    constexpr auto operator<=>(Count const&) const = default;
    constexpr Count& operator+=(Count o) { value += o.value; return *this; }
    constexpr Count& operator-=(Count o) { value -= o.value; return *this; }
    friend constexpr Count operator+(Count a, Count b) { return a += b; }
    friend constexpr Count operator-(Count a, Count b) { return a -= b; }
};

namespace unit {
struct optimizer_steps { static constexpr char const* name = "optimizer steps"; };
struct samples { static constexpr char const* name = "samples"; };
struct tokens { static constexpr char const* name = "tokens"; };
struct epochs { static constexpr char const* name = "epochs"; };
struct bytes { static constexpr char const* name = "bytes"; };
}  // namespace unit

using OptimizerSteps = Count<unit::optimizer_steps>;  ///< updates of the parameters, whatever the number of ranks or micro-batches
using Samples = Count<unit::samples>;                 ///< samples consumed, over all ranks
using Tokens = Count<unit::tokens>;                   ///< tokens consumed, over all ranks
using Epochs = Count<unit::epochs>;                   ///< passes over the data set
using Bytes = Count<unit::bytes>;

}  // namespace accelerate
