#pragma once

#include <accelerate/comm/mpi.hpp>
#include <accelerate/comm/self.hpp>
#include <type_traits>

namespace accelerate::comm {

/// The processes of this run: over MPI where the build has it, else one alone.
using Processes = std::conditional_t<ACCELERATE_WITH_MPI == 1, Mpi, Self>;

}  // namespace accelerate::comm
