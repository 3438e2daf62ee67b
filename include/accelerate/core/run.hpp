#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <accelerate/core/log.hpp>
#include <chrono>
#include <concepts>
#include <cstdio>
#include <exception>
#include <thread>

namespace accelerate {

/// `int main() { return accelerate::run([&] { ... }); }`: runs the body, maps what it throws to the documented exit codes,
/// puts the message on the terminal with the rank in front, brings down the peers (they would wait for this rank for ever)
/// and leaves MPI if the library entered it. The body may return nothing or an int, which becomes the exit code.
template <std::invocable Body>
int run(Body&& body) {
    auto& session = Session::instance();
    auto failed = [&](std::string const& text, int exit_code) {
        auto const line = concat("[accelerate rank ", session.rank(), "] ", text, "\n");
        std::fwrite(line.data(), 1, line.size(), stderr);
        std::fflush(stderr);
        // Peers that failed as this rank did, or wait for it and now hear that it has gone, get to say so before they are ended.
        if (session.size() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(200));
        session.abort(exit_code);
        return exit_code;
    };
    try {
        int exit_code = 0;
        if constexpr (std::is_void_v<std::invoke_result_t<Body>>) body();
        else exit_code = static_cast<int>(body());
        session.finalise();
        return exit_code;
    } catch (Error const& e) {
        return failed(e.what(), e.exit_code());
    } catch (c10::Error const& e) {
        return failed(e.what_without_backtrace(), code::internal.exit);
    } catch (std::exception const& e) {
        return failed(e.what(), code::internal.exit);
    } catch (...) {
        return failed("something that is not a std::exception was thrown", code::internal.exit);
    }
}

/// Says once when the ranks of this node ask for more threads than it has cores: with LibTorch's default spinning that makes a
/// step up to 30 times slower. Communicators call it when they come up.
inline void warn_if_oversubscribed() {
    auto const ranks = Session::instance().local_size();
    auto const threads = static_cast<int64_t>(at::get_num_threads());
    auto const cores = static_cast<int64_t>(std::thread::hardware_concurrency());
    if (cores > 0 && threads > 1 && ranks * threads > cores)
        log::warning_once(ranks, " ranks with ", threads, " threads each on ", cores, " cores; set OMP_NUM_THREADS=", std::max<int64_t>(1, cores / ranks),
                          " and OMP_WAIT_POLICY=passive before the program starts");
}

}  // namespace accelerate
