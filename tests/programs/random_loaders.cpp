// Loaders used at random by ranks that are threads: loops that end, that are broken off or jumped out of, states that are taken and gone back to,
// also between epochs and on another number of ranks; over every kind of data set and rule for the last round. Held against a model that only
// knows which samples an epoch has given. Each follows from its number.
//
//   random_loaders FIRST COUNT
//
// Prints what is wrong, and fails where something is. Run by `tools/test --full --stage random`.
#include <torch/torch.h>

#include "support/exactly_once.hpp"
#include "support/random_trainings.hpp"

#include <iostream>
#include <mutex>
#include <optional>
#include <set>

namespace {

namespace acc = accelerate;
namespace data = acc::data;
using acc::comm::Threads;
using exactly_once::Indexed, exactly_once::Opaque, exactly_once::Shardable;
using random_trainings::Dice;
using Samples = std::set<int64_t>;

struct Hashed : Indexed {
    int64_t hash() const { return n * 31; }
};

/// In batches of 1 to 4 samples, by a batch sampler.
struct InBatches : Indexed {};
struct Table {
    std::vector<std::vector<int64_t>> batches;
    size_t size() const { return batches.size(); }
    std::vector<int64_t> const& operator[](int64_t k) const { return batches[static_cast<size_t>(k)]; }
};
struct Sampler {
    int64_t seed;
    Table batches(int64_t epoch, int64_t n) const {
        Table table;
        for (int64_t i = 0, k = seed + epoch; i < n; ++k) {
            auto& batch = table.batches.emplace_back();
            for (auto count = std::min(n - i, k * 7 % 4 + 1); count > 0; --count) batch.push_back(i++);
        }
        return table;
    }
};

/// Where part k of n begins whose parts differ in length, the first one's being the shortest.
int64_t uneven(int64_t samples, int64_t k, int64_t n) { return samples * k * k / (n * n); }
struct Uneven {
    int64_t n = 0;
    exactly_once::Range open(int64_t k, int64_t parts) const { return {uneven(n, k, parts), uneven(n, k + 1, parts)}; }
};

enum class Kind { Indexed, Hashed, InBatches, Opaque, Parts, Uneven };
enum class What {
    Loop,        ///< to its end
    BreakOff,    ///< after `n` batches
    SetEpoch,    ///< to `n`
    Skip,        ///< `n` batches
    Reload,      ///< the state that it has
    Keep,        ///< the state that it has
    KeepInside,  ///< the same after `n` batches of a loop
    GoBack,      ///< after `n` batches, to the state that was kept
    Jump         ///< after `n` batches, two epochs ahead
};
bool loops(What what) { return what == What::Loop || what == What::BreakOff || what >= What::KeepInside; }
bool reaches_end(What what) { return what == What::Loop || what == What::KeepInside; }

struct Call {
    What what;
    int64_t n;
};
/// What a job does with a loader; the next one goes on from its state.
struct Job {
    int64_t world;
    std::vector<Call> calls;
};

/// All that is drawn.
struct Plan {
    explicit Plan(int64_t number) {
        Dice dice(number);
        kind = static_cast<Kind>(dice(0, 5)), dispatched = dice.one_in(2), split = kind != Kind::InBatches && dice.one_in(4);
        n = dice(kind == Kind::Uneven ? 16 : kind == Kind::Parts ? 4 : 1, 60), batch_size = split ? 12 * dice(1, 2) : dice(1, 5), workers = dice(0, 2), seed = dice(0, 9);
        drops = dice.one_in(5), rule = drops ? data::Drop : static_cast<data::EndRule>(dice(0, 3)), shuffle = kind <= Kind::Hashed && dice.one_in(2);
        jobs.resize(static_cast<size_t>(dice(1, 4)));
        for (auto& job : jobs) {
            job.world = dice(1, 4);
            for (auto count = dice(1, 5); count > 0; --count) job.calls.push_back({static_cast<What>(dice(0, 8)), dice(0, 6)});
        }
    }

    Kind kind;
    bool dispatched, split, drops, shuffle;
    int64_t n, batch_size, workers, seed;
    data::EndRule rule;
    std::vector<Job> jobs;

