#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/comm/communicator.hpp>
#include <concepts>

namespace accelerate {

/// A device policy: where tensors live, and which communicator belongs there.
///   `communicator`    how ranks that hold such tensors talk; need not be native to the device
///   `type`            LibTorch's device type; what plugs in as PrivateUse1 (NPU, MLU) says so
///   `name`            as people write it: "cpu", "cuda"
///   `current()`       the device of the calling rank
///   `synchronize()`   returns when the work given to the device is done
/// Two more are used where a policy has them: `select(local_rank)`, called once by each accelerator before anything else, makes the
/// rank's device the thread's; `empty_cache()` gives back memory that LibTorch keeps.
/// Hardware without streams leaves `synchronize` empty. Hardware without a communicator of its own names one that takes CPU
/// tensors. `device::BasicCpu` is the shortest model of how to write one.
template <class D>
concept device_policy = comm::communicator<typename D::communicator> && requires {
    { D::type } -> std::convertible_to<at::DeviceType>;
    { D::name } -> std::convertible_to<char const*>;
    { D::current() } -> std::same_as<at::Device>;
    D::synchronize();
};

}  // namespace accelerate
