#pragma once

#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace accelerate::state {

/// How a thread that writes beside training lets it go first: it rests three times as long as it has computed, and so takes its share of the
/// memory's rate from several steps a little instead of from one all; until somebody waits for it. Waiting for the disk counts as rest.
class Pace {
public:
    /// By the thread, now and then.
    void rest() {
        constexpr std::chrono::nanoseconds worth = std::chrono::microseconds(500), longest = std::chrono::milliseconds(20);
        auto const computed = this_thread() - before_;
        if (hurried() || computed < worth) return;
        std::this_thread::sleep_for(std::min(3 * computed, longest));
        before_ = this_thread();
    }
    /// By who waits for the thread: it rests no more.
    void hurry() { hurried_.store(true, std::memory_order_relaxed); }
    bool hurried() const { return hurried_.load(std::memory_order_relaxed); }

private:
    static std::chrono::nanoseconds this_thread() {
        timespec used{};
        ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
        return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
    }

    std::chrono::nanoseconds before_{0};
    std::atomic<bool> hurried_ = false;
};

}  // namespace accelerate::state