    bool parts() const { return kind >= Kind::Parts; }
    int64_t part_begins(int64_t k, int64_t world) const { return kind == Kind::Uneven ? uneven(n, k, world) : k * n / world; }
    data::options options() const { return {.batch_size = batch_size, .shuffle = shuffle, .seed = seed, .drop_last = drops, .even_batches = rule, .split_batches = split, .num_workers = workers}; }
    int64_t local(int64_t world) const { return split ? batch_size / world : batch_size; }
    Table table(int64_t epoch) const { return Sampler{seed}.batches(epoch, n); }
    std::string describe() const {
        auto text = acc::concat("kind ", static_cast<int>(kind), dispatched ? ", dispatched" : "", ", samples ", n, ", batch size ", batch_size, split ? " split" : "", shuffle ? ", shuffled by " : ", seed ", seed, ", workers ", workers,
                                ", rule ", static_cast<int>(rule), drops ? " by drop_last" : "");
        for (auto const& job : jobs) {
            text += acc::concat("\n    ", job.world, " ranks:");
            for (auto const& call : job.calls) text += acc::concat(" ", static_cast<int>(call.what), ":", call.n);
        }
        return text;
    }
};

// ---- what ranks see -------------------------------------------------------------------------------------------------------------------

struct Batch {
    std::vector<int64_t> real, for_metrics;
    int64_t length, consumed;
    bool last;
};
/// What one call was on one rank.
struct Seen {
    What what{};
    int64_t n = 0, epoch = 0, consumed = 0;
    std::vector<Batch> batches = {};
};

std::vector<int64_t> numbers(torch::Tensor const& t, int64_t count) { return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + count}; }

/// Whole batches that every rank still has from a state on.
int64_t rounds_left(Plan const& plan, int64_t world, acc::StateDict const& state) {
    auto const local = plan.local(world);
    auto const consumed = state.value<int64_t>("consumed", "state"), left = plan.n - consumed;
    if (plan.kind == Kind::InBatches) {
        auto const batches = plan.table(state.value<int64_t>("epoch", "state")).batches;
        return std::ranges::count_if(batches, [&](auto const& batch) { return batch.front() >= consumed; }) / world;
    }
    if (!plan.parts() || plan.dispatched || world == 1) return left / (local * world);
    auto offsets = state.value<std::vector<int64_t>>("offsets", "state");
    if (offsets.empty()) offsets.assign(static_cast<size_t>(world), 0);
    if (static_cast<int64_t>(offsets.size()) != world) return left / (local * world);
    auto rounds = plan.n;
    for (int64_t k = 0; k < world; ++k) rounds = std::min(rounds, (plan.part_begins(k + 1, world) - plan.part_begins(k, world) - offsets[static_cast<size_t>(k)]) / local);
    return rounds;
}

template <class D>
auto loader_of(Plan const& plan) {
    D dataset{};
    dataset.n = plan.n;
    if constexpr (std::same_as<D, InBatches>) return data::Loader{std::move(dataset), plan.options(), Sampler{plan.seed}};
    else return data::Loader{std::move(dataset), plan.options()};
}

template <class Policy, class D>
std::vector<Seen> use(Plan const& plan, Job const& job, acc::StateDict const* from, acc::StateDict& state) {
    acc::Accelerator<acc::device::BasicCpu<Threads>, acc::precision::Fp32, acc::sharding::None, Policy> accelerator;
    auto loader = accelerator.prepare(loader_of<D>(plan));
    if (from) loader.load_state_dict(*from);
    auto kept = loader.state_dict();
    bool fresh = from == nullptr;  // the next loop begins the epoch, wherever the last one was broken off
    std::vector<Seen> all;
    for (auto [what, n] : job.calls) {
        auto begin = loader.state_dict();
        if (fresh) begin.values["consumed"] = 0, begin.values["offsets"] = std::vector<int64_t>();
        if (what == What::Skip && plan.parts()) what = What::Reload;
        if (what == What::Skip && plan.kind == Kind::Opaque) n = std::min(n, plan.n / accelerator.num_processes() / plan.local(accelerator.num_processes()));  // it ends somewhere
        if (loops(what) && what != What::Loop) {
            n = std::min(n, rounds_left(plan, accelerator.num_processes(), begin));
            if (n == 0) what = What::Loop;
        }
        auto& seen = all.emplace_back(Seen{what, n});
        if (loops(what)) fresh = what != What::GoBack;
        else if (what == What::SetEpoch) fresh = fresh || n != loader.epoch();
        else if (what != What::Keep) fresh = false;
        if (what == What::SetEpoch) loader.set_epoch(n);
        if (what == What::Skip) loader.skip_first_batches(n);
        if (what == What::Reload) loader.load_state_dict(loader.state_dict());
        if (what == What::Keep) kept = loader.state_dict();
        if (loops(what))
            for (auto& batch : loader) {
                seen.batches.push_back({numbers(batch, loader.valid()), {}, batch.numel(), loader.consumed(), loader.end_of_dataloader()});
                if (plan.rule != data::Ragged) {
                    auto const metrics = accelerator.gather_for_metrics(batch);
                    seen.batches.back().for_metrics = numbers(metrics, metrics.numel());
                }
                if (static_cast<int64_t>(seen.batches.size()) != n) continue;
                if (what == What::BreakOff) break;
                if (what == What::KeepInside) kept = loader.state_dict();
                if (what == What::GoBack) loader.load_state_dict(kept);
                if (what == What::Jump) loader.set_epoch(loader.epoch() + 2);
            }
        seen.epoch = loader.epoch(), seen.consumed = loader.consumed();
    }
    if (accelerator.is_last_process()) state.values = nlohmann::json::parse(loader.state_dict().values.dump());  // any rank's will do
    return all;
}

