#pragma once

#include <c10/util/Exception.h>

#include <accelerate/comm/bridge.hpp>
#include <accelerate/comm/control.hpp>
#include <accelerate/comm/mailbox.hpp>
#include <accelerate/comm/memory_source.hpp>
#include <accelerate/comm/stage_copy.hpp>
#include <mutex>

namespace accelerate::comm {

/// Sizes of the memory through which the ranks of a node pass data that does not live in buffers.
struct transport_options {
    int64_t stage_bytes = 256 << 10;  ///< data travels in pieces of this size; two such areas for each rank
    int64_t pipe_bytes = 32 << 10;    ///< for `send`: one pipe for each ordered pair of ranks
    int64_t small_bytes = 2 << 10;    ///< reductions of buffers up to this size copy rather than meet once more

    /// For `n` ranks that see each other's memory: many get smaller areas each, some tens of megabytes together; areas begin at
    /// cache lines, and a stage has room for an element for every rank.
    transport_options fitted(int64_t n) const {
        auto const lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
        auto o = *this;
        o.stage_bytes = lines(std::max(std::min(o.stage_bytes, std::max<int64_t>(16 << 10, (int64_t{16} << 20) / n)), 64 * n));
        o.pipe_bytes = lines(std::max<int64_t>(std::min(o.pipe_bytes, std::max<int64_t>(1 << 10, (int64_t{8} << 20) / (n * n))), 64));
        o.small_bytes = std::clamp<int64_t>(o.small_bytes, 0, o.stage_bytes);
        return o;
    }
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
          mailbox(memory_.data + pipes_at(members(), options), static_cast<size_t>(options.pipe_bytes), who.me, who.ranks) {}

    /// Memory that `n` ranks need to meet and to pass data; the options are fitted.
    static size_t bytes(int64_t n, transport_options const& o) { return pipes_at(n, o) + Mailbox::bytes(n, static_cast<size_t>(o.pipe_bytes)); }

    int64_t members() const { return static_cast<int64_t>(who.ranks.size()); }
    bool leader() const { return who.me == 0; }
    std::chrono::milliseconds deadline() const { return control.deadline.load(); }

    enum class Part { Whole, Beginning };

    /// Does one collective operation: serialised with others of this rank, recorded, announced to the peers. `refusal`: why this
    /// rank's own arguments cannot work; it comes all the same, so that its peers hear of it. `part`: of an operation that follows at
    /// once and is recorded instead, unless this one fails.
    template <class Body>
    auto operation(Call call, std::string_view refusal, Body&& body, Part part = Part::Whole) {
        std::lock_guard lock(mutex_);
        if (bridge && refusal.empty()) refusal = bridge->barred();
        call.refused = !refusal.empty();
        Recorder::Entry entry(control.family().recorder, call, control.number() + 1, control.group);
        control.announce(call);
        struct Finish {
            Control& control;
            Recorder::Entry& entry;
            Part part;
            int exceptions = std::uncaught_exceptions();
            ~Finish() {
                control.finished();
                if (std::uncaught_exceptions() > exceptions) return;
                part == Part::Whole ? entry.finished() : entry.withdraw();
            }
        } finish{control, entry, part};
        try {
            if (!refusal.empty()) refuse(refusal);
            return body();
        } catch (Error const& e) {
            // After these two all ranks stand at the same place; after any other error nobody knows where they are.
            if (e.code() != code::collective_mismatch && e.code() != code::config) abandon(e);
            throw;
        } catch (std::exception const& e) {
            abandon(Error(code::internal, concat(control.here(), ": ", text_of(e))));
            throw;
        }
    }

    /// The first arrival of an operation: nobody goes on unless all called the same.
    void meet() {
        control.arrive();
        auto const agreed = control.agreed();
        if (bridge) led([&] { meet_nodes(agreed); });
        if (!agreed) [[unlikely]] {
            control.family().recorder.dump("mismatch");
            throw Error(code::collective_mismatch, concat(control.here(), ": ", advice(control.disagreement())));
        }
    }

    /// Work that one rank of each node does for its members: all go on when it is done, or fail as it failed.
    template <class Work>
    void led(Work&& work) {
        auto& verdict = verdicts()[(control.phase() + 1) & 1];
        if (leader()) {
            verdict[0] = '\0';
            try {
                work();
            } catch (std::exception const& e) {
                verdict[copied(error_from(text_of(e)).what(), verdict.data(), verdict.size() - 1)] = '\0';
            }
        }
        control.arrive(2 * grace());
        if (verdict[0] == '\0') [[likely]] return;
        auto const e = error_from(verdict.data());
        if (e.code() == code::collective_mismatch) control.family().recorder.dump("mismatch");
        else if (e.code() != code::config) control.family().recorder.dump(e.code() == code::deadline ? "deadline" : "peer lost");
        throw Error(e.code(), concat(control.here(), ": ", message_of(e)));
    }

