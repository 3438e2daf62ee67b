#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/data/loops.hpp>
#include <functional>
#include <string>
#include <string_view>

namespace accelerate::data {

/// How a loader speaks to the same loader on other ranks: what streams and `loader::Dispatched` need of a communicator.
struct Channel {
    std::function<std::vector<std::string>(std::string_view)> exchange;  ///< what every rank says, on every rank; collective
    std::function<void(at::Tensor const&, int64_t to)> send;             ///< a 1-D byte tensor in main memory
    std::function<void(at::Tensor const&, int64_t from)> receive;        ///< into such a tensor

    explicit operator bool() const { return static_cast<bool>(exchange); }
};

/// Where a loader is used: whose share of the batches it hands out, where they go, and who is told about the last one. The
/// default is one process without an accelerator.
struct Context {
    int64_t rank = 0, size = 1;
    at::Device device = at::kCPU;
    std::shared_ptr<Loops> loops = std::make_shared<Loops>();
    Channel channel = {};
};

}  // namespace accelerate::data
