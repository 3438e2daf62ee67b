#pragma once

#include <ATen/ThreadLocalState.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/session.hpp>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace accelerate::data {

/// Makes batches 0, 1, 2, ... on threads, a bounded number ahead of whoever takes them, and hands them out in order. The threads have
/// the LibTorch settings (grad mode and the like) and the rank of the one that made this. Destruction waits for the batches at hand,
/// except for one that a time-out was thrown for: its thread is left behind, with everything it uses that belongs to the library.
template <class Batch>
class Workers {
public:
    /// `make(k, worker)` gives batch k, or nothing when there are no more; it is called by several threads at once, and must own what
    /// it uses. `reading(worker)` says what that worker is at, for messages.
    using Make = std::function<std::optional<Batch>(int64_t k, int64_t worker)>;
    using Reading = std::function<std::string(int64_t worker)>;

    Workers(Make make, Reading reading, int64_t threads, int64_t ahead)
        : shared_(std::make_shared<Shared>(std::move(make), std::move(reading), static_cast<size_t>(std::max(threads, ahead)))) {
        for (int64_t w = 0; w < threads; ++w)
            threads_.emplace_back([shared = shared_, w, state = at::ThreadLocalState(), rank = Session::instance().rank()] {
                at::ThreadLocalStateGuard const settings(state);
                Session::ThreadRank const name(rank);
                while (shared->work(w)) {}
            });
    }

    ~Workers() {
        shared_->stop();
        for (auto& t : threads_) timed_out_ ? t.detach() : t.join();
    }
    Workers(Workers const&) = delete;
    Workers& operator=(Workers const&) = delete;

    /// `f` is called every tenth of a second while `take` waits, by its thread; what it throws `take` throws.
    void while_waiting(std::function<void()> f) { while_waiting_ = std::move(f); }

    /// The next batch, nothing after the last one; throws what its making threw, after which there is none. Waits at most `patience`
    /// (0: for ever), then error E_DEADLINE naming the worker and what it is at.
    std::optional<Batch> take(std::chrono::duration<double> patience = {}) {
        try {
            return shared_->take(patience, while_waiting_);
        } catch (Late const& late) {
            timed_out_ = true;
            throw Error(code::deadline, concat("data::Loader: ", shared_->reading(late.worker), " has not come back for ", patience.count(),
                                               " s (timeout_s); is its storage gone, or does it wait for the loop?"));
        }
    }

private:
    struct Late {
        int64_t worker;
    };
    struct Slot {
        std::optional<Batch> batch;
        std::exception_ptr failure;
        int64_t worker = 0;
        bool ready = false;
    };
    static constexpr auto endless = std::numeric_limits<int64_t>::max();

    struct Shared {
        Shared(Make m, Reading r, size_t ahead) : make(std::move(m)), reading(std::move(r)), slots(ahead) {}

        Slot& slot(int64_t k) { return slots[static_cast<size_t>(k) % slots.size()]; }

        /// Makes one batch. False when there is nothing more to do.
        bool work(int64_t worker) {
            int64_t k;
            {
                std::unique_lock lock(mutex);
                room.wait(lock, [&] { return stopped || claimed >= end || claimed < taken + static_cast<int64_t>(slots.size()); });
                if (stopped || claimed >= end) return false;
                k = claimed++;
                slot(k).worker = worker;
            }
            std::optional<Batch> batch;
            std::exception_ptr failure;
            try {
                batch = make(k, worker);
            } catch (...) {
                failure = std::current_exception();
            }
            {
                std::lock_guard lock(mutex);
                if (!batch) end = std::min(end, failure ? k + 1 : k);
                auto& s = slot(k);
                s.batch = std::move(batch), s.failure = failure, s.ready = true;
            }
            ready.notify_one();
            return true;
        }

        std::optional<Batch> take(std::chrono::duration<double> patience, std::function<void()> const& while_waiting) {
            using clock = std::chrono::steady_clock;
            using seconds = std::chrono::duration<double>;
            auto const begin = clock::now();
            auto const left = [&] { return patience.count() > 0 ? seconds(patience - (clock::now() - begin)) : seconds::max(); };
            std::unique_lock lock(mutex);
            while (!ready.wait_for(lock, std::min(seconds(0.1), left()), [&] { return taken >= end || slot(taken).ready; })) {
                if (left() <= seconds()) throw Late{slot(taken).worker};
                if (!while_waiting) continue;
                lock.unlock();
                while_waiting();
                lock.lock();
            }
            if (taken >= end) return std::nullopt;
            auto s = std::exchange(slot(taken), {});
            ++taken;
            lock.unlock();
            room.notify_one();
            if (s.failure) std::rethrow_exception(s.failure);
            return std::move(s.batch);
        }

        void stop() {
            {
                std::lock_guard lock(mutex);
                stopped = true;
            }
            room.notify_all();
        }

        Make make;
        Reading reading;
        std::mutex mutex;
        std::condition_variable ready, room;
        std::vector<Slot> slots;
        int64_t claimed = 0, taken = 0, end = endless;
        bool stopped = false;
    };

    std::shared_ptr<Shared> shared_;
    std::vector<std::thread> threads_;
    std::function<void()> while_waiting_;
    bool timed_out_ = false;
};

}  // namespace accelerate::data
