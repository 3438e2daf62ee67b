// The suite's main: cases run in the order of their declaration (ranks that shuffle differently would deadlock), and MPI, if a
// case brought it up, is left before the process ends.
#define CATCH_CONFIG_RUNNER
#include "catch.hpp"

#include <unistd.h>

#include <accelerate/core/session.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

/// A suite that needs what not every machine has defines this and says what is missing; ctest then counts it as skipped.
[[gnu::weak]] std::string missing() { return {}; }

/// The folder for temporary files of this run, the same for all ranks, so that suites run side by side and nothing of them stays; what a
/// failed one leaves is there to be looked at.
std::filesystem::path own_folder() {
    char const* const job = std::getenv("PMIX_NAMESPACE");
    return std::filesystem::temp_directory_path() / ("accelerate-suite-" + (job != nullptr ? std::string(job) : std::to_string(::getpid())));
}

int main(int argc, char** argv) {
    Catch::Session session;
    session.configData().runOrder = decltype(session.configData().runOrder){};  // "declared" in both versions
    if (int const bad = session.applyCommandLine(argc, argv); bad != 0) return bad;
    if (session.configData().listTests) return session.run(), 0;  // their number, in Catch2 2
    if (auto const what = missing(); !what.empty()) {
        std::printf("%zu cases are compiled and linked, and not run: %s\n", Catch::getRegistryHub().getTestCaseRegistry().getAllTests().size(), what.c_str());
        return 77;
    }
    auto const folder = own_folder();
    std::filesystem::create_directories(folder);
    ::setenv("TMPDIR", folder.c_str(), 1);
    int const failed = session.run();
    // A rank with a failed case may have left its peers in the middle of a collective.
    if (failed != 0) accelerate::Session::instance().abort(1);
    accelerate::Session::instance().finalise();
    char const* const rank = std::getenv("OMPI_COMM_WORLD_RANK");
    if (failed == 0 && (rank == nullptr || std::string(rank) == "0")) std::filesystem::remove_all(folder);
    return failed != 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
