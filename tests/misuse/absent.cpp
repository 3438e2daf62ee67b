// Backends that a build is without. Run by tests/misuse.py, which compiles this file without the precompiled header.
// flags: -UACCELERATE_WITH_MPI -DACCELERATE_WITH_MPI=0 -UACCELERATE_WITH_CUDA -DACCELERATE_WITH_CUDA=0 -UACCELERATE_WITH_NCCL -DACCELERATE_WITH_NCCL=0
#include <accelerate/device/cuda.hpp>
#include <accelerate/partial_state.hpp>

int64_t ranks() {
#if defined(WRONG_absent_mpi)  // comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON
    return accelerate::comm::Mpi::world().size();
#elif defined(WRONG_absent_mpi_device)  // comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON
    return accelerate::PartialState<accelerate::device::BasicCpu<accelerate::comm::Mpi>>().num_processes();
#elif defined(WRONG_absent_nccl)  // comm::Nccl: this build is without NCCL; set ACCELERATE_WITH_NCCL=ON
    return accelerate::comm::Nccl::world().size();
#elif defined(WRONG_absent_cuda)  // device::Cuda: this build is without CUDA; set ACCELERATE_WITH_CUDA=ON
    return accelerate::PartialState<accelerate::device::Cuda>().num_processes();
#else
    return accelerate::comm::Self::world().size();
#endif
}
