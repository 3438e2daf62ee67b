#pragma once

#include <accelerate/comm/wait.hpp>
#include <accelerate/core/session.hpp>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace accelerate::comm {

/// The one thread of a rank that communicates while the others compute: does jobs in the order in which they were submitted, so
/// that every rank calls the same collectives in the same order. Blocking calls in a thread of their own overlap fully where
/// there is a core to spare; Open MPI's non-blocking ones make no progress by themselves.
class Worker {
    struct Job {
        std::function<void()> work;
        std::atomic<int> done{0};
        std::exception_ptr error;
    };

public:
    /// A job that was submitted. May outlive the worker.
    class Handle {
    public:
        Handle() = default;
        /// Returns when the job is done; throws what it threw (each time).
        void wait() const {
            if (!job_) return;
            for (int i = 0; i < 200 && !finished(); ++i) relax();
            while (!finished()) job_->done.wait(0, std::memory_order_acquire);
            if (job_->error) std::rethrow_exception(job_->error);
        }
        bool finished() const { return !job_ || job_->done.load(std::memory_order_acquire) != 0; }

    private:
        friend class Worker;
        explicit Handle(std::shared_ptr<Job> job) : job_(std::move(job)) {}
        std::shared_ptr<Job> job_;
    };

    Worker() : rank_(Session::instance().rank()), thread_([this] { run(); }) {}
    /// Does what was submitted, then ends the thread.
    ~Worker() {
        {
            std::lock_guard lock(mutex_);
            stop_ = true;
        }
        wake_.notify_one();
        thread_.join();
    }
    /// Whether that overlaps where `threads` threads compute on this machine: it takes a core that is free.
    static bool pays(int64_t threads) { return threads < static_cast<int64_t>(std::thread::hardware_concurrency()); }

    Worker(Worker const&) = delete;
    Worker& operator=(Worker const&) = delete;

    /// After a job has thrown, later ones are still done: they are what the peers expect.
    Handle submit(std::function<void()> work) {
        auto job = std::make_shared<Job>();
        job->work = std::move(work);
        {
            std::lock_guard lock(mutex_);
            jobs_.push_back(job);
        }
        wake_.notify_one();
        return Handle(std::move(job));
    }

private:
    void run() {
        Session::ThreadRank const name(rank_);
        for (;;) {
            std::shared_ptr<Job> job;
            {
                std::unique_lock lock(mutex_);
                wake_.wait(lock, [&] { return stop_ || !jobs_.empty(); });
                if (jobs_.empty()) return;
                job = std::move(jobs_.front());
                jobs_.pop_front();
            }
            try {
                job->work();
            } catch (...) {
                job->error = std::current_exception();
            }
            job->work = nullptr;
            job->done.store(1, std::memory_order_release);
            job->done.notify_all();
        }
    }

    int64_t rank_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Job>> jobs_;
    bool stop_ = false;
    std::thread thread_;
};

}  // namespace accelerate::comm
