#pragma once

#include <accelerate/comm/group.hpp>

/// Movement of bytes inside one operation of a group. Ranks of a node pass pieces through their stages, one arrival for each piece;
/// between nodes the bridge does it. Each function returns when this rank may write its own memory again.
namespace accelerate::comm::transfer {

/// What a member exposes: `runs` stretches of `bytes` each, side by side, that are cut into pieces in step.
struct Exposed {
    void const* data = nullptr;
    int64_t runs = 1;
    int64_t bytes = 0;
    int64_t granule = 1;  ///< pieces are multiples of this: the size of an element
};

/// `arrive()` makes the first arrival (`group.meet`, or a plain one later in an operation); `length(p)` says, after it, how long a
/// run of member p is; `visit(p, run, offset, piece, n)` is called for every piece that a member exposed.
template <class Arrive, class Length, class Visit>
void expose(Group& g, Exposed const& mine, Arrive&& arrive, Length&& length, Visit&& visit) {
    if (g.who.size == 1) {
        arrive();
        for (int64_t i = 0; mine.bytes > 0 && i < mine.runs; ++i) visit(0, i, 0, static_cast<std::byte const*>(mine.data) + i * mine.bytes, static_cast<size_t>(mine.bytes));
        return;
    }
    auto const room = std::max(mine.granule, g.options.stage_bytes / mine.runs / mine.granule * mine.granule);
    int64_t longest = 0;
    for (int64_t offset = 0; offset == 0 || offset < longest; offset += room) {
        auto const n = std::clamp<int64_t>(mine.bytes - offset, 0, room);
        auto* const stage = g.stage(g.who.me, g.control.phase() + 1);
        StageCopy::Round const round(g.copy, static_cast<size_t>(n * mine.runs));
        for (int64_t i = 0; n > 0 && i < mine.runs; ++i)
            g.copy(stage + i * room, static_cast<std::byte const*>(mine.data) + i * mine.bytes + offset, static_cast<size_t>(n));
        if (offset == 0) {
            arrive();
            for (int64_t p = 0; p < g.members(); ++p) longest = std::max<int64_t>(longest, length(p));
        } else {
            g.control.arrive();
        }
        for (int64_t p = 0; p < g.members(); ++p) {
            auto const theirs = std::clamp<int64_t>(length(p) - offset, 0, room);
            auto const* const piece = g.stage(p, g.control.phase());
            for (int64_t i = 0; theirs > 0 && i < mine.runs; ++i) visit(p, i, offset, piece + i * room, static_cast<size_t>(theirs));
        }
    }
}

/// `data` of the root to all. `meets`: this is the first thing that the operation does.
inline void broadcast(Group& g, void* data, int64_t bytes, int64_t root, bool meets = true) {
    if (g.bridge) {
        if (meets) g.meet();
        return g.bridge->broadcast(data, bytes, root, g.deadline());
    }
    auto const mine = g.who.rank == root;
    expose(
        g, {data, 1, mine ? bytes : 0, 1}, [&] { meets ? g.meet() : g.control.arrive(); }, [&](int64_t p) { return p == root ? bytes : 0; },
        [&](int64_t, int64_t, int64_t offset, std::byte const* piece, size_t n) {
            if (!mine) std::memcpy(static_cast<std::byte*>(data) + offset, piece, n);
        });
}

/// What every rank brings, to all (`root` -1) or to one: `count` (which the fingerprint shows) times `unit` bytes. After the ranks
/// have met, `place(counts)` says where the pieces go, side by side; ranks that get nothing are not asked.
template <class Place>
void gather(Group& g, void const* data, int64_t count, int64_t unit, int64_t root, Place&& place) {
    auto const wanted = root < 0 || root == g.who.rank;
    std::vector<int64_t> counts(static_cast<size_t>(g.who.size)), bytes(counts.size());
    std::vector<std::byte*> to(counts.size());
    auto const lay_out = [&] {
        auto* at = wanted ? static_cast<std::byte*>(static_cast<void*>(place(std::as_const(counts)))) : nullptr;
        for (size_t r = 0; r < counts.size(); at += wanted ? bytes[r] : 0, ++r) bytes[r] = counts[r] * unit, to[r] = at;
    };
    if (g.bridge) {
        g.meet();
        std::vector<int64_t> const each(counts.size(), static_cast<int64_t>(sizeof count));
        g.bridge->all_gather(&count, counts.data(), each, g.deadline());
        lay_out();
        return root < 0 ? g.bridge->all_gather(data, to[0], bytes, g.deadline()) : g.bridge->gather(data, to[0], bytes, root, g.deadline());
    }
    expose(
        g, {data, 1, count * unit, 1},
        [&] {
            g.meet();
            for (size_t r = 0; r < counts.size(); ++r) counts[r] = g.control.fingerprint(static_cast<int64_t>(r)).count;
            lay_out();
        },
        [&](int64_t p) { return bytes[static_cast<size_t>(p)]; },
        [&](int64_t p, int64_t, int64_t offset, std::byte const* piece, size_t n) {
            if (wanted) std::memcpy(to[static_cast<size_t>(p)] + offset, piece, n);
        });
}

/// `bytes` of every rank, as many on each whatever the call says, to all, side by side in `out`.
inline void all_gather(Group& g, void const* in, std::byte* out, int64_t bytes) {
    if (g.bridge) {
        g.meet();
        return g.bridge->all_gather(in, out, std::vector(static_cast<size_t>(g.who.size), bytes), g.deadline());
    }
    expose(
        g, {in, 1, bytes, 1}, [&] { g.meet(); }, [&](int64_t) { return bytes; },
        [&](int64_t p, int64_t, int64_t offset, std::byte const* piece, size_t n) { std::memcpy(out + p * bytes + offset, piece, n); });
}

/// Run r of the root's `in` to rank r. The ranks have met.
inline void scatter(Group& g, void const* in, void* out, int64_t bytes, int64_t root) {
    if (g.bridge) return g.bridge->scatter(in, out, bytes, root, g.deadline());
    auto const mine = g.who.rank == root;
    expose(
        g, {in, g.who.size, mine ? bytes : 0, 1}, [&] { g.control.arrive(); }, [&](int64_t p) { return p == root ? bytes : 0; },
        [&](int64_t, int64_t run, int64_t offset, std::byte const* piece, size_t n) {
            if (run == g.who.rank) std::memcpy(static_cast<std::byte*>(out) + offset, piece, n);
        });
}

/// Run r of every rank's `in` to rank r, side by side in `out`.
inline void all_to_all(Group& g, void const* in, void* out, int64_t bytes) {
    if (g.bridge) {
        g.meet();
        return g.bridge->all_to_all(in, out, bytes, g.deadline());
    }
    expose(
        g, {in, g.who.size, bytes, 1}, [&] { g.meet(); }, [&](int64_t) { return bytes; },
        [&](int64_t p, int64_t run, int64_t offset, std::byte const* piece, size_t n) {
            if (run == g.who.rank) std::memcpy(static_cast<std::byte*>(out) + p * bytes + offset, piece, n);
        });
}

}  // namespace accelerate::comm::transfer
