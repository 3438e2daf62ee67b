#pragma once

#include <accelerate/core/log.hpp>
#include <accelerate/state/checkpoint_writer.hpp>
#include <accelerate/state/pending_save.hpp>
#include <accelerate/state/snapshot.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace accelerate::state {
namespace detail {

inline std::filesystem::path told_file(std::filesystem::path const& hidden, int64_t rank, char const* what) { return hidden / concat("rank-", rank, what); }

/// What all ranks' writers tell, when they have told it. Errors: that of a rank that failed; E_DEADLINE for one that is not heard of.
inline std::vector<std::string> told_by_all(std::filesystem::path const& hidden, int64_t world, std::chrono::milliseconds deadline) {
    using namespace std::chrono;
    auto const until = steady_clock::now() + deadline;
    std::vector<std::string> told;
    auto pause = milliseconds(1);
    for (int64_t rank = 0; rank < world; ++rank) {
        auto const done = told_file(hidden, rank, ".told"), failed = told_file(hidden, rank, ".failed");
        for (; !std::filesystem::exists(done); pause = std::min(2 * pause, milliseconds(50))) {
            if (std::filesystem::exists(failed)) {
                auto const text = InputFile(failed).read_text();
                check(!text.empty(), code::io, "save_state: rank ", rank, " could not write its part of ", hidden, "; it says why");
                throw error_told(text, concat(" (rank ", rank, ")"));
            }
            check(steady_clock::now() < until, code::deadline, "save_state: nothing was heard of rank ", rank, "'s part of ", hidden, " for ", deadline.count(), " ms");
            std::this_thread::sleep_for(pause);
        }
        told.push_back(InputFile(done).read_text());
        std::filesystem::remove(done);
    }
    return told;
}

/// Tells rank 0 that this rank has failed, and why; where there is no room even for that, only that.
inline void tell_failure(std::filesystem::path const& hidden, int64_t rank, Failure const& why) noexcept {
    auto const path = told_file(hidden, rank, ".failed");
    try {
        try {
            write_text(path, why.text);
        } catch (Error const&) {
            write_text(path, "");
        }
    } catch (std::exception const& e) {
        log::warning(log::From::Everyone, "save_state: rank 0 cannot be told that rank ", rank, " has failed: ", e.what());
    }
}

}  // namespace detail

/// As `write_checkpoint`, but a thread writes, from a copy that `snapshot` holds, at its own pace; the call takes as long as copying. Threads of
/// different ranks tell each other through files in the hidden folder, so that no collective runs beside training's. `published(bytes)` is
/// called by rank 0's thread when the folder has its name. Collective, and so is waiting for what it gives (see `wait_together`).
template <class Comm>
std::unique_ptr<PendingSave> begin_async_checkpoint(Comm const& comm, std::filesystem::path const& dir, std::vector<Component> const& components, nlohmann::json about, Hash hash, Snapshot& snapshot,
                                                    std::chrono::milliseconds deadline, std::function<void(int64_t)> published) {
    auto hidden = detail::begin_checkpoint(comm, dir);
    detail::Contribution c;
    try {
        together(comm, [&] {
            c = detail::contribution(components, comm.rank());
            c.tensors = snapshot.copy(c.tensors);
        });
    } catch (...) {
        if (comm.rank() == 0) detail::discard_checkpoint(hidden);
        throw;
    }
    return std::make_unique<PendingSave>([=, rank = comm.rank(), world = comm.size(), about = std::move(about), published = std::move(published)](Pace& pace) {
        try {
            write_text(detail::told_file(hidden, rank, ".told"), detail::write_part(hidden, c, rank, hash, [&] { pace.rest(); }));
            if (rank != 0) return;
            published(detail::publish_checkpoint(hidden, dir, detail::told_by_all(hidden, world, deadline), about));
        } catch (std::exception const&) {
            if (rank == 0) detail::discard_checkpoint(hidden);
            else detail::tell_failure(hidden, rank, Failure::caught());
            throw;
        }
    });
}

/// Waits until the ranks' threads have ended; an error of one is the same error on all. Collective.
template <class Comm>
void wait_together(Comm const& comm, std::unique_ptr<PendingSave> pending) {
    together(comm, [&] { pending->wait(); });
}

}  // namespace accelerate::state
