#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/random_state.hpp>
#include <accelerate/data/loops.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace accelerate {

/// Has an accumulation window computed once more: the loop's next bodies get its batches again, and random numbers come as they came.
/// What the first computation has done to buffers (running statistics) stays. A run that is resumed inside of a window has lost its first batches,
/// and does not compute it once more.
class Rerun {
public:
    Rerun(std::shared_ptr<data::Loops> loops, at::DeviceType device) : loops_(std::move(loops)), device_(device) { loops_->keep_windows(); }

    /// The first micro-batch of a window begins.
    void window_begins() {
        loops_->window_begins();
        bool const resumed = std::exchange(next_, false);
        again_ = loops_->at_rerun() || resumed;
        if (again_) {
            set_random_state(at::kCPU, cpu_);
            if (device_ != at::kCPU) set_random_state(device_, other_);
        } else keep_random_state();
    }

    /// The present window is a second computation.
    bool again() const { return again_; }
    /// Asks for a second one; false where there is no loop over a prepared loader whose bodies `accumulate`.
    bool request() {
        asked_ = loops_->rerun();
        return asked_.has_value();
    }

    // ---- what a checkpoint keeps: a run that is resumed before the second computation begins with that one, one that is within it goes on ----

    at::Tensor saved_random_state(at::DeviceType device) const { return !waits() ? random_state(device) : device == at::kCPU ? cpu_ : other_; }
    /// Which window is a second computation: the next, the present or neither.
    char const* state() const { return waits() ? "next" : again_ ? "present" : "neither"; }
    static bool is_state(std::string const& s) { return s == "next" || s == "present" || s == "neither"; }
    /// Behind the random streams.
    void restore(std::string const& s) {
        next_ = s == "next", again_ = s == "present";
        asked_.reset();
        if (next_) keep_random_state();
    }

private:
    bool waits() const { return next_ || (asked_ && loops_->rerun_from(*asked_) != nullptr); }
    void keep_random_state() {
        cpu_ = random_state(at::kCPU);
        if (device_ != at::kCPU) other_ = random_state(device_);
    }

    std::shared_ptr<data::Loops> loops_;
    at::DeviceType device_;
    at::Tensor cpu_, other_;
    bool again_ = false, next_ = false;
    std::optional<int64_t> asked_;  // the loop that gives a window again
};

}  // namespace accelerate
