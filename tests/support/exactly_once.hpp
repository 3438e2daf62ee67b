#pragma once
// An epoch that is broken off and taken up again, on whatever communicator: what the loaders hand out, to be counted.

#include <accelerate.hpp>
#include <fstream>
#include <random>

namespace exactly_once {

namespace acc = accelerate;
namespace data = acc::data;

// ---- the same numbers 0 .. n-1 as three kinds of data sets ------------------------------------------------------------------

struct Indexed {
    int64_t n = 0;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
};
struct Opaque {
    int64_t n = 0, at = 0;
    std::optional<int64_t> next() { return at < n ? std::optional(at++) : std::nullopt; }
    void start(int64_t) { at = 0; }
};
struct Range {
    int64_t at = 0, end = 0;
    std::optional<int64_t> next() { return at < end ? std::optional(at++) : std::nullopt; }
};
struct Shardable {
    int64_t n = 0;
    Range open(int64_t k, int64_t parts) const { return {k * n / parts, (k + 1) * n / parts}; }
};

// ---- one configuration --------------------------------------------------------------------------------------------------------

enum Kind { IndexedShard, OpaqueShard, ShardableShard, IndexedDispatched, OpaqueDispatched, ShardableDispatched, Kinds };

struct Case {
    int64_t seed = 0, kind = 0, n = 0, batch_size = 1, workers = 0, crash = 0;  ///< `crash`: batches that every rank has had then
    std::array<int64_t, 2> world{1, 1};                                         ///< before and after
    data::EndRule rule = data::Pad;
    bool split = false, shuffle = false;

    int64_t local(int64_t phase) const { return split ? batch_size / world[static_cast<size_t>(phase)] : batch_size; }
    int64_t total(int64_t phase) const { return local(phase) * world[static_cast<size_t>(phase)]; }
    std::string text() const {
        return acc::concat("seed ", seed, " kind ", kind, " n ", n, " batch ", batch_size, " workers ", workers, " crash ", crash, " worlds ", world[0], " ", world[1], " rule ", static_cast<int>(rule), " split ", split, " shuffle ", shuffle);
    }
};

/// Case number `seed`; `before`, `after`: worlds that are given from outside (0: drawn).
inline Case draw(int64_t seed, int64_t before = 0, int64_t after = 0) {
    std::mt19937_64 random(static_cast<uint64_t>(seed) * 7919 + 1);
    auto const below = [&](int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); };
    Case c;
    c.seed = seed, c.kind = below(Kinds), c.n = 1 + below(97), c.workers = below(3);
    c.rule = static_cast<data::EndRule>(below(4));
    c.world = {1 + below(4), 1 + below(4)};
    if (below(3) == 0) c.world[1] = c.world[0];
    if (before > 0) c.world = {before, after};
    c.split = below(4) == 0;
    c.batch_size = c.split ? c.world[0] * c.world[1] * (1 + below(2)) : 1 + below(7);
    c.shuffle = c.kind % 3 == 0 && below(2) == 0;
    // A part of a shardable stream must not be empty where it has to be filled up.
    if (c.kind == ShardableShard) c.n = std::max(c.n, c.world[0]);
    auto const rounds = c.kind == ShardableShard ? c.n / c.world[0] / c.local(0) : c.n / c.total(0);
    c.crash = below(rounds + 1);
    return c;
}

/// What one rank was handed in one phase.
struct Seen {
    std::vector<int64_t> real = {};
    int64_t batches = 0, repeated = 0, wrong = 0;  ///< `wrong`: batches whose valid() or mask() do not fit
};

/// Runs phase 0 (from the beginning to the crash) or phase 1 (from `state` to the end) on this rank. Gives the state at the end.
template <class Device>
acc::StateDict run_phase(Case const& c, int64_t phase, acc::StateDict const& state, Seen& seen) {
    data::options const o{.batch_size = c.batch_size, .shuffle = c.shuffle, .seed = c.seed, .even_batches = c.rule, .split_batches = c.split, .num_workers = c.workers};
    acc::StateDict end;
    auto const loop = [&]<class Policy>(std::type_identity<Policy>, auto dataset) {
        acc::Accelerator<Device, acc::precision::Fp32, acc::sharding::None, Policy> accelerator;
        auto loader = accelerator.prepare(data::Loader{std::move(dataset), o});
        if (phase == 1) loader.load_state_dict(state);
        if (phase == 0 && c.crash == 0) {
            end = loader.state_dict();
            return;
        }
        auto const full = c.local(phase);
        for (auto& batch : loader) {
            auto const length = batch.numel(), valid = loader.valid();
            auto const* values = batch.template const_data_ptr<int64_t>();
            seen.real.insert(seen.real.end(), values, values + valid);
            seen.repeated += length - valid;
            seen.wrong += valid > length || length > full || loader.mask().sum().template item<int64_t>() != valid || (c.rule == data::Mask && length != full);
            ++seen.batches;
            if (phase == 0 && seen.batches == c.crash) break;
        }
        end = loader.state_dict();
    };
    using Stateful = std::type_identity<acc::loader::Stateful<>>;
    using Dispatched = std::type_identity<acc::loader::Dispatched<>>;
    switch (c.kind) {
        case IndexedShard: loop(Stateful(), Indexed{c.n}); break;
        case OpaqueShard: loop(Stateful(), Opaque{c.n}); break;
        case ShardableShard: loop(Stateful(), Shardable{c.n}); break;
        case IndexedDispatched: loop(Dispatched(), Indexed{c.n}); break;
        case OpaqueDispatched: loop(Dispatched(), Opaque{c.n}); break;
        default: loop(Dispatched(), Shardable{c.n});
    }
    return end;
}

/// Empty when all ranks of both phases together were handed each sample once (or, where the rule drops, left out no more than the
/// incomplete rounds), and ranks that must have equally many batches have; else what is wrong.
inline std::string verdict(Case const& c, std::vector<Seen> const& first, std::vector<Seen> const& second) {
    std::vector<int64_t> count(static_cast<size_t>(c.n));
    int64_t wrong = 0;
    for (auto const* phase : {&first, &second}) {
        for (auto const& rank : *phase) {
            wrong += rank.wrong;
            for (auto s : rank.real) {
                if (s < 0 || s >= c.n) return acc::concat(c.text(), ": sample ", s, " does not exist");
                ++count[static_cast<size_t>(s)];
            }
            if (c.rule != data::Ragged && rank.batches != phase->front().batches) return acc::concat(c.text(), ": ranks have ", rank.batches, " and ", phase->front().batches, " batches");
            if ((c.rule == data::Ragged || c.rule == data::Drop) && rank.repeated) return acc::concat(c.text(), ": ", rank.repeated, " repetitions");
        }
    }
    if (wrong) return acc::concat(c.text(), ": ", wrong, " batches with a wrong mask");
    auto const missing = std::count(count.begin(), count.end(), 0);
    if (*std::max_element(count.begin(), count.end()) > 1) return acc::concat(c.text(), ": a sample came twice");
    auto const own_parts = c.kind == ShardableShard && c.world[0] == c.world[1];
    auto const may_miss = c.rule != data::Drop ? 0 : c.total(1) - 1 + (own_parts ? c.world[1] : 0);  // parts may differ by a sample
    if (missing > may_miss) return acc::concat(c.text(), ": ", missing, " samples are missing");
    return "";
}

}  // namespace exactly_once
