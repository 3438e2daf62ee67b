#pragma once

#include <accelerate/core/config.hpp>
#include <accelerate/core/error.hpp>
#include <accelerate/core/session.hpp>

#if ACCELERATE_WITH_MPI

// Without MPI-2's C++ bindings, which Open MPI 4 offers by default and which want a library of their own.
#ifndef OMPI_SKIP_MPICXX
#define OMPI_SKIP_MPICXX 1
#endif
#ifndef MPICH_SKIP_MPICXX
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include <cstdlib>
#include <string>

namespace accelerate::comm::mpi {

/// Error E_INTERNAL with MPI's own words when a call has failed.
inline void call(int status, char const* what) {
    if (status == MPI_SUCCESS) [[likely]] return;
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    MPI_Error_string(status, text, &length);
    throw Error(code::internal, concat(what, ": ", std::string(text, static_cast<size_t>(length))));
}

inline bool initialised() {
    int flag = 0;
    MPI_Initialized(&flag);
    return flag != 0;
}
inline bool finalised() {
    int flag = 0;
    MPI_Finalized(&flag);
    return flag != 0;
}
inline bool running() { return initialised() && !finalised(); }

/// A launcher (mpirun, srun, anything that speaks PMI) has started this process as one of several.
inline bool launched() {
    for (auto const* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD", "MPI_LOCALRANKID", "MV2_COMM_WORLD_SIZE"})
        if (std::getenv(name)) return true;
    return std::getenv("SLURM_STEP_ID") && std::getenv("SLURM_PROCID") && std::getenv("SLURM_STEP_NUM_TASKS") && std::string(std::getenv("SLURM_STEP_NUM_TASKS")) != "1";
}

/// The calling thread may call MPI: any may with MPI_THREAD_MULTIPLE, else only the one that initialised it.
inline bool may_call() {
    int level = 0, main = 0;
    MPI_Query_thread(&level);
    if (level == MPI_THREAD_MULTIPLE) return true;
    MPI_Is_thread_main(&main);
    return main != 0;
}

/// Makes MPI usable; false where this process was not started by a launcher and the application has not initialised it.
/// What was initialised here is finalised here, by `Session::finalise`; an application that calls MPI_Init itself also leaves.
inline bool enter() {
    if (running()) return true;
    check(!finalised(), code::call_order, "comm::Mpi: MPI has been finalised already");
    if (!launched()) return false;
    int provided = 0;
    // Open MPI's own waits should give the core away too, unless the user has said otherwise.
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    call(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided), "MPI_Init_thread");
    return true;
}

}  // namespace accelerate::comm::mpi

#endif
