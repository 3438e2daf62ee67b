#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/operations.hpp>
#include <accelerate/comm/solo.hpp>
#include <exception>
#include <thread>

namespace accelerate::comm {

/// Ranks are threads of this process: tests and `debug_launcher` need no mpirun. They share LibTorch's generators, so who draws
/// from one on several ranks gets a mixture; the library never does.
class Threads : public Operations<Threads> {
public:
    /// Calls `f(Threads)` on `n` threads, one for each rank, and waits for all. When one throws, peers that wait for it get
    /// E_PEER_LOST; the first exception that was thrown is thrown again here.
    template <class F>
    static void run(int64_t n, F&& f, transport_options const& given = {}) {
        check(n >= 1, code::config, "Threads::run: ", n, " ranks");
        auto const options = given.fitted(n);
        auto const memory = Region::heap(Group::bytes(n, options)), presence = Region::heap(Family::bytes(n));
        auto const source = std::make_shared<ThreadMemory>();
        std::mutex mutex;
        std::exception_ptr first;
        std::vector<std::thread> threads;
        auto const body = [&](int64_t rank) {
            Session::ThreadRank const name(rank);
            auto const family = std::make_shared<Family>(presence, rank, rank, n);
            // Outside of the `try`: peers should hear why this rank left, not that it dropped the communicator.
            Group::Parts parts;
            parts.who = everyone(rank, n);
            parts.family = family;
            parts.members = parts.who.ranks;
            parts.memory = memory, parts.source = source, parts.options = options;
            Threads const comm(std::make_shared<Group>(std::move(parts)));
            Current const current(comm);
            try {
                f(Threads(comm));
            } catch (...) {
                auto const error = std::current_exception();
                {
                    std::lock_guard lock(mutex);
                    if (!first) first = error;
                }
                family->leave(concat("it threw: ", text_of(error)));
            }
        };
        for (int64_t r = 0; r < n; ++r) threads.emplace_back(body, r);
        for (auto& t : threads) t.join();
        if (first) std::rethrow_exception(first);
    }

    /// The communicator of the calling thread inside `run`; a rank alone elsewhere.
    static Threads world() { return Current::get() ? *Current::get() : Threads(solo()); }

private:
    friend class Operations<Threads>;
    explicit Threads(std::shared_ptr<Group> group) : Operations(std::move(group)) {}

    class Current {
    public:
        explicit Current(Threads const& comm) { get() = &comm; }
        ~Current() { get() = nullptr; }
        Current(Current const&) = delete;
        Current& operator=(Current const&) = delete;
        static Threads const*& get() {
            static thread_local Threads const* comm = nullptr;
            return comm;
        }
    };

    static Membership everyone(int64_t rank, int64_t n) {
        Membership who;
        who.rank = who.local_rank = who.me = rank;
        who.size = who.local_size = n;
        who.nodes.assign(static_cast<size_t>(n), 0);
        who.hosts = who.nodes;
        who.ranks.clear();
        for (int64_t r = 0; r < n; ++r) who.ranks.push_back(r);
        return who;
    }

    static std::string text_of(std::exception_ptr const& error) {
        try {
            std::rethrow_exception(error);
        } catch (std::exception const& e) {
            return e.what();
        } catch (...) {
            return "something that is not a std::exception";
        }
    }
};

static_assert(communicator<Threads>);

}  // namespace accelerate::comm
