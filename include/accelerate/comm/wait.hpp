#pragma once

#include <sched.h>

#include <chrono>
#include <cstdint>
#include <thread>

namespace accelerate::comm {

using Clock = std::chrono::steady_clock;

/// Tells the core that this is a waiting loop.
inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

/// Waits until `ready()`: 200 pauses (a peer that runs answers within them), then gives the core to whoever can use it, and after
/// 20 ms sleeps between looks. Pure spinning costs a third of the step when ranks share cores. `examine(elapsed)` is called now
/// and then and may throw.
template <class Ready, class Examine>
void wait_until(Ready&& ready, Examine&& examine) {
    for (int i = 0; i < 200; ++i) {
        if (ready()) return;
        relax();
    }
    auto const start = Clock::now();
    for (uint32_t i = 1;; ++i) {
        if (ready()) return;
        sched_yield();
        if (i % 64 != 0) continue;
        auto elapsed = Clock::now() - start;
        examine(elapsed);
        for (; elapsed > std::chrono::milliseconds(20) && !ready(); elapsed = Clock::now() - start) {
            std::this_thread::sleep_for(std::chrono::microseconds(50));
            examine(elapsed);
        }
    }
}

}  // namespace accelerate::comm
