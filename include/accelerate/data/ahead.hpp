#pragma once

#include <ATen/ThreadLocalState.h>

#include <accelerate/core/session.hpp>
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

namespace accelerate::data {

/// Makes batches 0 .. `count - 1` on a thread of its own, in order, one ahead of whoever takes them. The thread has the
/// LibTorch settings (grad mode and the like) and the rank of the one that made this. Destruction waits for the batch at hand.
template <class Batch>
class Ahead {
public:
    Ahead(std::function<Batch(int64_t)> make, int64_t count)
        : thread_([this, make = std::move(make), count, state = at::ThreadLocalState(), rank = Session::instance().rank()] {
              at::ThreadLocalStateGuard const settings(state);
              Session::ThreadRank const name(rank);
              for (int64_t k = 0; k < count && put(k, make); ++k) {}
          }) {}

    ~Ahead() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    Ahead(Ahead const&) = delete;
    Ahead& operator=(Ahead const&) = delete;

    /// The next batch; throws what its making threw, after which there is none.
    Batch take() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return ready_ || failure_; });
        if (failure_) std::rethrow_exception(failure_);
        auto batch = std::move(*ready_);
        ready_.reset();
        lock.unlock();
        changed_.notify_all();
        return batch;
    }

private:
    /// False when there is nothing more to do.
    bool put(int64_t k, std::function<Batch(int64_t)> const& make) {
        std::optional<Batch> batch;
        std::exception_ptr failure;
        try {
            batch = make(k);
        } catch (...) {
            failure = std::current_exception();
        }
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || !ready_; });
        if (stop_) return false;
        ready_ = std::move(batch);
        failure_ = failure;
        lock.unlock();
        changed_.notify_all();
        return !failure;
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::optional<Batch> ready_;
    std::exception_ptr failure_;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace accelerate::data
