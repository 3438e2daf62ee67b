#include "support/conformance.hpp"

#include <accelerate/comm/self.hpp>
#include <accelerate/comm/threads.hpp>

namespace acc = accelerate;
namespace comm = accelerate::comm;

namespace {

struct OnSelf {
    int64_t size() const { return 1; }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return comm::transport_options{.stage_bytes = 4096}.fitted(1); }
    template <class F>
    void operator()(F&& f) const {
        f(comm::Self());
    }
};

struct OnThreads {
    int64_t ranks;
    comm::transport_options given = {};

    int64_t size() const { return ranks; }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return given.fitted(ranks); }
    template <class F>
    void operator()(F&& f) const {
        comm::Threads::run(ranks, f, given);
    }
};

/// So small that nearly everything goes in several pieces.
constexpr comm::transport_options small{.stage_bytes = 1000, .pipe_bytes = 100, .small_bytes = 300};

}  // namespace

// ---- what every communicator promises ------------------------------------------------------------------------------------------

TEST_CASE("Self conforms", "[self][solo][communicator][operations]") { conformance::conform(OnSelf{}); }

TEST_CASE("Threads conform", "[threads][communicator][operations][transfer][reducer][letters][split]") {
    auto const ranks = GENERATE(1, 2, 3, 4);
    CAPTURE(ranks);
    conformance::conform(OnThreads{ranks});
}

TEST_CASE("Threads conform where everything goes in small pieces", "[threads][transfer][reducer][mailbox]") {
    auto const ranks = GENERATE(2, 3, 4);
    CAPTURE(ranks);
    conformance::conform(OnThreads{ranks, small});
}