template <class Policy>
std::vector<Seen> use(Plan const& plan, Job const& job, acc::StateDict const* from, acc::StateDict& state) {
    switch (plan.kind) {
        case Kind::Indexed: return use<Policy, Indexed>(plan, job, from, state);
        case Kind::Hashed: return use<Policy, Hashed>(plan, job, from, state);
        case Kind::InBatches: return use<Policy, InBatches>(plan, job, from, state);
        case Kind::Opaque: return use<Policy, Opaque>(plan, job, from, state);
        case Kind::Parts: return use<Policy, Shardable>(plan, job, from, state);
        case Kind::Uneven: break;
    }
    return use<Policy, Uneven>(plan, job, from, state);
}

// ---- the model ------------------------------------------------------------------------------------------------------------------------

/// Where a loader is: the samples that the epoch has given, and whether the next loop goes on behind them.
struct Place {
    int64_t epoch = 0;
    Samples given = {};
    bool goes_on = false;
};

class Model {
public:
    explicit Model(Plan const& plan) : plan_(plan) {}

    void begin_job() { kept_ = now_; }
    void end_job() { now_.goes_on = true; }

    /// One call, as all ranks saw it.
    void follow(std::vector<Seen const*> const& ranks) {
        auto const [what, n, epoch, consumed, batches] = *ranks[0];
        if (loops(what)) loop(ranks);
        else if (what == What::SetEpoch && n != now_.epoch) now_ = {.epoch = n};
        else if (what == What::Skip) skip(n, world(ranks));
        else if (what == What::Reload) now_.goes_on = true;
        else if (what == What::Keep) kept_ = now_;
        for (auto const* rank : ranks) {
            expect(rank->epoch == now_.epoch, "epoch ", rank->epoch, ", expected ", now_.epoch);
            expect(rank->consumed == static_cast<int64_t>(now_.given.size()), "consumed ", rank->consumed, ", expected ", now_.given.size());
        }
    }

    std::string wrong;

private:
    template <class... Parts>
    void expect(bool holds, Parts const&... parts) {
        if (!holds && wrong.empty()) wrong = acc::concat(parts...);
    }
    static int64_t world(std::vector<Seen const*> const& ranks) { return static_cast<int64_t>(ranks.size()); }

    void skip(int64_t batches, int64_t world) {
        auto samples = batches * plan_.local(world) * world;
        if (plan_.kind == Kind::InBatches) {
            auto const table = plan_.table(now_.epoch).batches;
            samples = 0;
            for (size_t k = 0; k < std::min(table.size(), static_cast<size_t>(batches * world)); ++k) samples += static_cast<int64_t>(table[k].size());
        }
        now_.given.clear(), now_.goes_on = true;
        auto const order = data::order::Shuffled{plan_.seed}.epoch(now_.epoch, plan_.n);
        for (int64_t i = 0; i < std::min(samples, plan_.n); ++i) now_.given.insert(plan_.shuffle ? static_cast<int64_t>(order[i]) : i);
    }

