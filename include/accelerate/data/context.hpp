#pragma once

#include <accelerate/data/channel.hpp>
#include <accelerate/data/loops.hpp>

namespace accelerate::data {

/// Where a loader is used: whose share of the batches it hands out, where they go, and who is told about the last one. The
/// default is one process without an accelerator.
struct Context {
    int64_t rank = 0, size = 1;
    at::Device device = at::kCPU;
    std::shared_ptr<Loops> loops = std::make_shared<Loops>();
    Channel channel = {};
};

}  // namespace accelerate::data
