#pragma once

#include <accelerate/core/error.hpp>
#include <cstdint>
#include <limits>

namespace accelerate {

/// What becomes of an optimizer step whose gradients have a NaN or an infinity, in every precision: `skip` (the default) leaves
/// parameters and optimizer state as they are, on every rank, and says so with the name of the first such parameter. It costs a read of
/// the gradients where neither clipping nor a gradient scaler has looked at them.
class NonFinite {
public:
    static constexpr NonFinite skip() { return NonFinite(std::numeric_limits<int64_t>::max()); }
    /// Error E_NONFINITE on every rank. Where a dynamic scaler can still shrink its scale the step is skipped: overflows are its way of
    /// finding it.
    static constexpr NonFinite raise() { return NonFinite(0); }
    /// As `skip`, but error E_NONFINITE at the k-th such step in a row, k >= 1.
    static NonFinite abort_after(int64_t k) {
        check(k >= 1, code::config, "NonFinite::abort_after: expected at least 1 step, found ", k);
        return NonFinite(k);
    }
    /// As `skip`, but the window is computed once more first: the loop gets its batches again and random numbers come as they came. Finite
    /// then, the step is made, and the fault was one of the machine; else it is the data's or the model's, and is skipped. For bodies of a
    /// range-for over a prepared loader that call `accumulate`, which keeps the batches of one window (after a resume from the next one on);
    /// buffers (running statistics) see them twice. A dynamic scaler that can still shrink its scale comes first.
    static constexpr NonFinite rerun() { return NonFinite(-2); }
    /// Steps all the same, as Python does without a scaler. Not for precisions that scale.
    static constexpr NonFinite ignore() { return NonFinite(-1); }

    constexpr bool ignores() const { return limit_ == -1; }
    constexpr bool reruns() const { return limit_ == -2; }
    constexpr bool raises() const { return limit_ == 0; }
    /// Whether that many steps in a row are too many.
    constexpr bool aborts(int64_t in_a_row) const { return limit_ > 0 && in_a_row >= limit_; }

private:
    explicit constexpr NonFinite(int64_t limit) : limit_(limit) {}

    int64_t limit_;
};

}  // namespace accelerate
