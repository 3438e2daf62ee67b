// The suite's main: cases run in the order of their declaration (ranks that shuffle differently would deadlock), and MPI, if a
// case brought it up, is left before the process ends.
#define CATCH_CONFIG_RUNNER
#include "catch.hpp"

#include <accelerate/core/session.hpp>
#include <cstdio>
#include <cstdlib>
#include <string>

/// A suite that needs what not every machine has defines this and says what is missing; ctest then counts it as skipped.
[[gnu::weak]] std::string missing() { return {}; }

int main(int argc, char** argv) {
    Catch::Session session;
    session.configData().runOrder = decltype(session.configData().runOrder){};  // "declared" in both versions
    if (int const bad = session.applyCommandLine(argc, argv); bad != 0) return bad;
    if (session.configData().listTests) return session.run(), 0;  // their number, in Catch2 2
    if (auto const what = missing(); !what.empty()) {
        std::printf("%zu cases are compiled and linked, and not run: %s\n", Catch::getRegistryHub().getTestCaseRegistry().getAllTests().size(), what.c_str());
        return 77;
    }
    int const failed = session.run();
    // A rank with a failed case may have left its peers in the middle of a collective.
    if (failed != 0) accelerate::Session::instance().abort(1);
    accelerate::Session::instance().finalise();
    return failed != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
