// Backends that a build is without. Run by tests/misuse.py, which compiles this file without the precompiled header.
// flags: -UACCELERATE_WITH_MPI -DACCELERATE_WITH_MPI=0 -UACCELERATE_WITH_CUDA -DACCELERATE_WITH_CUDA=0 -UACCELERATE_WITH_NCCL -DACCELERATE_WITH_NCCL=0
#include <accelerate/device/cuda.hpp>
#include <accelerate/partial_state.hpp>

int64_t ranks() { return accelerate::comm::Self::world().size(); }

#ifdef WRONG_absent_mpi  // comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON
int64_t mpi() { return accelerate::comm::Mpi::world().size(); }
#endif
#ifdef WRONG_absent_mpi_device  // comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON
int64_t mpi_device() { return accelerate::PartialState<accelerate::device::BasicCpu<accelerate::comm::Mpi>>().num_processes(); }
#endif
#ifdef WRONG_absent_nccl  // comm::Nccl: this build is without NCCL; set ACCELERATE_WITH_NCCL=ON
int64_t nccl() { return accelerate::comm::Nccl::world().size(); }
#endif
#ifdef WRONG_absent_cuda  // device::Cuda: this build is without CUDA; set ACCELERATE_WITH_CUDA=ON
int64_t cuda() { return accelerate::PartialState<accelerate::device::Cuda>().num_processes(); }
#endif
