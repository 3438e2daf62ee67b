#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/random_state.hpp>
#include <accelerate/data/loops.hpp>
#include <memory>

namespace accelerate {

/// Has an accumulation window computed once more: the loop's next bodies get its batches again, and random numbers come as they came.
/// What the first computation has done to buffers (running statistics) stays.
class Rerun {
public:
    Rerun(std::shared_ptr<data::Loops> loops, at::DeviceType device) : loops_(std::move(loops)), device_(device) { loops_->keep_windows(); }

    /// The first micro-batch of a window begins.
    void window_begins() {
        loops_->window_begins();
        again_ = loops_->at_rerun();
        if (again_) {
            set_random_state(at::kCPU, cpu_);
            if (device_ != at::kCPU) set_random_state(device_, other_);
        } else {
            cpu_ = random_state(at::kCPU);
            if (device_ != at::kCPU) other_ = random_state(device_);
        }
    }

    /// The present window is a second computation.
    bool again() const { return again_; }
    /// Asks for a second one; false where there is no loop over a prepared loader whose bodies `accumulate`.
    bool request() { return loops_->rerun(); }

private:
    std::shared_ptr<data::Loops> loops_;
    at::DeviceType device_;
    at::Tensor cpu_, other_;
    bool again_ = false;
};

}  // namespace accelerate
