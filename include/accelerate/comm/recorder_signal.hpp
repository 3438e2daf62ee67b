#pragma once

#include <fcntl.h>
#include <signal.h>

#include <accelerate/comm/recorder.hpp>
#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

namespace accelerate::comm {

/// While one of these lives, SIGUSR2 makes this process write the flight recorders of all its ranks, wherever their threads hang.
/// A handler may do next to nothing, so it wakes a thread that sleeps until then. A handler of the application's own is left alone.
class RecorderSignal {
public:
    explicit RecorderSignal(Recorder& recorder) : recorder_(&recorder) {
        auto& p = process();
        std::lock_guard lock(p.mutex);
        std::set<int64_t> taken;
        for (auto const& [other, number] : p.recorders)
            if (other->rank() == recorder.rank()) taken.insert(number);
        int64_t number = 0;
        while (taken.count(number)) ++number;
        recorder.set_number(number);
        p.recorders.emplace(recorder_, number);
        if (!std::exchange(p.tried, true)) listen(p);
    }
    ~RecorderSignal() {
        auto& p = process();
        std::lock_guard lock(p.mutex);
        p.recorders.erase(recorder_);
    }
    RecorderSignal(RecorderSignal const&) = delete;
    RecorderSignal& operator=(RecorderSignal const&) = delete;

private:
    struct Process {
        std::mutex mutex;
        std::map<Recorder*, int64_t> recorders;  // with their numbers among those of the same rank
        bool tried = false;
    };

    /// Never destroyed: its thread may outlive every static object.
    static Process& process() {
        static auto* const it = new Process;
        return *it;
    }

    static std::atomic<int>& bell() {
        static std::atomic<int> write_end{-1};
        return write_end;
    }
    static std::atomic<pid_t>& owner() {
        static std::atomic<pid_t> pid{0};  // a forked child has the handler but not the thread
        return pid;
    }

    static void ring(int) {
        auto const error = errno;
        if (owner().load(std::memory_order_relaxed) == getpid()) {
            [[maybe_unused]] auto const n = write(bell().load(std::memory_order_relaxed), "", 1);
        }
        errno = error;
    }

    static void listen(Process& p) {
        struct sigaction before {};
        if (sigaction(SIGUSR2, nullptr, &before) != 0 || (before.sa_flags & SA_SIGINFO) != 0 || before.sa_handler != SIG_DFL) return;
        int ends[2];
        if (pipe2(ends, O_CLOEXEC) != 0) return;
        bell() = ends[1], owner() = getpid();
        // The application's signals are not for this thread.
        sigset_t all, mask;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &mask);
        try {
            std::thread([&p, read_end = ends[0]] {
                for (char c = 0; read(read_end, &c, 1) == 1;) {
                    std::lock_guard lock(p.mutex);
                    for (auto const& [recorder, number] : p.recorders) recorder->dump("SIGUSR2");
                }
            }).detach();
        } catch (std::system_error const&) {
            // No thread to spare: the signal keeps its meaning.
            pthread_sigmask(SIG_SETMASK, &mask, nullptr);
            return;
        }
        pthread_sigmask(SIG_SETMASK, &mask, nullptr);
        struct sigaction ours {};
        ours.sa_handler = ring;
        ours.sa_flags = SA_RESTART;
        sigaction(SIGUSR2, &ours, nullptr);
    }

    Recorder* recorder_;
};

}  // namespace accelerate::comm
