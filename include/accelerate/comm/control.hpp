#pragma once

#include <accelerate/comm/family.hpp>
#include <accelerate/comm/fingerprint.hpp>
#include <accelerate/comm/wait.hpp>

namespace accelerate::comm {

/// One cache line through which a rank tells its peers how far it is and what it calls. Words have two places each, used in
/// turn: a peer that is one operation ahead does not overwrite what this rank still compares.
struct alignas(64) Slot {
    std::atomic<uint64_t> phase;                                ///< arrivals so far
    std::array<std::array<std::atomic<uint64_t>, 3>, 2> words;  ///< fingerprint of the call, by parity of its number
    std::atomic<uint32_t> gone;                                 ///< 0 here, 1 dropped its last handle, 2 gave up
};

/// The rest of the last call, for messages only: read by peers when something has gone wrong.
struct alignas(64) Detail {
    std::atomic<uint64_t> progress;  ///< 2k+1 in operation k, 2k+2 after it
    std::array<std::array<std::atomic<int64_t>, 1 + Call::max_dims>, 2> shape;
};

/// This rank's end of the meeting point of the ranks of one node (or of one process). Lock-free; the memory is shared.
class Control {
public:
    /// `ranks`: numbers in this communicator of the members, for messages; `members`: their places in the family.
    Control(Region memory, int64_t me, std::vector<int64_t> ranks, std::vector<int64_t> members, std::shared_ptr<Family> family)
        : memory_(std::move(memory)), slots_(reinterpret_cast<Slot*>(memory_.data)), details_(reinterpret_cast<Detail*>(memory_.data + ranks.size() * sizeof(Slot))),
          me_(me), ranks_(std::move(ranks)), members_(std::move(members)), family_(std::move(family)), group(family_->groups.fetch_add(1)) {}
    ~Control() {
        uint32_t here = 0;
        mine().gone.compare_exchange_strong(here, 1, std::memory_order_release, std::memory_order_relaxed);
    }
    Control(Control const&) = delete;
    Control& operator=(Control const&) = delete;

    static size_t bytes(int64_t n) { return (sizeof(Slot) + sizeof(Detail)) * static_cast<size_t>(n); }

    int64_t size() const { return static_cast<int64_t>(ranks_.size()); }
    int64_t me() const { return me_; }
    uint64_t phase() const { return phase_; }
    uint64_t number() const { return number_; }
    Family& family() const { return *family_; }
    std::shared_ptr<Family> const& shared_family() const { return family_; }
    std::vector<int64_t> const& ranks() const { return ranks_; }
    std::vector<int64_t> const& members() const { return members_; }

    /// Puts this rank's call where peers will find it when this rank arrives.
    void announce(Call const& c) {
        if (broken_) throw Error(*broken_);
        call_ = &c;
        mine_ = Fingerprint::of(c);
        auto const turn = ++number_ & 1;
        auto& words = mine().words[turn];
        words[0].store(mine_.what, std::memory_order_relaxed);
        words[1].store(mine_.shape, std::memory_order_relaxed);
        words[2].store(static_cast<uint64_t>(mine_.count), std::memory_order_relaxed);
        auto& detail = details_[me_];
        detail.shape[turn][0].store(c.dims, std::memory_order_relaxed);
        for (int64_t d = 0; d < std::min(c.dims, Call::max_dims); ++d)
            detail.shape[turn][static_cast<size_t>(1 + d)].store(c.shape[static_cast<size_t>(d)], std::memory_order_relaxed);
        detail.progress.store(2 * number_ + 1, std::memory_order_relaxed);
    }

    void finished() {
        call_ = nullptr;  // it lives in the frame of the operation
        details_[me_].progress.store(2 * number_ + 2, std::memory_order_relaxed);
    }

    /// Waits until every member has come this far. What a member wrote before is visible after; what was exposed for this arrival
    /// must have been read before the next one.
    /// `extra`: on top of the deadline, where somebody else will know better who is missing and should speak first.
    void arrive(std::chrono::milliseconds extra = {}) {
        mine().phase.store(++phase_, std::memory_order_release);
        int64_t next = 0;
        auto const all = [&] {
            while (next < size() && (next == me_ || !missing(next))) ++next;
            return next == size();
        };
        if (all()) return;
        Clock::duration looked{0};
        wait_until(all, [&](Clock::duration elapsed) {
            bool const look = elapsed - looked > std::chrono::milliseconds(50);
            if (look) looked = elapsed;
            for (int64_t p = next; p < size(); ++p)
                if (missing(p)) examine(p, look);
            if (elapsed > deadline.load() + extra) out_of_time(elapsed);
        });
    }

    /// After the arrival that followed `announce`: the same call everywhere?
    bool agreed() const {
        for (int64_t p = 0; p < size(); ++p)
            if (p != me_ && !mine_.agrees(fingerprint(p, number_))) return false;
        return true;
    }

    /// What member `p` called in the current operation.
    Fingerprint fingerprint(int64_t p) const { return fingerprint(p, number_); }
    Call call(int64_t p) const { return call(p, number_); }

