#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/log.hpp>
#include <accelerate/state/pace.hpp>
#include <exception>
#include <functional>
#include <thread>
#include <utility>

namespace accelerate::state {

/// What a thread of this rank is writing, at a pace that leaves training alone. Whoever asks hurries it, waits for its end and has its error;
/// where nobody asks, the error is logged.
class PendingSave {
public:
    explicit PendingSave(std::function<void(Pace&)> write)
        : thread_([this, write = std::move(write)] {
              try {
                  write(pace_);
              } catch (...) {
                  failure_ = std::current_exception();
              }
          }) {}
    PendingSave(PendingSave const&) = delete;
    PendingSave& operator=(PendingSave const&) = delete;
    ~PendingSave() {
        if (!thread_.joinable()) return;
        try {
            wait();
        } catch (std::exception const& e) {
            log::warning(log::From::Everyone, "an asynchronous save has failed, and nobody waited for it: ", e.what());
        }
    }

    void wait() {
        pace_.hurry();
        thread_.join();
        if (failure_) std::rethrow_exception(failure_);
    }

private:
    Pace pace_;
    std::exception_ptr failure_;
    std::thread thread_;  // last: it uses the others
};

}  // namespace accelerate::state
