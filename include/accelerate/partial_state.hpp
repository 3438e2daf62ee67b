#pragma once

#include <accelerate/device/cpu.hpp>
#include <accelerate/process_control.hpp>
#include <utility>

namespace accelerate {

/// Process control without training (Python's `PartialState`): who this process is, turns, splitting of work, bytes between ranks.
/// Cheap to make; any number may exist, and they share nothing but the communicator.
template <device_policy Device = device::Cpu>
class PartialState : public ProcessControl<PartialState<Device>> {
public:
    using communicator = typename Device::communicator;

    explicit PartialState(communicator c = communicator::world()) : comm_(std::move(c)) {
        if constexpr (requires { Device::select(int64_t{}); }) Device::select(comm_.local_rank());
    }

    at::Device device() const { return Device::current(); }
    std::string distributed_type() const { return accelerate::distributed_type(Device::name, this->num_processes()); }
    communicator const& comm() const { return comm_; }

private:
    communicator comm_;
};

}  // namespace accelerate
