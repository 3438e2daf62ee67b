#pragma once

#include <accelerate/comm/bridge.hpp>
#include <accelerate/comm/control.hpp>
#include <deque>
#include <functional>
#include <map>
#include <optional>

namespace accelerate::comm {

/// A pipe of bytes from one rank to another, in memory that both see. The sender moves `head`, the receiver `tail`.
struct alignas(64) Pipe {
    std::atomic<uint64_t> head;
    alignas(64) std::atomic<uint64_t> tail;
    std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
};

/// This rank's letters. A message is an envelope and its payload, through a pipe for each pair of ranks; whoever waits, to send or
/// to receive, also takes in what others send, so two ranks that both send first do not block each other whatever the size.
/// Not thread-safe: its owner has a lock.
class Mailbox {
public:
    /// `pipes` holds n * n pipes of `capacity` bytes, the one from a to b at a * n + b.
    /// `ranks`: the numbers of the members, by which messages are known once they are here.
    Mailbox(std::byte* pipes, size_t capacity, int64_t me, std::vector<int64_t> ranks)
        : pipes_(pipes), capacity_(capacity), me_(me), n_(static_cast<int64_t>(ranks.size())), ranks_(std::move(ranks)), partial_(ranks_.size()), broken_(ranks_.size()) {}

    static size_t bytes(int64_t n, size_t capacity) { return static_cast<size_t>(n * n) * (sizeof(Pipe) + capacity); }

    /// To a member; `wait(ready)` blocks until ready() or throws. After an exception that pipe is unusable and says so.
    template <class Wait>
    void send(int64_t to, Envelope const& envelope, void const* data, Wait&& wait) {
        if (to == me_) {
            Message loop{envelope, std::vector<std::byte>(static_cast<size_t>(envelope.bytes))};
            if (envelope.bytes > 0) std::memcpy(loop.payload.data(), data, loop.payload.size());
            return deliver(ranks_[static_cast<size_t>(me_)], std::move(loop));
        }
        auto const broken = static_cast<size_t>(to);
        check(!broken_[broken], code::peer_lost, "send to rank ", ranks_[broken], ": an earlier message to it was cut short by an error");
        broken_[broken] = true;
        write(to, &envelope, sizeof envelope, wait);
        write(to, data, static_cast<size_t>(envelope.bytes), wait);
        broken_[broken] = false;
    }

    /// Puts a message where `take` finds it.
    void deliver(int64_t from_rank, Message message) { arrived_[from_rank].push_back(std::move(message)); }

    /// The oldest message from that rank with that tag, if it has come.
    std::optional<Message> take(int64_t from_rank, int64_t tag) {
        auto& messages = arrived_[from_rank];
        auto const it = std::find_if(messages.begin(), messages.end(), [&](Message const& m) { return m.envelope.tag == tag; });
        if (it == messages.end()) return {};
        std::optional<Message> found(std::move(*it));
        messages.erase(it);
        return found;
    }

    /// Empties this rank's pipes into memory of its own.
    void take_in() {
        for (int64_t from = 0; from < n_; ++from) {
            if (from == me_) continue;
            auto& pipe = this->pipe(from, me_);
            auto& partial = partial_[static_cast<size_t>(from)];
            for (;;) {
                auto tail = pipe.tail.load(std::memory_order_relaxed);
                auto available = static_cast<size_t>(pipe.head.load(std::memory_order_acquire) - tail);
                if (available == 0) break;
                auto const copy = [&](std::byte* to, size_t length) {
                    auto const at = static_cast<size_t>(tail % capacity_);
                    auto const first = std::min(length, capacity_ - at);
                    std::memcpy(to, pipe.data() + at, first);
                    std::memcpy(to + first, pipe.data(), length - first);
                    tail += length;
                    available -= length;
                };
                if (partial.have < sizeof(Envelope)) {
                    auto const length = std::min(available, sizeof(Envelope) - partial.have);
                    copy(reinterpret_cast<std::byte*>(&partial.message.envelope) + partial.have, length);
                    partial.have += length;
                    if (partial.have == sizeof(Envelope)) partial.message.payload.resize(static_cast<size_t>(partial.message.envelope.bytes));
                }
                if (partial.have >= sizeof(Envelope)) {
                    auto const done = partial.have - sizeof(Envelope);
                    auto const length = std::min(available, partial.message.payload.size() - done);
                    if (length > 0) copy(partial.message.payload.data() + done, length);
                    partial.have += length;
                    if (done + length == partial.message.payload.size()) {
                        deliver(ranks_[static_cast<size_t>(from)], std::move(partial.message));
                        partial = {};
                    }
                }
                pipe.tail.store(tail, std::memory_order_release);
            }
        }
    }

private:
    struct Partial {
        size_t have = 0;
        Message message;
    };

    Pipe& pipe(int64_t from, int64_t to) const { return *reinterpret_cast<Pipe*>(pipes_ + static_cast<size_t>(from * n_ + to) * (sizeof(Pipe) + capacity_)); }

    template <class Wait>
    void write(int64_t to, void const* data, size_t bytes, Wait&& wait) {
        auto& pipe = this->pipe(me_, to);
        auto const* from = static_cast<std::byte const*>(data);
        auto head = pipe.head.load(std::memory_order_relaxed);
        while (bytes > 0) {
            size_t room = 0;
            auto const look = [&] { return (room = capacity_ - static_cast<size_t>(head - pipe.tail.load(std::memory_order_acquire))) > 0; };
            if (!look())
                wait([&] {
                    take_in();
                    return look();
                });
            auto const at = static_cast<size_t>(head % capacity_);
            auto const length = std::min({bytes, room, capacity_ - at});
            std::memcpy(pipe.data() + at, from, length);
            head += length, from += length, bytes -= length;
            pipe.head.store(head, std::memory_order_release);
        }
    }

    std::byte* pipes_;
    size_t capacity_;
    int64_t me_, n_;
    std::vector<int64_t> ranks_;
    std::vector<Partial> partial_;
    std::vector<bool> broken_;
    std::map<int64_t, std::deque<Message>> arrived_;  // by rank
};

}  // namespace accelerate::comm
