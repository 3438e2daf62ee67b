#pragma once

#include <accelerate/comm/self.hpp>
#include <accelerate/core/config.hpp>

#if !ACCELERATE_WITH_MPI

namespace accelerate::comm {

/// Stands where `comm::Mpi` would be in a build without MPI: any use is one error that names the option.
template <class Use = void>
class AbsentMpi : public Self {
    static_assert(!std::same_as<Use, void>, "comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON (CMake) or define ACCELERATE_WITH_MPI=1, or use comm::Self or comm::Threads");

public:
    template <class... Arguments>
    explicit AbsentMpi(Arguments const&...) {}
    static AbsentMpi world() { return AbsentMpi(); }
};
using Mpi = AbsentMpi<>;

}  // namespace accelerate::comm

#endif
