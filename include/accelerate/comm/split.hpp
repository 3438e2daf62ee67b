#pragma once

#include <accelerate/comm/buffer.hpp>
#include <accelerate/comm/transfer.hpp>
#include <ATen/ops/zeros.h>

/// How groups make further groups and buffers. Collective.
namespace accelerate::comm {

/// What every rank says, to all ranks of the group, as part of a larger operation named `o`.
inline std::vector<std::string> exchange(Group& g, std::string_view mine, Operation o, int64_t root = -1, std::string_view refusal = {}) {
    Call call;
    call.operation = o, call.count = static_cast<int64_t>(mine.size()), call.root = as_root(root);
    return g.operation(call, refusal, [&] {
        std::string all;
        std::vector<int64_t> lengths;
        transfer::gather(g, mine.data(), call.count, 1, root, [&](std::vector<int64_t> const& bytes) {
            lengths = bytes;
            size_t total = 0;
            for (auto n : bytes) total += static_cast<size_t>(n);
            all.resize(total);
            return all.data();
        });
        std::vector<std::string> parts;
        size_t at = 0;
        for (auto n : lengths) parts.push_back(all.substr(at, static_cast<size_t>(n))), at += static_cast<size_t>(n);
        return parts;
    });
}

namespace detail {
template <class T>
std::string_view bytes_of(T const& value) { return {reinterpret_cast<char const*>(&value), sizeof value}; }
template <class T>
T from_bytes(std::string const& text) {
    T value;
    std::memcpy(&value, text.data(), sizeof value);
    return value;
}
}  // namespace detail

/// Who is where in a part of a communicator: `chosen` are its ranks in their new order, as numbers of the old one.
inline Membership part_of(Membership const& whole, std::vector<int64_t> const& chosen) {
    Membership part;
    part.size = static_cast<int64_t>(chosen.size());
    part.nodes.clear(), part.hosts.clear(), part.ranks.clear();
    for (int64_t r = 0; r < part.size; ++r) {
        auto const old = static_cast<size_t>(chosen[static_cast<size_t>(r)]);
        part.nodes.push_back(whole.nodes[old]), part.hosts.push_back(whole.hosts[old]);
        if (chosen[static_cast<size_t>(r)] == whole.rank) part.rank = r;
    }
    auto const me = static_cast<size_t>(part.rank);
    part.local_size = 0;
    for (int64_t r = 0; r < part.size; ++r) {
        auto const i = static_cast<size_t>(r);
        if (r == part.rank) part.local_rank = part.local_size, part.me = static_cast<int64_t>(part.ranks.size());
        if (part.hosts[i] == part.hosts[me]) ++part.local_size;
        if (part.nodes[i] == part.nodes[me]) part.ranks.push_back(r);
    }
    return part;
}

/// Memory where `members` of an assembly of `size` ranks meet, and `before` bytes in front of it. Where little is to be had the
/// areas become smaller, on every rank alike; empty where not even that can be shared.
inline Region meeting_place(MemorySource& source, transport_options& options, size_t before, Exchange const& exchange, std::vector<int64_t> const& members, int64_t me, int64_t size) {
    auto const least = std::max<int64_t>(4 << 10, 64 * size);
    for (;;) {
        if (auto memory = source.share(before + Group::bytes(static_cast<int64_t>(members.size()), options), exchange, members, me)) return memory;
        if (options.stage_bytes <= least) return {};
        options = {.stage_bytes = std::max(least, options.stage_bytes / 16), .pipe_bytes = std::min<int64_t>(options.pipe_bytes, 1 << 10), .small_bytes = options.small_bytes};
        options = options.fitted(size);
    }
}

/// The ranks with this rank's `color`, ordered by `key` and then by their old rank.
inline std::shared_ptr<Group> split(Group& g, int64_t color, int64_t key) {
    struct Wish { int64_t color, key; };
    auto const wishes = exchange(g, detail::bytes_of(Wish{color, key}), Operation::Split);
    std::vector<std::pair<int64_t, int64_t>> order;
    for (size_t r = 0; r < wishes.size(); ++r)
        if (auto const w = detail::from_bytes<Wish>(wishes[r]); w.color == color) order.emplace_back(w.key, static_cast<int64_t>(r));
    std::sort(order.begin(), order.end());
    std::vector<int64_t> chosen, members, places;
    for (auto const& [k, r] : order) chosen.push_back(r);

    Group::Parts parts;
    parts.who = part_of(g.who, chosen);
    parts.options = g.options;
    parts.source = g.source;
    parts.family = g.control.shared_family();
    parts.members.clear();
    for (auto const r : parts.who.ranks) {
        auto const old = chosen[static_cast<size_t>(r)];
        members.push_back(old);
        auto const place = std::find(g.who.ranks.begin(), g.who.ranks.end(), old) - g.who.ranks.begin();
        parts.members.push_back(g.control.members()[static_cast<size_t>(place)]);
    }
    auto const talk = [&](std::string_view mine) { return exchange(g, mine, Operation::Split); };
    parts.memory = meeting_place(*g.source, parts.options, 0, talk, members, g.who.rank, g.who.size);
    check(static_cast<bool>(parts.memory), code::io, "split on rank ", g.who.rank, ": no memory that the ranks of this node can share");
    if (g.bridge) parts.bridge = g.bridge->split(*std::min_element(chosen.begin(), chosen.end()), parts.who.nodes, parts.who.rank);
    auto made = std::make_shared<Group>(std::move(parts));
    made->control.deadline = g.deadline();
    talk({});  // nobody goes on before all have come
    return made;
}

/// Memory of the group in which its ranks can reduce.
inline Buffer allocate(Group& g, int64_t numel, at::ScalarType dtype) {
    Call call;
    call.operation = Operation::Allocate, call.dtype = dtype, call.count = numel, call.dims = 1, call.shape[0] = numel;
    g.operation(call, numel < 0 ? "the number of elements is negative" : why_not(Reduction::Sum, dtype), [&] { g.meet(); });
    auto const number = ++g.buffers;
    auto const part = Buffer::part_bytes(numel, dtype);
    auto const talk = [&](std::string_view mine) { return exchange(g, mine, Operation::Allocate); };
    auto const memory = g.source->share(part * static_cast<size_t>(g.members()), talk, g.who.ranks, g.who.rank);
    if (!memory) return Buffer(number, numel, dtype, Region::heap(part), 0, 1, std::vector<int64_t>(static_cast<size_t>(g.who.size), 0));
    // Each rank touches its own part first, so that its pages lie near its core.
    std::memset(memory.data + static_cast<size_t>(g.who.me) * part, 0, part);
    talk({});
    std::vector<int64_t> owners(static_cast<size_t>(g.who.size), 0);  // across nodes everything ends in the leader's part
    if (!g.bridge)
        for (size_t r = 0; r < owners.size(); ++r) owners[r] = static_cast<int64_t>(r);
    return Buffer(number, numel, dtype, memory, g.who.me, g.members(), owners);
}

}  // namespace accelerate::comm
