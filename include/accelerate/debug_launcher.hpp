#pragma once

#include <accelerate/comm/threads.hpp>

namespace accelerate {

/// Runs `body(communicator)` on `n` ranks that are threads of this process (Python's `debug_launcher`): a distributed run on a
/// laptop, in a debugger, without mpirun. The body makes its Accelerator with that communicator and
/// `device::BasicCpu<comm::Threads>`. Returns when all ranks have; throws what the first failing rank threw.
template <class Body>
void debug_launcher(int64_t n, Body&& body) {
    comm::Threads::run(n, std::forward<Body>(body));
}

}  // namespace accelerate
