// Backends that a build is without. Run by tests/misuse.py, which compiles this file without the precompiled header.
// flags: -UACCELERATE_WITH_MPI -DACCELERATE_WITH_MPI=0
#include <accelerate/comm/mpi.hpp>

int64_t ranks() {
#ifdef WRONG_absent_mpi  // comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON
    return accelerate::comm::Mpi::world().size();
#else
    return accelerate::comm::Self::world().size();
#endif
}
