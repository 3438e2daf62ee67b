#pragma once

#include <accelerate/comm/wait.hpp>
#include <accelerate/core/streaming_copy.hpp>
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>

namespace accelerate::comm {

/// Copies what another core will read: through the caches, or past them. Past them where a cache line that the other core has read is slow to get
/// back, through them where it is not; the wrong way costs up to twice as long. The first large pieces go either way in turn, and the way
/// whose fastest round was faster, the peers' reading included, is kept. What arrives is the same.
class StageCopy {
public:
    /// One round: from here to the end of the scope, in which the piece is copied and what the peers have exposed is read.
    class Round {
    public:
        Round(StageCopy& copy, size_t bytes) : copy_(copy), counts_(copy.round_ < trials && bytes >= large) {
            if (counts_) start_ = Clock::now();
        }
        ~Round() {
            if (counts_) copy_.took(Clock::now() - start_);
        }
        Round(Round const&) = delete;
        Round& operator=(Round const&) = delete;

    private:
        StageCopy& copy_;
        bool counts_;
        Clock::time_point start_;
    };

    void operator()(std::byte* to, std::byte const* from, size_t n) const {
        if (past_) accelerate::kernel::streaming_copy(to, from, n);
        else if (n > 0) std::memcpy(to, from, n);
    }

    bool goes_past_caches() const { return past_; }

private:
    static constexpr int trials = 16;
    static constexpr size_t large = 64 << 10;

    void took(Clock::duration time) {
        auto& fastest = fastest_[past_ ? 1 : 0];
        fastest = std::min(fastest, time);
        past_ = ++round_ < trials ? !past_ : fastest_[1] < fastest_[0];
    }

    bool past_ = false;
    int round_ = 0;
    std::array<Clock::duration, 2> fastest_{Clock::duration::max(), Clock::duration::max()};
};

}  // namespace accelerate::comm
