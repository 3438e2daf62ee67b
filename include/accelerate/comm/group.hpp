#pragma once

#include <accelerate/comm/bridge.hpp>
#include <accelerate/comm/control.hpp>
#include <accelerate/comm/mailbox.hpp>
#include <accelerate/comm/memory_source.hpp>
#include <mutex>

namespace accelerate::comm {

/// Sizes of the memory through which the ranks of a node pass data that does not live in buffers.
struct transport_options {
    int64_t stage_bytes = 256 << 10;  ///< data travels in pieces of this size; two such areas for each rank
    int64_t pipe_bytes = 32 << 10;    ///< for `send`: one pipe for each ordered pair of ranks
    int64_t small_bytes = 2 << 10;    ///< reductions of buffers up to this size copy rather than meet once more
};

/// Who is where: fixed for the life of a communicator.
struct Membership {
    int64_t rank = 0, size = 1, local_rank = 0, local_size = 1;
    std::vector<int64_t> nodes{0};   ///< by rank: the same number for ranks that see the same memory
    std::vector<int64_t> hosts{0};   ///< by rank: the same number for ranks of one machine
    std::vector<int64_t> ranks{0};   ///< the ranks that see this one's memory, itself included, ascending
    int64_t me = 0;                  ///< this rank's place in `ranks`
};

/// One communicator as one rank sees it: what the copies of a handle share. Ranks that see the same memory meet there (`Control`)
/// and pass data through it; a `Bridge` leads to the others. What is done with it: transfer.hpp, reducer.hpp, letters.hpp.
class Group {
public:
    struct Parts {
        Membership who;
        std::shared_ptr<Family> family;
        std::vector<int64_t> members{0};  ///< places in the family of `who.ranks`
        Region memory;
        transport_options options;
        std::shared_ptr<MemorySource> source;
        std::unique_ptr<Bridge> bridge;
    };

    explicit Group(Parts parts)
        : who(std::move(parts.who)), options(parts.options), source(std::move(parts.source)), bridge(std::move(parts.bridge)), memory_(std::move(parts.memory)),
          control(memory_, who.me, who.ranks, std::move(parts.members), std::move(parts.family)),
          mailbox(memory_.data + pipes_at(members(), options), static_cast<size_t>(options.pipe_bytes), who.me, who.ranks) {
        if (bridge) control.grace = std::chrono::seconds(2);
    }

    /// Memory that `n` ranks need to meet and to pass data.
    static size_t bytes(int64_t n, transport_options const& o) { return pipes_at(n, o) + Mailbox::bytes(n, static_cast<size_t>(o.pipe_bytes)); }

    int64_t members() const { return static_cast<int64_t>(who.ranks.size()); }
    bool leader() const { return who.me == 0; }
    std::chrono::milliseconds deadline() const { return control.deadline.load(); }

    /// Does one collective operation: serialised with others of this rank, recorded, announced to the peers.
    template <class Body>
    auto operation(Call const& call, Body&& body) {
        std::lock_guard lock(mutex_);
        Recorder::Entry entry(control.family().recorder, call, control.number() + 1, control.group);
        control.announce(call);
        struct Finish {
            Control& control;
            Recorder::Entry& entry;
            int exceptions = std::uncaught_exceptions();
            ~Finish() {
                control.finished();
                if (std::uncaught_exceptions() == exceptions) entry.finished();
            }
        } finish{control, entry};
        return body();
    }

    /// The first arrival of an operation: nobody goes on unless all called the same. `refusal`: why this rank's own arguments
    /// cannot work; its peers hear of it.
    void meet(std::string_view refusal = {}) {
        control.arrive();
        auto const agreed = control.agreed();
        if (bridge) led([&] { meet_nodes(agreed, refusal); });
        if (!refusal.empty()) throw Error(code::config, concat(control.here(), ": ", refusal));
        if (!agreed) [[unlikely]] mismatch(control.disagreement());
    }

