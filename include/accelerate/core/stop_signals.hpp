#pragma once

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <mutex>
#include <string_view>

namespace accelerate {

/// While one of these lives, the first SIGTERM, SIGINT or SIGUSR1 only asks this process to stop (`requested`), which is said on stderr; a
/// second one ends it at once. Signals that the program ignores or handles itself stay its own.
class StopSignals {
public:
    StopSignals() {
        std::lock_guard const lock(mutex());
        if (users()++ > 0) return;
        for (size_t i = 0; i < numbers.size(); ++i) {
            struct sigaction before {};
            ours()[i] = ::sigaction(numbers[i], nullptr, &before) == 0 && (before.sa_flags & SA_SIGINFO) == 0 && before.sa_handler == SIG_DFL;
            if (!ours()[i]) continue;
            struct sigaction action {};
            action.sa_handler = &handle;
            action.sa_flags = SA_RESTART;
            ::sigaction(numbers[i], &action, nullptr);
        }
    }
    ~StopSignals() {
        std::lock_guard const lock(mutex());
        if (--users() > 0) return;
        for (size_t i = 0; i < numbers.size(); ++i)
            if (ours()[i]) ::signal(numbers[i], SIG_DFL);
    }
    StopSignals(StopSignals const&) = delete;
    StopSignals& operator=(StopSignals const&) = delete;

    /// The signal that has come; 0: none.
    static int requested() { return received(); }

private:
    static constexpr std::array numbers{SIGTERM, SIGINT, SIGUSR1};

    static void handle(int number) {
        if (received().exchange(number) != 0) {
            ::signal(number, SIG_DFL);
            ::raise(number);
            return;
        }
        constexpr std::string_view text = "[accelerate] a signal asks to stop: a checkpoint is written at the next step or batch; once more ends at once\n";
        static_cast<void>(!::write(STDERR_FILENO, text.data(), text.size()));
    }

    // What a handler can reach, and what belongs to the process as its handlers do.
    static std::atomic<int>& received() {
        static std::atomic<int> number = 0;
        static_assert(std::atomic<int>::is_always_lock_free);
        return number;
    }
    static std::mutex& mutex() {
        static std::mutex m;
        return m;
    }
    static int& users() {
        static int n = 0;
        return n;
    }
    static std::array<bool, numbers.size()>& ours() {
        static std::array<bool, numbers.size()> which{};
        return which;
    }
};

}  // namespace accelerate
