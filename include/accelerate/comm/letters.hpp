#pragma once

#include <accelerate/comm/group.hpp>

/// Messages between two ranks, with tags. Buffered without limit: two ranks that send to each other first do not block.
namespace accelerate::comm::letters {

/// Blocks until `ready()`; E_DEADLINE or E_PEER_LOST when rank `peer` leaves it waiting.
template <class Ready>
void wait(Group& g, Call const& call, int64_t peer, Ready&& ready) {
    auto const here = [&] { return concat(describe(call), " on rank ", g.who.rank, " (communicator ", g.control.group, ")"); };
    auto const fail = [&](Code code, std::string const& text) {
        g.control.family().recorder.dump(code == code::deadline ? "deadline" : "peer lost");
        throw Error(code, text);
    };
    auto const member = std::find(g.who.ranks.begin(), g.who.ranks.end(), peer) - g.who.ranks.begin();
    auto const local = member < g.members();
    Clock::duration looked{0};
    wait_until(ready, [&](Clock::duration elapsed) {
        bool const look = elapsed - looked > std::chrono::milliseconds(50);
        if (look) looked = elapsed;
        auto const why = local ? g.control.lost(member, look) : "";
        // It may have done its part just before it went.
        if (!why.empty() && !ready()) fail(code::peer_lost, concat(here(), ": rank ", peer, " is gone: ", why, "; ", g.control.last_call(member)));
        if (elapsed > g.deadline())
            fail(code::deadline, concat(here(), ": waited ", std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count(), " ms for rank ", peer, local ? "; " : "",
                                        local ? g.control.last_call(member) : "", ". Does that rank make the matching call, with the same tag?"));
    });
}

/// Takes in what has come from anywhere.
inline void take_in(Group& g) {
    g.mailbox.take_in();
    while (g.bridge) {
        auto come = g.bridge->poll();
        if (!come) return;
        g.mailbox.deliver(come->first, std::move(come->second));
    }
}

/// `call.root` is the receiver.
inline void send(Group& g, Call const& call, int64_t tag, void const* data, int64_t bytes) {
    std::lock_guard lock(g.letters);
    Recorder::Entry entry(g.control.family().recorder, call, 0, g.control.group);
    Envelope const envelope{tag, bytes, call};
    auto const to = static_cast<int64_t>(call.root);
    auto const member = std::find(g.who.ranks.begin(), g.who.ranks.end(), to) - g.who.ranks.begin();
    if (member < g.members()) {
        g.mailbox.send(member, envelope, data, [&](auto&& ready) { wait(g, call, to, ready); });
    } else {
        try {
            g.bridge->send(to, envelope, data, [&] { take_in(g); }, g.deadline());
        } catch (Error const& e) {
            g.control.family().recorder.dump(e.code() == code::deadline ? "deadline" : "peer lost");
            throw;
        }
    }
    entry.finished();
}

/// `call.root` is the sender. The payload of the oldest message with that tag.
inline Message receive(Group& g, Call const& call, int64_t tag) {
    std::lock_guard lock(g.letters);
    Recorder::Entry entry(g.control.family().recorder, call, 0, g.control.group);
    auto const from = static_cast<int64_t>(call.root);
    std::optional<Message> found;
    wait(g, call, from, [&] {
        if (found) return true;  // asked again after it came
        take_in(g);
        found = g.mailbox.take(from, tag);
        return found.has_value();
    });
    entry.finished();
    return std::move(*found);
}

}  // namespace accelerate::comm::letters