    /// Work that one rank of each node does for its members: all go on when it is done, or fail as it failed.
    template <class Work>
    void led(Work&& work) {
        auto& verdict = verdicts()[(control.phase() + 1) & 1];
        std::optional<Error> failed;
        if (leader()) {
            verdict.state = 0;
            try {
                work();
            } catch (Error const& e) {
                failed = e;
                verdict.put(e);
            }
        }
        control.arrive();
        if (failed) throw Error(*failed);
        if (verdict.state == 0) return;
        control.family().recorder.dump(verdict.code() == code::deadline ? "deadline" : "mismatch");
        throw Error(verdict.code(), verdict.text);
    }

    /// The area in which member `p` exposes data for the arrival number `phase`. What is exposed for an arrival may be read after
    /// it and before the reader's next one; two areas in turn make that safe.
    std::byte* stage(int64_t p, uint64_t phase) const {
        return memory_.data + stages_at(members()) + static_cast<size_t>(2 * p + static_cast<int64_t>(phase & 1)) * static_cast<size_t>(options.stage_bytes);
    }

    Membership const who;
    transport_options const options;
    std::shared_ptr<MemorySource> const source;
    std::unique_ptr<Bridge> const bridge;

private:
    Region memory_;
    std::mutex mutex_;

public:
    Control control;
    Mailbox mailbox;
    std::mutex letters;     ///< guards `mailbox`: letters and collectives may come from different threads
    int64_t buffers = 0;    ///< numbers the buffers of this communicator

private:
    struct alignas(64) Verdict {
        int64_t state;  // 0: well; else 1 + index of the code
        char text[2040];

        static constexpr std::array<Code, 5> codes{accelerate::code::internal, accelerate::code::collective_mismatch, accelerate::code::deadline,
                                                   accelerate::code::peer_lost, accelerate::code::config};
        void put(Error const& e) {
            auto const it = std::find(codes.begin(), codes.end(), e.code());
            state = 1 + (it == codes.end() ? 0 : it - codes.begin());
            // Without the code's name in front: the constructor of Error puts it there again.
            std::string_view message = e.what();
            message = message.substr(std::min(message.size(), e.code().name.size() + 2)).substr(0, sizeof text - 1);
            std::memcpy(text, message.data(), message.size());
            text[message.size()] = '\0';
        }
        Code code() const { return codes[static_cast<size_t>(state - 1)]; }
    };

    static size_t aligned(size_t n) { return (n + 4095) / 4096 * 4096; }
    static size_t stages_at(int64_t n) { return aligned(Control::bytes(n)) + aligned(2 * sizeof(Verdict)); }
    static size_t pipes_at(int64_t n, transport_options const& o) { return stages_at(n) + 2 * static_cast<size_t>(n * o.stage_bytes); }
    Verdict* verdicts() const { return reinterpret_cast<Verdict*>(memory_.data + aligned(Control::bytes(members()))); }

    [[noreturn]] void mismatch(std::string const& sides) {
        control.family().recorder.dump("mismatch");
        throw Error(code::collective_mismatch,
                    concat(control.here(), ": ranks disagree: ", sides, ". Every rank must make the same calls in the same order, with the same dtype and shape"));
    }

    /// What a leader tells the others about its node.
    struct Report {
        Fingerprint fingerprint;
        int64_t agreed = 1;
        char text[480] = "";
    };

    void meet_nodes(bool agreed, std::string_view refusal) {
        Report mine;
        mine.fingerprint = control.fingerprint(who.me);
        mine.agreed = agreed || !refusal.empty();
        auto const sides = agreed ? concat("rank ", who.rank, " and its node called ", describe(control.call(who.me))) : control.disagreement();
        std::memcpy(mine.text, sides.data(), std::min(sides.size(), sizeof mine.text - 1));
        auto const all = bridge->exchange({reinterpret_cast<char const*>(&mine), sizeof mine}, deadline());
        bool same = true;
        std::string text;
        for (auto const& bytes : all) {
            Report theirs;
            std::memcpy(&theirs, bytes.data(), sizeof theirs);
            same = same && theirs.agreed && theirs.fingerprint.agrees(mine.fingerprint);
            text += concat(text.empty() ? "" : "; ", theirs.text);
        }
        if (!same && refusal.empty()) mismatch(text);
    }
};

}  // namespace accelerate::comm
