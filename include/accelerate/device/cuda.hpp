#pragma once

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accelerate/comm/nccl.hpp>
#include <accelerate/device/availability.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/device/cuda_library.hpp>
#include <accelerate/device/policy.hpp>
#include <type_traits>

#if ACCELERATE_WITH_CUDA

namespace accelerate::device {

/// NVIDIA GPUs, one for each rank of a node; ranks talk through `Comm`. Needs a LibTorch with CUDA at run time, not at compile time:
/// `libtorch_cuda` is loaded by the first use where the program is not linked to it.
template <comm::communicator Comm>
struct BasicCuda {
    using communicator = Comm;
    static constexpr at::DeviceType type = at::kCUDA;
    static constexpr char const* name = "cuda";

    /// The GPUs that this process sees. Loads LibTorch's CUDA library; ask before any other question about CUDA.
    static Availability available() {
        if (auto const& why = not_loaded(); !why.empty()) return {0, why};
        auto const n = c10::impl::VirtualGuardImpl(type).deviceCount();
        return {n, n > 0 ? "" : "no GPU is visible: there is none, its driver is missing, or CUDA_VISIBLE_DEVICES hides it"};
    }

    /// Makes the GPU of the rank with that number on its node the calling thread's: one each, in turn where there are fewer. Error
    /// E_CONFIG where there is none.
    static void select(int64_t local_rank) {
        auto const there = available();
        check(static_cast<bool>(there), code::config, "device::Cuda on local rank ", local_rank, ": ", there.reason, "; use device::Cpu");
        c10::impl::VirtualGuardImpl(type).setDevice(at::Device(type, static_cast<at::DeviceIndex>(local_rank % there.count)));
    }

    static at::Device current() {
        if (auto const there = available(); !there) throw Error(code::config, concat("device::Cuda: ", there.reason, "; use device::Cpu"));
        return c10::impl::VirtualGuardImpl(type).getDevice();
    }
    static void synchronize() { c10::impl::VirtualGuardImpl(type).synchronizeDevice(current().index()); }
    /// Gives the memory that LibTorch keeps for later back to the GPU.
    static void empty_cache() { at::getDeviceAllocator(type)->emptyCache(); }

private:
    /// Why LibTorch's CUDA library cannot be had; empty where it is there.
    static std::string const& not_loaded() {
        static std::string const why = [] {
            if (c10::impl::hasDeviceGuardImpl(type)) return std::string();
            auto const library = CudaLibrary::load("libtorch_cuda.so");
            return library.handle != nullptr ? std::string() : "LibTorch's CUDA library cannot be loaded (" + library.why + ")";
        }();
        return why;
    }
};

/// One GPU for each process that mpirun started: NCCL where the build has it, else pinned memory and MPI.
using Cuda = BasicCuda<std::conditional_t<ACCELERATE_WITH_NCCL == 1, comm::Nccl, comm::Staged<comm::Processes, at::kCUDA>>>;

}  // namespace accelerate::device

#else

namespace accelerate::device {

/// Stands where `device::Cuda` would be in a build without CUDA: an accelerator on it is one error that names the option.
template <class Use = void>
struct AbsentCuda : Cpu {
    static constexpr bool absent = true;

    static void select(int64_t /*local_rank*/) { refuse(); }
    static Availability available() {
        refuse();
        return {};
    }

private:
    static constexpr void refuse() {
        static_assert(!std::same_as<Use, void>, "device::Cuda: this build is without CUDA; set ACCELERATE_WITH_CUDA=ON (CMake) or define ACCELERATE_WITH_CUDA=1, or use device::Cpu");
    }
};
using Cuda = AbsentCuda<>;

}  // namespace accelerate::device

#endif
