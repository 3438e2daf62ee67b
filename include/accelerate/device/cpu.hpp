#pragma once

#include <accelerate/comm/mpi.hpp>
#include <accelerate/comm/self.hpp>
#include <accelerate/core/config.hpp>
#include <accelerate/device/policy.hpp>

namespace accelerate::device {

/// Tensors in main memory; ranks talk through `Comm`. Tests use `BasicCpu<comm::Threads>`: ranks that are threads.
template <comm::communicator Comm>
struct BasicCpu {
    using communicator = Comm;
    static constexpr at::DeviceType type = at::kCPU;
    static constexpr char const* name = "cpu";

    static at::Device current() { return at::kCPU; }
    static void synchronize() {}
};

#if ACCELERATE_WITH_MPI
/// Processes that mpirun started, or one process.
using Cpu = BasicCpu<comm::Mpi>;
#else
/// One process: this build has no MPI (ACCELERATE_WITH_MPI).
using Cpu = BasicCpu<comm::Self>;
#endif

}  // namespace accelerate::device
