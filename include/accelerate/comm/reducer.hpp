#pragma once

#include <accelerate/comm/buffer.hpp>
#include <accelerate/comm/reduce.hpp>
#include <accelerate/comm/transfer.hpp>
#include <accelerate/core/reductions.hpp>
#include <limits>

/// Reductions inside one operation of a group. Terms are added in rank order whoever adds them, so that every rank has the same
/// bits; 16-bit floats are added in fp32 and rounded once for each node.
namespace accelerate::comm::reducer {

struct What {
    at::ScalarType dtype;
    Reduction reduction;
    double factor;

    int64_t unit() const { return static_cast<int64_t>(c10::elementSize(dtype)); }
};

inline What what(Group const& g, at::ScalarType dtype, Reduction reduction) { return {dtype, reduction, reduction == Reduction::Mean ? 1.0 / static_cast<double>(g.who.size) : 1.0}; }

/// `n` elements of every member's array `in(p)` to the array `out(k)` of each of `outs` receivers.
template <class In, class Out>
void members(Group const& g, What const& w, In&& in, int64_t outs, Out&& out, int64_t n) {
    if (n <= 0) return;
    constexpr size_t few = 16;
    std::array<void const*, few> from;
    std::array<void*, few> to;
    std::vector<void const*> many_from;
    std::vector<void*> many_to;
    auto const ins = static_cast<size_t>(g.members());
    void const** f = from.data();
    void** t = to.data();
    if (ins > few) many_from.resize(ins), many_to.resize(ins), f = many_from.data(), t = many_to.data();
    for (size_t p = 0; p < ins; ++p) f[p] = in(static_cast<int64_t>(p));
    for (int64_t k = 0; k < outs; ++k) t[k] = out(k);
    reduce({t, outs, f, static_cast<int64_t>(ins), w.factor}, w.dtype, w.reduction, n);
}

/// In place, memory of this rank only: through the stages.
inline void all_reduce(Group& g, What const& w, void* data, int64_t count) {
    if (g.who.size == 1) return g.meet();
    auto* const bytes = static_cast<std::byte*>(data);
    auto const unit = w.unit(), total = count * unit, room = g.options.stage_bytes / unit * unit;
    auto& control = g.control;
    // With few ranks, each sums everything for itself: one arrival. With more, each sums its slice and hands it to all.
    auto const slices = g.bridge || (g.members() > 3 && total > g.options.small_bytes);
    if (!slices) {
        transfer::expose(
            g, {data, 1, total, unit}, [&] { g.meet(); }, [&](int64_t) { return total; },
            [&](int64_t p, int64_t, int64_t offset, std::byte const*, size_t n) {
                if (p != 0) return;  // all of them at once
                members(g, w, [&](int64_t q) { return q == g.who.me ? bytes + offset : g.stage(q, control.phase()); }, 1, [&](int64_t) { return bytes + offset; }, static_cast<int64_t>(n) / unit);
            });
        return;
    }
    if (g.bridge) g.meet();
    for (int64_t offset = 0; offset == 0 || offset < total; offset += room) {
        auto const n = std::min(room, total - offset);
        auto const phase = control.phase() + 1;
        if (n > 0) std::memcpy(g.stage(g.who.me, phase), bytes + offset, static_cast<size_t>(n));
        if (offset == 0 && !g.bridge) g.meet();
        else control.arrive();
        auto const [lo, hi] = Buffer::slice(0, n / unit, g.who.me, g.members());
        auto const at = [&, from = lo * unit](int64_t p) { return g.stage(p, phase) + from; };
        members(g, w, at, g.bridge ? 1 : g.members(), at, hi - lo);
        control.arrive();
        if (g.bridge) g.led([&] { g.bridge->all_reduce(g.stage(0, phase), n / unit, w.dtype, w.reduction, g.deadline()); });
        if (n > 0) std::memcpy(bytes + offset, g.stage(g.bridge ? 0 : g.who.me, phase), static_cast<size_t>(n));
    }
    // A bridged piece is read after more arrivals than the one it was exposed for. That is safe because every operation of a bridged
    // group arrives before it writes to a stage.
}

/// Run r of every rank's `in`, reduced, to rank r.
inline void reduce_scatter(Group& g, What const& w, void const* in, void* out, int64_t count) {
    auto const unit = w.unit();
    if (g.bridge) {
        std::vector<std::byte> whole(static_cast<size_t>(count * unit * g.who.size));
        if (!whole.empty()) std::memcpy(whole.data(), in, whole.size());
        all_reduce(g, w, whole.data(), count * g.who.size);
        if (count > 0) std::memcpy(out, whole.data() + g.who.rank * count * unit, static_cast<size_t>(count * unit));
        return;
    }
    std::vector<std::byte const*> theirs(static_cast<size_t>(g.members()));
    transfer::expose(
        g, {in, g.who.size, count * unit, unit}, [&] { g.meet(); }, [&](int64_t) { return count * unit; },
        [&](int64_t p, int64_t run, int64_t offset, std::byte const* piece, size_t n) {
            if (run != g.who.rank) return;
            theirs[static_cast<size_t>(p)] = piece;
            if (p + 1 < g.members()) return;
            members(g, w, [&](int64_t q) { return theirs[static_cast<size_t>(q)]; }, 1, [&](int64_t) { return static_cast<std::byte*>(out) + offset; }, static_cast<int64_t>(n) / unit);
        });
}

/// Elements [begin, end) of a buffer whose parts all members see. Without `gather`, the slice of each member stays with it. Gives the
/// sum of the squares of this member's slice, taken while it is in the cache; NaN where that is not its part of the result's, or not asked
/// for (`squares`), or it is not fp32.
inline double buffer(Group& g, What const& w, Buffer const& b, int64_t begin, int64_t end, bool gather, bool squares = false) {
    constexpr auto unknown = std::numeric_limits<double>::quiet_NaN();
    auto const unit = w.unit(), n = end - begin;
    auto const at = [&](int64_t from) { return [&b, offset = from * unit](int64_t p) { return b.part(p) + offset; }; };
    auto const squares_of = [&](int64_t from, int64_t to) { return accelerate::kernel::sum_of_squares(reinterpret_cast<float const*>(b.part(g.who.me)) + from, to - from); };
    squares = squares && w.dtype == at::kFloat && !g.bridge;
    auto const [lo, hi] = Buffer::slice(begin, end, g.who.me, g.members());
    if (g.who.size == 1) {
        g.meet();
        return squares ? squares_of(lo, hi) : unknown;
    }
    if (!g.bridge && g.members() > 2 && n * unit <= g.options.small_bytes && gather) {
        // Small: a copy costs less than an arrival of many, so everybody sums everything.
        auto const phase = g.control.phase() + 1;
        if (n > 0) std::memcpy(g.stage(g.who.me, phase), b.part(g.who.me) + begin * unit, static_cast<size_t>(n * unit));
        g.meet();
        members(g, w, [&](int64_t p) { return g.stage(p, phase); }, 1, [&](int64_t) { return b.part(g.who.me) + begin * unit; }, n);
        return squares ? squares_of(lo, hi) : unknown;
    }
    g.meet();
    if (!g.bridge) {
        auto const reduce_slice = [&](int64_t from, int64_t to) {
            // The sum is handed to all while its cache lines are here: one pass less than letting everybody fetch it.
            if (gather) members(g, w, at(from), g.members(), at(from), to - from);
            else members(g, w, at(from), 1, [own = at(from)(g.who.me)](int64_t) { return own; }, to - from);
        };
        auto const piece = squares ? int64_t{8192} : std::max<int64_t>(hi - lo, 1);  // 32 KB stay in the cache
        auto sum = squares ? 0.0 : unknown;
        for (int64_t from = lo; from < hi; from += piece) {
            auto const to = std::min(from + piece, hi);
            reduce_slice(from, to);
            if (squares) sum += squares_of(from, to);
        }
        g.control.arrive();
        return sum;
    }
    members(g, w, at(lo), 1, at(lo), hi - lo);  // to the leader's part
    g.control.arrive();
    g.led([&] { g.bridge->all_reduce(b.part(0) + begin * unit, n, w.dtype, w.reduction, g.deadline()); });
    if (gather && !g.leader() && n > 0) std::memcpy(b.part(g.who.me) + begin * unit, b.part(0) + begin * unit, static_cast<size_t>(n * unit));
    if (gather) g.control.arrive();
    return unknown;
}

}  // namespace accelerate::comm::reducer
