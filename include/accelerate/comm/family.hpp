#pragma once

#include <signal.h>

#include <accelerate/comm/recorder.hpp>
#include <accelerate/comm/recorder_signal.hpp>
#include <accelerate/comm/region.hpp>
#include <cerrno>
#include <optional>

namespace accelerate::comm {

/// Where a rank says, to the ranks of its node, that it has gone and why. In memory that all of them see.
struct alignas(64) Presence {
    static constexpr size_t max_reason = 496;
    std::atomic<int64_t> pid;       ///< 0 where peers cannot look for the process
    std::atomic<uint32_t> state;    ///< 0 here, 1 about to say why, 2 gone
    char reason[max_reason];
};

/// What all communicators of one rank have in common, those it was given and those split from them: who is still there on this
/// node, and the flight recorder.
class Family {
public:
    Family(Region memory, int64_t me, int64_t rank, int64_t size) : recorder(rank, size), memory_(std::move(memory)), me_(me) {}

    static size_t bytes(int64_t members) { return sizeof(Presence) * static_cast<size_t>(members); }

    /// Tells whoever waits for this rank that it will not come. Only the first reason counts.
    void leave(std::string_view reason) noexcept {
        auto& mine = presence(me_);
        uint32_t here = 0;
        if (!mine.state.compare_exchange_strong(here, 1)) return;
        auto const length = std::min(reason.size(), Presence::max_reason - 1);
        std::memcpy(mine.reason, reason.data(), length);
        mine.reason[length] = '\0';
        mine.state.store(2, std::memory_order_release);
    }

    /// Why the member has left, if it has.
    std::optional<std::string> gone(int64_t member) const {
        auto const& p = presence(member);
        if (p.state.load(std::memory_order_acquire) != 2) return {};
        return std::string(p.reason);
    }

    /// Its process has ended without a word. Costs a system call.
    bool dead(int64_t member) const {
        auto const pid = presence(member).pid.load(std::memory_order_relaxed);
        return pid != 0 && kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH;
    }

    void set_pid(int64_t pid) { presence(me_).pid.store(pid, std::memory_order_relaxed); }
    int64_t me() const { return me_; }

    Recorder recorder;
    std::atomic<int64_t> groups{0};  ///< numbers the communicators of this rank, for messages

private:
    Presence& presence(int64_t member) const { return reinterpret_cast<Presence*>(memory_.data)[member]; }

    RecorderSignal signal_{recorder};
    Region memory_;
    int64_t me_;
};

}  // namespace accelerate::comm