    /// Says to all who wait for this rank that it comes no more.
    void leave(std::string_view reason) noexcept {
        control.family().leave(reason);
        if (bridge && leader() && bridge->barred().empty()) bridge->farewell(concat(code::peer_lost, ": rank ", who.rank, " is gone: ", reason));
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
    StageCopy copy;         ///< into this rank's stage
    Mailbox mailbox;
    std::mutex letters;     ///< guards `mailbox`: letters and collectives may come from different threads
    int64_t buffers = 0;    ///< numbers the buffers of this communicator

private:
    using Verdict = std::array<char, 2048>;  ///< what() of the error with which the leader's work ended; empty: well

    static std::string_view message_of(Error const& e) { return std::string_view(e.what()).substr(e.code().name.size() + 2); }
    static std::string text_of(std::exception const& e) {
        auto const* const torch = dynamic_cast<c10::Error const*>(&e);
        return torch ? torch->what_without_backtrace() : e.what();
    }

    static size_t copied(std::string_view from, char* to, size_t room) {
        auto const n = std::min(from.size(), room);
        std::memcpy(to, from.data(), n);
        return n;
    }

    static size_t aligned(size_t n) { return (n + 4095) / 4096 * 4096; }
    static size_t stages_at(int64_t n) { return aligned(Control::bytes(n)) + aligned(2 * sizeof(Verdict)); }
    static size_t pipes_at(int64_t n, transport_options const& o) { return stages_at(n) + 2 * static_cast<size_t>(n * o.stage_bytes); }
    Verdict* verdicts() const { return reinterpret_cast<Verdict*>(memory_.data + aligned(Control::bytes(members()))); }

    static std::string advice(std::string const& sides) { return concat("ranks disagree: ", sides, ". Every rank must make the same calls in the same order, with the same dtype and shape"); }

    /// Who waits for other nodes waits so much longer than who waits for a rank of its node: that one knows who is missing.
    std::chrono::milliseconds grace() const {
        using std::chrono::milliseconds;
        return std::clamp<milliseconds>(deadline() / 10, milliseconds(200), milliseconds(2000));
    }

    [[noreturn]] void refuse(std::string_view why) {
        try {
            meet();
        } catch (Error const& e) {
            if (e.code() != code::collective_mismatch) throw;
        }
        throw Error(code::config, concat(control.here(), ": ", why));
    }

    void abandon(Error const& e) {
        control.abandon(e);
        if (bridge && leader()) bridge->farewell(e.what());
    }

    /// What a leader tells the others about its node.
    struct Report {
        Fingerprint fingerprint;
        Call call;
        int64_t rank = 0, members = 1;
        char disagreement[480] = "";  // empty: all of them called that

        std::string text() const { return disagreement[0] ? disagreement : concat(members > 1 ? "the node of rank " : "rank ", rank, " called ", describe_apart(call)); }
    };

    void meet_nodes(bool agreed) {
        Report mine;
        mine.fingerprint = control.fingerprint(who.me), mine.call = control.call(who.me);
        mine.rank = who.rank, mine.members = members();
        if (!agreed) copied(control.disagreement(), mine.disagreement, sizeof mine.disagreement - 1);
        std::vector<std::string> all;
        try {
            all = bridge->exchange({reinterpret_cast<char const*>(&mine), sizeof mine}, deadline() + grace());
        } catch (Error const& e) {
            if (e.code() != code::deadline) throw;
            throw Error(code::deadline, concat(message_of(e), "; the last call that all joined was ", describe(last_), ", operation ", last_number_));
        }
        last_ = mine.call, last_number_ = control.number();
        std::vector<Report> reports(all.size());
        bool same = true;
        for (size_t i = 0; i < all.size(); ++i) {
            std::memcpy(static_cast<void*>(&reports[i]), all[i].data(), sizeof(Report));
            same = same && !reports[i].disagreement[0] && reports[i].fingerprint.agrees(mine.fingerprint);
        }
        if (same) [[likely]] return;
        std::string text;
        for (auto const& r : reports) text += concat(text.empty() ? "" : "; ", r.text());
        throw Error(code::collective_mismatch, advice(text));
    }

    Call last_;
    uint64_t last_number_ = 0;
};

}  // namespace accelerate::comm