    void loop(std::vector<Seen const*> const& ranks) {
        auto const what = ranks[0]->what;
        auto const n = static_cast<size_t>(ranks[0]->n);
        if (!now_.goes_on) now_.given.clear();
        now_.goes_on = false;
        std::optional<Place> kept;
        size_t rounds = 0;
        for (auto const* rank : ranks) rounds = std::max(rounds, rank->batches.size());
        for (size_t k = 0; k < rounds; ++k) {
            round(ranks, k);
            if (what == What::KeepInside && k + 1 == n) kept = Place{now_.epoch, now_.given, true};
        }
        auto const local = plan_.local(world(ranks));
        auto const left = plan_.n - static_cast<int64_t>(now_.given.size());
        // Each part has an end of its own, and the shortest one is that of all.
        auto const left_out = plan_.rule != data::Drop ? 0 : plan_.kind == Kind::Uneven ? plan_.n : plan_.kind == Kind::InBatches ? 4 * (world(ranks) - 1) : (plan_.parts() ? 2 : 1) * world(ranks) * local - 1;
        if (reaches_end(what)) expect(left <= left_out, left, " samples are missing"), now_ = {.epoch = now_.epoch + 1};
        else expect(rounds == n, rounds, " batches, expected ", n);
        if (kept) kept_ = *kept;
        if (what == What::GoBack) now_ = kept_, now_.goes_on = true;
        if (what == What::Jump) now_ = {.epoch = now_.epoch + 2};
    }

    void round(std::vector<Seen const*> const& ranks, size_t k) {
        auto const local = plan_.local(world(ranks));
        std::vector<int64_t> together;
        for (auto const* rank : ranks) {
            if (k >= rank->batches.size()) {
                expect(plan_.rule == data::Ragged, "a rank has no batch ", k);
                continue;
            }
            auto const& batch = rank->batches[k];
            for (auto const sample : batch.real) expect(sample >= 0 && sample < plan_.n && now_.given.insert(sample).second, "sample ", sample, " comes twice"), together.push_back(sample);
            if (plan_.kind != Kind::InBatches) {
                expect(batch.length <= local && (plan_.rule != data::Mask || batch.length == local), "a batch of ", batch.length);
                expect(plan_.rule != data::Drop || static_cast<int64_t>(batch.real.size()) == local, "a batch of ", batch.real.size(), " real samples");
            }
            if (reaches_end(rank->what)) expect(batch.last == (k + 1 == rank->batches.size()), "end_of_dataloader at batch ", k, " of ", rank->batches.size());
        }
        for (auto const* rank : ranks) {
            if (k >= rank->batches.size()) continue;
            expect(rank->batches[k].consumed == static_cast<int64_t>(now_.given.size()), "consumed ", rank->batches[k].consumed, " at batch ", k, ", expected ", now_.given.size());
            expect(plan_.rule == data::Ragged || rank->batches[k].for_metrics == together, "gather_for_metrics at batch ", k);
        }
    }

    Plan const& plan_;
    Place now_, kept_;
};

/// What is wrong; empty: nothing.
std::string run(Plan const& plan) {
    Model model(plan);
    acc::StateDict state;
    bool first = true;
    for (auto const& job : plan.jobs) {
        std::vector<std::vector<Seen>> seen(static_cast<size_t>(job.world));
        acc::StateDict end;
        Threads::run(job.world, [&](Threads const& comm) {
            auto const go = [&]<class Policy>(std::type_identity<Policy>) { return use<Policy>(plan, job, first ? nullptr : &state, end); };
            seen[static_cast<size_t>(comm.rank())] = plan.dispatched ? go(std::type_identity<acc::loader::Dispatched<>>()) : go(std::type_identity<acc::loader::Stateful<>>());
        });
        model.begin_job();
        for (size_t i = 0; i < job.calls.size(); ++i) {
            std::vector<Seen const*> ranks;
            for (auto const& rank : seen) ranks.push_back(&rank[i]);
            model.follow(ranks);
            if (!model.wrong.empty()) return acc::concat("call ", i, " of ", job.world, " ranks: ", model.wrong);
        }
        model.end_job();
        state = std::move(end), first = false;
    }
    return "";
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 3, acc::code::config, "usage: random_loaders FIRST COUNT");
        int64_t const first = std::stoll(argv[1]), count = std::stoll(argv[2]);
        int64_t wrong = 0;
        for (auto number = first; number < first + count; ++number) {
            Plan const plan(number);
            std::string found;
            try {
                found = run(plan);
            } catch (std::exception const& e) {
                found = acc::concat("ends with ", e.what());
            }
            if (!found.empty()) ++wrong, std::cout << acc::concat("loader ", number, ": ", found, "\n    ", plan.describe()) << std::endl;
        }
        std::cout << count << " loaders: " << wrong << " are wrong" << std::endl;
        acc::check(wrong == 0, acc::code::internal, wrong, " loaders are wrong");
    });
}
