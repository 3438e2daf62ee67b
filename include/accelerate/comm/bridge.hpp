#pragma once

#include <accelerate/comm/call.hpp>
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::comm {

/// What a message between two ranks says before its payload.
struct Envelope {
    int64_t tag = 0;
    int64_t bytes = 0;
    Call call;  ///< what the sender sent, to compare with what the receiver expects
};

/// A message that has come before anybody asked for it.
struct Message {
    Envelope envelope;
    std::vector<std::byte> payload;
};

/// The error with that `what()`, which is how errors travel between ranks.
inline Error error_from(std::string_view what) {
    auto const name = what.substr(0, what.find(": "));
    auto const known = code::named(name);
    return {known, std::string(known == name ? what.substr(std::min(what.size(), name.size() + 2)) : what)};
}

/// The way between nodes, for a communicator whose ranks do not all see the same memory. Every wait has a deadline and throws
/// E_DEADLINE or E_PEER_LOST. Members marked "leaders" are called by one rank of each node only, the others by every rank.
class Bridge {
public:
    using Deadline = std::chrono::milliseconds;

    virtual ~Bridge() = default;

    /// Why the calling thread cannot use the bridge; empty where it can.
    virtual std::string_view barred() const { return {}; }

    /// Leaders: tells every other node's leader `mine` (as long as theirs) and gives what they told, by node. Says who is missing;
    /// throws what one of them said in its farewell.
    virtual std::vector<std::string> exchange(std::string const& mine, Deadline deadline) = 0;
    /// Leaders: this node comes no more, and why (the `what()` of an error). Does not wait.
    virtual void farewell(std::string_view why) noexcept = 0;
    /// Leaders: reduces `n` elements in place over the nodes; `Mean` has been prepared by a factor and is a sum here.
    virtual void all_reduce(void* data, int64_t n, at::ScalarType dtype, Reduction reduction, Deadline deadline) = 0;

    virtual void broadcast(void* data, int64_t bytes, int64_t root, Deadline deadline) = 0;
    /// Pieces of `bytes[r]` from rank r, side by side in `out`.
    virtual void all_gather(void const* mine, void* out, std::span<int64_t const> bytes, Deadline deadline) = 0;
    /// The same on the root only.
    virtual void gather(void const* mine, void* out, std::span<int64_t const> bytes, int64_t root, Deadline deadline) = 0;
    /// Piece r of `in` (each of `bytes`) to rank r.
    virtual void scatter(void const* in, void* out, int64_t bytes, int64_t root, Deadline deadline) = 0;
    virtual void all_to_all(void const* in, void* out, int64_t bytes, Deadline deadline) = 0;

    /// Sends to a rank of another node; `meanwhile` is called while it waits.
    virtual void send(int64_t to, Envelope const& envelope, void const* data, std::function<void()> const& meanwhile, Deadline deadline) = 0;
    /// Takes the next message from any rank of another node, if one has come.
    virtual std::optional<std::pair<int64_t, Message>> poll() = 0;

    /// A bridge for a part of the ranks. Collective; empty where that part lies on one node.
    virtual std::unique_ptr<Bridge> split(int64_t color, std::vector<int64_t> const& nodes, int64_t rank) = 0;
};

}  // namespace accelerate::comm
