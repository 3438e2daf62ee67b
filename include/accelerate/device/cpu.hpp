#pragma once

#include <accelerate/comm/processes.hpp>
#include <accelerate/device/availability.hpp>
#include <accelerate/device/policy.hpp>

namespace accelerate::device {

/// Tensors in main memory; ranks talk through `Comm`. Tests use `BasicCpu<comm::Threads>`: ranks that are threads.
template <comm::communicator Comm>
struct BasicCpu {
    using communicator = Comm;
    static constexpr at::DeviceType type = at::kCPU;
    static constexpr char const* name = "cpu";

    static Availability available() { return {1}; }
    static at::Device current() { return at::kCPU; }
    static void synchronize() {}
};

/// Processes that mpirun started, or one process.
using Cpu = BasicCpu<comm::Processes>;

}  // namespace accelerate::device