    /// Who called what, when not `agreed()`.
    std::string disagreement() const {
        std::string text;
        std::vector<bool> done(ranks_.size());
        auto const told = [&](int64_t p) { return describe_apart(call(p, number_)); };
        for (size_t p = 0; p < ranks_.size(); ++p) {
            if (done[p]) continue;
            auto const theirs = told(static_cast<int64_t>(p));
            auto who = concat(ranks_[p]);
            int64_t several = 0;
            for (size_t q = p + 1; q < ranks_.size(); ++q) {
                if (told(static_cast<int64_t>(q)) != theirs) continue;
                done[q] = true;
                if (++several < 8) who += concat(", ", ranks_[q]);
            }
            if (several >= 8) who += concat(" and ", several - 7, " more");
            text += concat(text.empty() ? "" : "; ", several ? "ranks " : "rank ", who, " called ", theirs);
        }
        return text;
    }

    /// `all_reduce(sum) of Float [4] on rank 0 (operation 17 of communicator 0)`.
    std::string here() const { return concat(call_ ? describe(*call_) : "a call", " on rank ", ranks_[static_cast<size_t>(me_)], " (operation ", number_, " of communicator ", group, ")"); }

    /// Why member `p` will never come; empty while it may. `look`: also at its process, which costs a system call.
    std::string lost(int64_t p, bool look) const {
        auto const member = members_[static_cast<size_t>(p)];
        if (auto reason = family_->gone(member)) return *reason;
        if (auto const gone = slots_[p].gone.load(std::memory_order_acquire); gone != 0)
            return gone == 1 ? "it has dropped this communicator" : "it gave up on this communicator; its own message says why";
        return look && family_->dead(member) ? "its process has ended" : "";
    }

    /// What member `p` did last on this communicator.
    std::string last_call(int64_t p) const {
        auto const progress = details_[p].progress.load(std::memory_order_relaxed);
        if (progress == 0) return "it has made no call on this communicator";
        auto const number = (progress - 1) / 2;
        return concat("its last call was ", describe(call(p, number)), ", operation ", number, progress & 1 ? " (still in it)" : " (finished)");
    }

    /// Ends this communicator for this rank: peers that wait for it, now or later, and its own later calls fail.
    void abandon(Error const& why) {
        broken_ = std::make_shared<Error>(why);
        mine().gone.store(2, std::memory_order_release);
    }

    /// Dumps the recorder and throws.
    [[noreturn]] void fail(Code code, std::string const& text) {
        family_->recorder.dump(code == code::deadline ? "deadline" : "peer lost");
        throw Error(code, text);
    }

    std::atomic<std::chrono::milliseconds> deadline{std::chrono::seconds(600)};

private:
    Slot& mine() const { return slots_[me_]; }

    Fingerprint fingerprint(int64_t p, uint64_t number) const {
        auto const& words = slots_[p].words[number & 1];
        return {words[0].load(std::memory_order_relaxed), words[1].load(std::memory_order_relaxed), static_cast<int64_t>(words[2].load(std::memory_order_relaxed))};
    }

    Call call(int64_t p, uint64_t number) const {
        auto const f = fingerprint(p, number);
        Call c;
        c.operation = f.operation();
        c.reduction = static_cast<Reduction>(f.what >> 8 & 0xFF);
        c.dtype = static_cast<at::ScalarType>(static_cast<int8_t>(f.what >> 16 & 0xFF));
        c.flag = (f.what >> 24 & 1) != 0, c.refused = f.refused(), c.elsewhere = f.elsewhere();
        c.root = static_cast<int32_t>(static_cast<uint32_t>(f.what >> 32));
        c.count = f.count;
        auto const& shape = details_[p].shape[number & 1];
        c.dims = shape[0].load(std::memory_order_relaxed);
        for (size_t d = 0; d < c.shape.size(); ++d) c.shape[d] = shape[1 + d].load(std::memory_order_relaxed);
        return c;
    }

    bool missing(int64_t p) const { return slots_[p].phase.load(std::memory_order_acquire) < phase_; }

    void examine(int64_t p, bool look) {
        auto const why = lost(p, look);
        // It may have arrived just before it went.
        if (why.empty() || !missing(p)) return;
        fail(code::peer_lost, concat(here(), ": rank ", ranks_[static_cast<size_t>(p)], " is gone: ", why, "; ", last_call(p)));
    }

    [[noreturn]] void out_of_time(Clock::duration elapsed) {
        std::string absent, present;
        for (int64_t p = 0; p < size(); ++p) {
            auto const rank = ranks_[static_cast<size_t>(p)];
            if (p == me_) continue;
            if (missing(p)) absent += concat(absent.empty() ? "" : "; ", "rank ", rank, " has not arrived, ", last_call(p));
            else present += concat(present.empty() ? "" : ", ", rank);
        }
        auto const tenths = static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count() / 100);
        fail(code::deadline, concat(here(), ": waited ", tenths / 10, " s: ", absent, present.empty() ? "" : concat("; arrived: ", present),
                                    ". Find out what the missing rank does (SIGUSR2 makes a rank write its last operations), or raise the deadline with set_deadline"));
    }

    Region memory_;
    Slot* slots_;
    Detail* details_;
    int64_t me_;
    std::vector<int64_t> ranks_, members_;
    std::shared_ptr<Family> family_;
    uint64_t phase_ = 0, number_ = 0;
    Fingerprint mine_;
    Call const* call_ = nullptr;
    std::shared_ptr<Error> broken_;

public:
    int64_t const group;  ///< number of this communicator in the family, for messages
};

}  // namespace accelerate::comm
