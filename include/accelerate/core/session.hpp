#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace accelerate {

/// What one process has once: how to bring down its peers, how to leave the parallel world, and who it is in messages.
/// The only mutable state of the library that is not owned by an object of the user's.
class Session {
public:
    static Session& instance() {
        static Session session;
        return session;
    }

    Session(Session const&) = delete;
    Session& operator=(Session const&) = delete;

    /// A communicator that spans processes says here how to end them, and what to do at the very end.
    void connect(int64_t rank, int64_t size, int64_t local_size, std::function<void(int)> abort, std::function<void()> finalise) {
        std::lock_guard lock(mutex_);
        rank_ = rank, size_ = size, local_size_ = local_size;
        abort_ = std::move(abort);
        finalise_ = std::move(finalise);
    }

    /// Ends every process of the job; returns only where this process is alone.
    void abort(int exit_code) {
        if (abort_) abort_(exit_code);
    }

    /// Leaves the parallel world if it was entered by us. Called by `accelerate::run`, else when the process ends.
    void finalise() {
        std::function<void()> last;
        {
            std::lock_guard lock(mutex_);
            last = std::exchange(finalise_, nullptr);
            abort_ = nullptr;
        }
        if (last) last();
    }

    /// Where the process ends in the middle of everything, as by std::exit, `farewell` is called before the parallel world is left, unless
    /// `whose` is gone, which lives as long as the call: peers wait for such a rank, and it for them.
    void at_exit(std::weak_ptr<void> whose, std::function<void()> farewell) {
        std::lock_guard lock(mutex_);
        std::erase_if(farewells_, [](auto const& one) { return one.first.expired(); });
        farewells_.emplace_back(std::move(whose), std::move(farewell));
    }

    /// Rank of the calling thread: that of the process, unless ranks are threads.
    int64_t rank() const { return thread_rank() >= 0 ? thread_rank() : rank_; }
    int64_t size() const { return size_; }
    int64_t local_size() const { return local_size_; }

    /// True once for each text: behind `warning_once`.
    bool first_time(std::string const& text) {
        std::lock_guard lock(mutex_);
        return said_.insert(text).second;
    }

    /// While alive, messages of this thread carry `rank`: for ranks that are threads.
    class ThreadRank {
    public:
        explicit ThreadRank(int64_t rank) : before_(std::exchange(thread_rank(), rank)) {}
        ~ThreadRank() { thread_rank() = before_; }
        ThreadRank(ThreadRank const&) = delete;
        ThreadRank& operator=(ThreadRank const&) = delete;

    private:
        int64_t before_;
    };

private:
    Session() = default;
    ~Session() {
        if (::getpid() != process_) return;  // a forked child that ends; the parallel world is its parent's
        for (auto const& [whose, farewell] : farewells_)
            if (auto const alive = whose.lock()) farewell();
        finalise();
    }

    static int64_t& thread_rank() {
        static thread_local int64_t rank = -1;
        return rank;
    }

    pid_t const process_ = ::getpid();
    std::mutex mutex_;
    int64_t rank_ = 0, size_ = 1, local_size_ = 1;
    std::function<void(int)> abort_;
    std::function<void()> finalise_;
    std::vector<std::pair<std::weak_ptr<void>, std::function<void()>>> farewells_;
    std::set<std::string> said_;
};

}  // namespace accelerate
