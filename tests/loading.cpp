// Loaders over several ranks, streams and dispatch, through their public names: exactly once, whatever happens on the way; against
// Python Accelerate's rules (worked examples) and hand-written expectations.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, whose CHECK ends the process
#include "support/errors.hpp"
#include "support/exactly_once.hpp"

#include <mutex>

namespace acc = accelerate;
namespace data = acc::data;

namespace {

using Threads = acc::comm::Threads;
using Device = acc::device::BasicCpu<Threads>;
template <class Policy>
using Run = acc::Accelerator<Device, acc::precision::Fp32, acc::sharding::None, Policy>;
using Stateful = acc::loader::Stateful<>;
using Dispatched = acc::loader::Dispatched<>;
using exactly_once::Indexed, exactly_once::Opaque, exactly_once::Shardable;

std::string text_of(torch::Tensor const& t) {
    std::string out;
    for (int64_t i = 0; i < t.numel(); ++i) out += (i ? "," : "") + std::to_string(t.const_data_ptr<int64_t>()[i]);
    return out;
}

/// "0,1;4,5" of each rank: the batches of one epoch.
template <class Policy, class D>
std::vector<std::string> batches(int64_t ranks, D const& dataset, data::options o, std::vector<int64_t>* remainders = nullptr) {
    std::vector<std::string> out(static_cast<size_t>(ranks));
    std::mutex mutex;
    Threads::run(ranks, [&](Threads const& comm) {
        Run<Policy> accelerator;
        auto loader = accelerator.prepare(data::Loader{D(dataset), o});
        std::string text;
        int64_t remainder = -1;
        for (auto& batch : loader) {
            text += (text.empty() ? "" : ";") + text_of(batch);
            if (loader.end_of_dataloader()) remainder = loader.remainder();
        }
        std::lock_guard lock(mutex);
        out[static_cast<size_t>(comm.rank())] = text;
        if (remainders) remainders->push_back(remainder);
    });
    return out;
}

using V = std::vector<std::string>;

}  // namespace

TEST_CASE("streams are cut over ranks as Python's IterableDatasetShard cuts them", "[stream_slices][stream_source]") {
    for (int64_t workers : {0, 2}) {
        auto const cut = [&](int64_t n, int64_t bs, int64_t ranks, bool split = false, bool drop = false, data::EvenBatches even = true) {
            return batches<Stateful>(ranks, Opaque{n}, {.batch_size = bs, .drop_last = drop, .even_batches = even, .split_batches = split, .num_workers = workers});
        };
        CHECK(cut(10, 2, 2) == V{"0,1;4,5;8,9", "2,3;6,7;0,1"});
        CHECK(cut(10, 2, 2, false, true) == V{"0,1;4,5", "2,3;6,7"});
        CHECK(cut(11, 4, 2, true) == V{"0,1;4,5;8,9", "2,3;6,7;10,0"});
        CHECK(cut(3, 4, 2) == V{"0,1,2,0", "1,2,0,1"});
        CHECK(cut(13, 4, 3) == V{"0,1,2,3;12,0,1,2", "4,5,6,7;3,4,5,6", "8,9,10,11;7,8,9,10"});
        CHECK(cut(13, 4, 3, false, false, false) == V{"0,1,2,3;12", "4,5,6,7", "8,9,10,11"});
        CHECK(cut(5, 2, 1) == V{"0,1;2,3;4"});
        CHECK(cut(5, 2, 1, false, false, data::Mask) == V{"0,1;2,3;4,4"});
        CHECK(cut(0, 2, 2) == V{"", ""});
    }
}

TEST_CASE("a shardable stream: each rank reads its own part, all end together", "[stream_source][merged_parts]") {
    CHECK(batches<Stateful>(2, Shardable{10}, {.batch_size = 2}) == V{"0,1;2,3;4,0", "5,6;7,8;9,5"});
    CHECK(batches<Stateful>(2, Shardable{10}, {.batch_size = 2, .even_batches = false}) == V{"0,1;2,3;4", "5,6;7,8;9"});
    CHECK(batches<Stateful>(2, Shardable{10}, {.batch_size = 2, .drop_last = true}) == V{"0,1;2,3", "5,6;7,8"});
    CHECK(batches<Stateful>(1, Shardable{5}, {.batch_size = 2}) == V{"0,1;2,3;4"});
    /// Parts of very different lengths.
    struct Uneven {
        exactly_once::Range open(int64_t k, int64_t) const { return {100 * k, 100 * k + (k == 0 ? 7 : 1)}; }
    };
    CHECK(batches<Stateful>(2, Uneven{}, {.batch_size = 2}) == V{"0,1;2,3;4,5;6,0", "100,100;100,100;100,100;100,100"});
    CHECK(batches<Stateful>(2, Uneven{}, {.batch_size = 2, .even_batches = data::Mask}) == V{"0,1;2,3;4,5;6,6", "100,100;100,100;100,100;100,100"});
    CHECK(batches<Stateful>(2, Uneven{}, {.batch_size = 2, .even_batches = false}) == V{"0,1;2,3;4,5;6", "100"});
    CHECK(batches<Stateful>(2, Uneven{}, {.batch_size = 1, .even_batches = data::Drop}) == V{"0", "100"});
    struct Empty {
        exactly_once::Range open(int64_t k, int64_t) const { return {0, k == 0 ? 7 : 0}; }
    };
    CHECK(has(error_of([&] { batches<Stateful>(2, Empty{}, {.batch_size = 2}); }), "part 1 of 2 of the stream is empty"));
    CHECK(batches<Stateful>(2, Empty{}, {.batch_size = 4, .even_batches = false}) == V{"0,1,2,3;4,5,6", ""});
}

TEST_CASE("rank 0 reads for all: Python's DataLoaderDispatcher", "[dispatched_source][dispatch_plan][dispatch_rounds]") {
    auto const both = [](int64_t ranks, int64_t n, data::options o, V const& expected, int64_t remainder) {
        for (int64_t workers : {0, 2}) {
            o.num_workers = workers;
            INFO("ranks " << ranks << " n " << n << " batch_size " << o.batch_size << " workers " << workers);
            std::vector<int64_t> found;
            CHECK(batches<Dispatched>(ranks, Indexed{n}, o, &found) == expected);
            CHECK(found == std::vector<int64_t>(static_cast<size_t>(ranks), remainder));
            CHECK(batches<Dispatched>(ranks, Opaque{n}, o) == expected);
            CHECK(batches<Dispatched>(ranks, Shardable{n}, o) == expected);
        }
    };
    both(2, 11, {.batch_size = 2}, {"0,1;4,5;8,9", "2,3;6,7;10,0"}, 3);
    both(2, 10, {.batch_size = 4}, {"0,1,2,3;8", "4,5,6,7;9"}, 2);
    both(3, 13, {.batch_size = 4}, {"0,1,2,3;12", "4,5,6,7;0", "8,9,10,11;1"}, 1);
    both(2, 11, {.batch_size = 4, .split_batches = true}, {"0,1;4,5;8,9", "2,3;6,7;10,0"}, 3);
    both(2, 11, {.batch_size = 2, .drop_last = true}, {"0,1;4,5", "2,3;6,7"}, 0);
    both(2, 11, {.batch_size = 2, .even_batches = data::Mask}, {"0,1;4,5;8,9", "2,3;6,7;10,10"}, 3);
    both(1, 5, {.batch_size = 2}, {"0,1;2,3;4"}, 1);
    CHECK(batches<Dispatched>(3, Indexed{13}, {.batch_size = 4, .even_batches = false}) == V{"0,1,2,3;12", "4,5,6,7", "8,9,10,11"});
}

TEST_CASE("with dispatch only rank 0 sees the data", "[dispatched_source]") {
    std::atomic<int64_t> samples = 0;
    Threads::run(3, [&](Threads const& comm) {
        Run<Dispatched> accelerator;
        auto loader = accelerator.prepare(data::Loader{Indexed{comm.rank() == 0 ? 10 : 0}, {.batch_size = 2}});
        expect(loader.size() == 2 && loader.state_dict().values["size"] == 10, "the size is that of rank 0's data");
        for ([[maybe_unused]] auto& batch : loader) samples += loader.valid();
    });
    CHECK(samples == 10);
    Threads::run(2, [&](Threads const&) {
        Run<Dispatched> accelerator;
        has(error_of([&] { accelerator.prepare(data::Loader{Indexed{0}}); }), "E_DATA: prepare: the data set of a Loader is empty");
    });
}

namespace {
struct Item {
    torch::Tensor image;
    int64_t label;
    std::string name;
    std::map<std::string, double> extra;
    struct batch {
        torch::Tensor image, label;
        std::vector<std::string> name;
        std::map<std::string, torch::Tensor> extra;
    };
};
struct Items {
    size_t size() const { return 7; }
    Item operator[](size_t i) const {
        auto const x = static_cast<double>(i);
        return {torch::full({2, 3}, x), static_cast<int64_t>(i), "sample " + std::to_string(i), {{"half", x / 2}}};
    }
};
}  // namespace

TEST_CASE("dispatched batches may hold anything that is collated", "[dispatched_source][pack]") {
    std::mutex mutex;
    std::map<int64_t, std::string> names;
    Threads::run(2, [&](Threads const&) {
        Run<Dispatched> accelerator;
        auto loader = accelerator.prepare(data::Loader{Items(), {.batch_size = 2}});
        for (auto& batch : loader) {
            std::scoped_lock lock(mutex, assertions);
            for (int64_t j = 0; j < loader.valid(); ++j) {
                auto const label = batch.label[j].item<int64_t>();
                CHECK(torch::equal(batch.image[j], torch::full({2, 3}, static_cast<double>(label))));
                CHECK(batch.extra.at("half")[j].item<double>() == static_cast<double>(label) / 2);
                CHECK(names.emplace(label, batch.name[static_cast<size_t>(j)]).second);
            }
        }
    });
    CHECK(names.size() == 7);
    CHECK(names[6] == "sample 6");
}

TEST_CASE("values survive being sent", "[pack]") {
    struct Inner {
        std::optional<torch::Tensor> there, missing;
        std::vector<bool> flags;
    };
    struct Value {
        int64_t number = 0;
        std::string text = {};
        std::tuple<double, torch::Tensor> both = {};
        std::vector<Inner> inner = {};
        acc::TensorMap named = {};
        std::array<float, 2> pair = {};
    };
    Value const value{7, std::string("a\0b", 3), {0.5, torch::arange(6).view({2, 3}).t()}, {{torch::ones({2}, torch::kHalf), {}, {true, false}}}, {{"x", torch::zeros({0, 3})}, {"none", torch::Tensor()}}, {1.f, 2.f}};
    data::Packer pack;
    pack(value);
    data::Unpacker unpack(pack.packed.bytes);
    auto copy = unpack.get<Value>();
    REQUIRE(unpack.tensors.size() == pack.packed.tensors.size());
    for (size_t i = 0; i < unpack.tensors.size(); ++i) unpack.tensors[i].copy_(pack.packed.tensors[i]);
    CHECK((copy.number == 7 && copy.text == value.text && std::get<0>(copy.both) == 0.5));
    CHECK(torch::equal(std::get<1>(copy.both), std::get<1>(value.both)));
    REQUIRE(copy.inner.size() == 1);
    CHECK((copy.inner[0].there->scalar_type() == torch::kHalf && !copy.inner[0].missing && copy.inner[0].flags == value.inner[0].flags));
    CHECK((copy.named.at("x").sizes() == at::IntArrayRef({0, 3}) && !copy.named.at("none").defined()));
    CHECK(copy.pair == value.pair);
    data::Unpacker cut(std::string_view(pack.packed.bytes).substr(0, 20));
    CHECK(has(error_of([&] { cut.get<Value>(); }), "E_INTERNAL"));
}

// ---- exactly once -----------------------------------------------------------------------------------------------------------

TEST_CASE("an epoch that is broken off and goes on, perhaps on other ranks, hands out every sample once", "[prepared][indexed_source][stream_source][dispatched_source][plan][workers]") {
    std::array<int64_t, exactly_once::Kinds> kinds{};
    int64_t resumed_elsewhere = 0;
    for (int64_t seed = 0; seed < 500; ++seed) {
        auto const c = exactly_once::draw(seed);
        INFO(c.text());
        ++kinds[static_cast<size_t>(c.kind)];
        resumed_elsewhere += c.world[0] != c.world[1];
        acc::StateDict state;
        std::array<std::vector<exactly_once::Seen>, 2> seen;
        for (int64_t phase = 0; phase < 2; ++phase) {
            auto& ranks = seen[static_cast<size_t>(phase)];
            ranks.resize(static_cast<size_t>(c.world[static_cast<size_t>(phase)]));
            auto const before = state;
            Threads::run(static_cast<int64_t>(ranks.size()), [&](Threads const& comm) {
                auto const end = exactly_once::run_phase<Device>(c, phase, before, ranks[static_cast<size_t>(comm.rank())]);
                if (phase == 0 && comm.rank() == comm.size() - 1) state.values = nlohmann::json::parse(end.values.dump());  // any rank's will do
            });
        }
        REQUIRE(exactly_once::verdict(c, seen[0], seen[1]) == "");
    }
    for (auto k : kinds) CHECK(k > 50);
    CHECK(resumed_elsewhere > 200);
}

TEST_CASE("a state between epochs begins the next one, on any number of ranks", "[prepared][delivery][stream_source][dispatched_source]") {
    auto const check = []<class Policy, class D>(std::type_identity<Policy>, D dataset) {
        for (int64_t ranks : {1, 2, 3})
            for (bool broken_off : {false, true}) {
                INFO("ranks " << ranks << ", broken off " << broken_off);
                acc::StateDict state;
                auto const loader_of = [&](auto& accelerator) { return accelerator.prepare(data::Loader{D(dataset), {.batch_size = 2, .even_batches = false}}); };
                Threads::run(ranks, [&](Threads const& comm) {
                    Run<Policy> accelerator;
                    auto loader = loader_of(accelerator);
                    for ([[maybe_unused]] auto& batch : loader)
                        if (broken_off) break;
                    if (broken_off) loader.set_epoch(1);
                    if (comm.rank() == 0) state = loader.state_dict();
                });
                for (int64_t others : {1, 2, 3}) {
                    std::mutex mutex;
                    std::vector<int64_t> seen, epochs;
                    Threads::run(others, [&](Threads const&) {
                        Run<Policy> accelerator;
                        auto loader = loader_of(accelerator);
                        loader.load_state_dict(state);
                        auto const epoch = loader.epoch();
                        for (auto& batch : loader) {
                            std::lock_guard const lock(mutex);
                            seen.insert(seen.end(), batch.template const_data_ptr<int64_t>(), batch.template const_data_ptr<int64_t>() + batch.numel());
                        }
                        std::lock_guard const lock(mutex);
                        epochs.push_back(epoch);
                    });
                    CHECK(epochs == std::vector<int64_t>(static_cast<size_t>(others), 1));
                    std::ranges::sort(seen);
                    CHECK(torch::equal(torch::tensor(seen), torch::arange(13)));
                }
            }
    };
    check(std::type_identity<Stateful>(), Indexed{13}), check(std::type_identity<Dispatched>(), Indexed{13});
    check(std::type_identity<Stateful>(), Opaque{13}), check(std::type_identity<Dispatched>(), Opaque{13});
    check(std::type_identity<Stateful>(), Shardable{13}), check(std::type_identity<Dispatched>(), Shardable{13});
}

TEST_CASE("each rank knows which batch is its last one", "[prepared][delivery][stream_source][dispatched_source][dispatch_rounds]") {
    auto const check = []<class Policy, class D>(std::type_identity<Policy>, D dataset, std::vector<int64_t> const& expected) {
        auto const ranks = static_cast<int64_t>(expected.size());
        std::vector<std::vector<bool>> lasts(expected.size());
        Threads::run(ranks, [&](Threads const& comm) {
            Run<Policy> accelerator;
            auto loader = accelerator.prepare(data::Loader{D(dataset), {.batch_size = 2, .even_batches = false}});
            for ([[maybe_unused]] auto& batch : loader) lasts[static_cast<size_t>(comm.rank())].push_back(loader.end_of_dataloader());
        });
        for (size_t r = 0; r < expected.size(); ++r) {
            INFO("rank " << r);
            std::vector<bool> only_the_last(static_cast<size_t>(expected[r]));
            only_the_last.back() = true;
            CHECK(lasts[r] == only_the_last);
        }
    };
    std::vector<int64_t> const more_on_the_first{3, 2, 2};  // of 13 samples the last one is rank 0's
    check(std::type_identity<Stateful>(), Indexed{13}, more_on_the_first), check(std::type_identity<Dispatched>(), Indexed{13}, more_on_the_first);
    check(std::type_identity<Stateful>(), Opaque{13}, more_on_the_first), check(std::type_identity<Dispatched>(), Opaque{13}, more_on_the_first);
    check(std::type_identity<Dispatched>(), Shardable{13}, more_on_the_first);
    check(std::type_identity<Stateful>(), Shardable{13}, {2, 2, 3});  // parts of 4, 4 and 5
}

TEST_CASE("batches that are skipped are those of all ranks", "[prepared][indexed_source]") {
    Threads::run(2, [](Threads const& comm) {
        Run<Stateful> accelerator;
        auto loader = accelerator.prepare(data::Loader{Indexed{22}, {.batch_size = 5, .even_batches = false}});
        loader.skip_first_batches(2);  // all that rank 1 has
        int64_t batches = 0, consumed = loader.consumed();
        for ([[maybe_unused]] auto& batch : loader) ++batches;
        std::lock_guard const lock(assertions);
        CHECK((consumed == 20 && batches == 1 - comm.rank()));
    });
}

TEST_CASE("rank 0 reads the whole batches of a batch sampler: how many there are, and behind which an epoch goes on", "[dispatched_source][dispatch_plan]") {
    struct Thirds {
        std::vector<std::vector<int64_t>> batches(int64_t, int64_t) const { return {{0, 1, 2}, {3, 4}, {5, 6, 7, 8}, {9, 10}, {11}}; }
    };
    Threads::run(2, [](Threads const& comm) {
        Run<Dispatched> accelerator;
        auto loader = accelerator.prepare(data::Loader{Indexed{12}, {.even_batches = false}, Thirds()});
        auto const size = loader.size();
        loader.skip_first_batches(1);  // of each rank
        std::string seen;
        for (auto& batch : loader) seen += text_of(batch) + ";";
        std::lock_guard const lock(assertions);
        CHECK(size == 3 - comm.rank());
        CHECK(seen == (comm.rank() == 0 ? "5,6,7,8;11;" : "9,10;"));
    });
}

TEST_CASE("a part that has nothing more is filled up after a resume as before", "[stream_source][stream_slices]") {
    for (auto rule : {data::Mask, data::Pad}) {
        std::vector<std::string> through(3), resumed(3);
        Threads::run(3, [&](Threads const& comm) {
            auto const rank = static_cast<size_t>(comm.rank());
            Run<Stateful> accelerator;
            auto const make = [&] { return accelerator.prepare(data::Loader{Shardable{47}, {.batch_size = 5, .even_batches = rule}}); };
            auto loader = make(), again = make();
            int64_t batches = 0;
            for (auto& batch : loader)
                if (++batches == 3) again.load_state_dict(loader.state_dict());  // rank 0's part, of 15 samples, is at its end
                else if (batches > 3) through[rank] += text_of(batch);
            for (auto& batch : again) resumed[rank] += text_of(batch);
        });
        CHECK(resumed == through);
        CHECK(through == (rule == data::Mask ? V{"14,14,14,14,14", "30,30,30,30,30", "46,46,46,46,46"} : V{"0,1,2,3,4", "30,15,16,17,18", "46,31,32,33,34"}));
    }
}

TEST_CASE("the accelerator's data_seed is every loader's", "[prepared]") {
    Run<Stateful> accelerator{{.data_seed = 9}};
    auto loader = accelerator.prepare(data::Loader{Indexed{50}, {.batch_size = 50, .shuffle = true, .seed = 1}});
    auto const order = data::order::Shuffled{9}.epoch(0, 50);
    for (auto& batch : accelerator.skip_first_batches(loader, 0))
        for (int64_t i = 0; i < 50; ++i) CHECK(batch[i].item<int64_t>() == order[i]);
}

// ---- evaluation ---------------------------------------------------------------------------------------------------------------

namespace {
struct Output {
    torch::Tensor index;
    std::vector<std::string> names;
    std::vector<torch::Tensor> ragged;
    std::map<std::string, torch::Tensor> nested;
    torch::Tensor whole;
};

/// Evaluates n samples on some ranks; gives how often each sample came back in each part of the outputs.
template <class Policy>
void evaluate(int64_t ranks, int64_t n, data::options o, int64_t every = 1) {
    INFO("ranks " << ranks << " n " << n << " batch_size " << o.batch_size << " rule " << static_cast<int>(o.even_batches.rule) << " every " << every);
    std::mutex mutex;
    Threads::run(ranks, [&](Threads const&) {
        Run<Policy> accelerator;
        auto loader = accelerator.prepare(data::Loader{Indexed{n}, o});
        std::map<int64_t, int64_t> count;
        int64_t k = 0, expected = 0, before = 0;
        for (auto& batch : loader) {
            auto const real = loader.consumed() - std::exchange(before, loader.consumed());
            if (k++ % every != 0) continue;
            expected += real;
            Output out{batch, {}, {}, {{"twice", batch * 2}}, torch::ones({1001})};
            for (int64_t j = 0; j < batch.numel(); ++j) {
                auto const i = batch[j].template item<int64_t>();
                out.names.push_back(std::to_string(i));
                out.ragged.push_back(torch::full({i % 3}, i));
            }
            auto const all = accelerator.gather_for_metrics(out);
            auto const [index, pair] = accelerator.gather_for_metrics(batch, std::pair(batch, 1.5));
            std::lock_guard lock(mutex);
            REQUIRE(all.index.numel() == real);
            CHECK((torch::equal(index, all.index) && torch::equal(pair.first, index) && pair.second == 1.5));
            CHECK(torch::equal(all.nested.at("twice"), all.index * 2));
            CHECK(all.whole.numel() == 1001 * accelerator.num_processes());
            REQUIRE((all.names.size() == static_cast<size_t>(real) && all.ragged.size() == all.names.size()));
            for (int64_t j = 0; j < real; ++j) {
                auto const i = all.index[j].template item<int64_t>();
                ++count[i];
                CHECK(all.names[static_cast<size_t>(j)] == std::to_string(i));
                CHECK(torch::equal(all.ragged[static_cast<size_t>(j)], torch::full({i % 3}, i)));
            }
        }
        auto const outside = accelerator.gather_for_metrics(torch::arange(2));
        auto const absent = accelerator.gather_for_metrics(std::pair(torch::Tensor(), 1));
        bool refused = false;
        try {
            accelerator.gather_for_metrics(torch::Tensor());
        } catch (acc::Error const& e) {
            refused = e.code() == acc::code::config;
        }
        std::lock_guard lock(mutex);
        CHECK(static_cast<int64_t>(count.size()) == expected);
        for (auto const& [i, times] : count) CHECK(times == 1);
        CHECK(torch::equal(outside, torch::arange(2).repeat({ranks})));  // outside a loop all is gathered
        CHECK((refused && !absent.first.defined()));
    });
}
}  // namespace

TEST_CASE("gather_for_metrics gives each sample once", "[gather_for_metrics]") {
    for (int64_t n : {22, 30, 82, 99, 512, 3, 7})  // Python's own tests use these
        for (int64_t ranks : {1, 2, 3})
            for (data::EvenBatches even : {data::EvenBatches(true), data::EvenBatches(data::Mask), data::EvenBatches(data::Drop)}) evaluate<Stateful>(ranks, n, {.batch_size = 4, .even_batches = even});
    evaluate<Stateful>(2, 99, {.batch_size = 6, .split_batches = true});
    evaluate<Stateful>(2, 22, {.batch_size = 3}, 2);
    evaluate<Stateful>(2, 20, {.batch_size = 4}, 2);
    evaluate<Dispatched>(2, 23, {.batch_size = 4});
    evaluate<Dispatched>(3, 22, {.batch_size = 4, .even_batches = data::Mask});
}

namespace {
struct Line {
    torch::Tensor x, y;
};
struct Lines {
    int64_t n;
    size_t size() const { return static_cast<size_t>(n); }
    Line operator[](size_t i) const { return {torch::tensor({static_cast<float>(i), 1.f}), torch::tensor({static_cast<float>(i * i)})}; }
};

/// Weights after one epoch of SGD on ranks that have different numbers of batches.
template <class Sharding>
torch::Tensor joined_weights(int64_t ranks, Lines const& lines, data::options o, int64_t accumulation) {
    torch::Tensor weights;
    std::mutex mutex;
    Threads::run(ranks, [&](Threads const&) {
        acc::Accelerator<Device, acc::precision::Fp32, Sharding, Stateful> accelerator{{.gradient_accumulation_steps = accumulation}};
        auto const net = std::make_shared<torch::nn::LinearImpl>(2, 1);
        {
            torch::NoGradGuard no_grad;
            net->weight.fill_(0.5), net->bias.zero_();
        }
        auto [model, optimizer, train] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.01}, data::Loader{lines, o});
        int64_t bodies = 0, samples = 0;
        {
            auto const joined = accelerator.join_uneven_inputs(model);
            for (auto& batch : train) {
                auto window = accelerator.accumulate(model);
                accelerator.backward(torch::mse_loss(model(batch.x), batch.y));
                optimizer.step();
                optimizer.zero_grad();
                ++bodies;
                samples += accelerator.gather_for_metrics(batch.x).size(0);
            }
        }
        auto const all = accelerator.gather(torch::tensor({bodies}));
        auto const state = accelerator.get_state_dict(model);
        std::lock_guard lock(mutex);
        CHECK(all.min().template item<int64_t>() == all.max().template item<int64_t>());
        CHECK(samples == lines.n);  // and none twice
        weights = state.at("weight");
    });
    return weights;
}

/// The same by hand, in one process: in each step the ranks' gradients are averaged, and one that has no batch gives zero.
torch::Tensor by_hand(int64_t ranks, Lines const& lines, int64_t batch_size, int64_t accumulation) {
    auto weight = torch::full({1, 2}, 0.5), bias = torch::zeros({1});
    weight.requires_grad_(), bias.requires_grad_();
    auto const rounds = (lines.n + ranks * batch_size - 1) / (ranks * batch_size);
    for (int64_t k = 0; k < rounds; ++k) {
        for (int64_t r = 0; r < ranks; ++r) {
            std::vector<torch::Tensor> xs, ys;
            for (int64_t j = 0; j < batch_size; ++j)
                if (auto const i = (k * ranks + r) * batch_size + j; i < lines.n) xs.push_back(lines[static_cast<size_t>(i)].x), ys.push_back(lines[static_cast<size_t>(i)].y);
            if (xs.empty()) continue;
            (torch::mse_loss(torch::nn::functional::linear(torch::stack(xs), weight, bias), torch::stack(ys)) / ranks / accumulation).backward();
        }
        if ((k + 1) % accumulation != 0 && k + 1 != rounds) continue;
        torch::NoGradGuard no_grad;
        for (auto& p : {weight, bias}) p.sub_(p.grad() * 0.01), p.grad().zero_();
    }
    return weight.detach();
}
}  // namespace

TEST_CASE("ranks with different numbers of batches train together", "[join][shard][loops]") {
    for (auto [ranks, n, batch_size, accumulation] : {std::array<int64_t, 4>{2, 5, 1, 1}, {2, 7, 2, 1}, {3, 7, 2, 1}, {3, 2, 1, 1}, {2, 9, 2, 2}}) {
        INFO("ranks " << ranks << " n " << n << " batch_size " << batch_size << " accumulation " << accumulation);
        auto const expected = by_hand(ranks, Lines{n}, batch_size, accumulation);
        for (data::EvenBatches even : {data::EvenBatches(true), data::EvenBatches(false)}) {
            data::options const o{.batch_size = batch_size, .even_batches = even};
            CHECK(torch::allclose(joined_weights<acc::sharding::Ddp<>>(ranks, Lines{n}, o, accumulation), expected, 1e-5, 1e-5));
            CHECK(torch::allclose(joined_weights<acc::sharding::Fsdp<>>(ranks, Lines{n}, o, accumulation), expected, 1e-5, 1e-5));
        }
    }
    Threads::run(2, [](Threads const&) {
        Run<Stateful> accelerator;
        auto stream = accelerator.prepare(data::Loader{Opaque{4}, {.even_batches = false}});
        auto const joined = accelerator.join_uneven_inputs();
        has(error_of([&] { stream.begin(); }), "E_CONFIG: accelerator.join_uneven_inputs: a stream's ranks cannot be joined");
    });
}

// ---- what goes wrong ------------------------------------------------------------------------------------------------------------

namespace {
/// What each rank's loop over a loader throws.
template <class Policy, class D>
std::vector<std::string> failures(int64_t ranks, std::function<D(int64_t rank)> const& dataset, data::options o) {
    std::vector<std::string> out(static_cast<size_t>(ranks));
    Threads::run(ranks, [&](Threads const& comm) {
        out[static_cast<size_t>(comm.rank())] = error_of([&] {
            Run<Policy> accelerator;
            auto loader = accelerator.prepare(data::Loader{dataset(comm.rank()), o});
            for (auto& batch : loader) accelerator.reduce(batch.sum());
        });
    });
    return out;
}
struct FaultyStream {
    int64_t bad = -1, n = 0, at = 0;
    std::optional<int64_t> next() {
        if (at == bad) throw std::runtime_error("the pipe is closed");
        return at < n ? std::optional(at++) : std::nullopt;
    }
    void start(int64_t) { at = 0; }
};
struct FaultySet {
    int64_t bad = -1;
    size_t size() const { return 16; }
    int64_t operator[](size_t i) const {
        acc::check(static_cast<int64_t>(i) != bad, acc::code::io, "the disk is gone");
        return static_cast<int64_t>(i);
    }
};
}  // namespace

TEST_CASE("a stream that is shorter for one rank is an error on all", "[stream_source]") {
    for (int64_t workers : {0, 1})
        for (auto const& text : failures<Stateful, FaultyStream>(2, [](int64_t rank) { return FaultyStream{-1, rank == 1 ? 9 : 16}; }, {.batch_size = 2, .num_workers = workers}))
            CHECK(has(text, "E_DATA: data::Loader: the stream ended for one rank only: after 9 samples on rank 1, later on rank 0"));
}

TEST_CASE("what fails on one rank is a typed error on all", "[stream_source][indexed_source][dispatched_source]") {
    for (int64_t workers : {0, 2}) {
        auto const worker = workers ? ", worker " : "";
        auto const stream = failures<Stateful, FaultyStream>(2, [](int64_t rank) { return FaultyStream{rank == 1 ? 5 : -1, 16}; }, {.batch_size = 2, .num_workers = workers});
        CHECK(has(stream[1], acc::concat("E_DATA: data::Loader: reading sample 5 of the stream on rank 1", worker)));
        CHECK(has(stream[0], "E_PEER_LOST"));
        auto const indexed = failures<Stateful, FaultySet>(2, [](int64_t rank) { return FaultySet{rank == 1 ? 6 : -1}; }, {.batch_size = 2, .num_workers = workers});
        CHECK(has(indexed[1], acc::concat("E_IO: data::Loader: reading sample 6 on rank 1", worker)));
        CHECK(has(indexed[0], "E_PEER_LOST"));
        auto const dispatched = failures<Dispatched, FaultySet>(3, [](int64_t rank) { return FaultySet{rank == 0 ? 6 : -1}; }, {.batch_size = 2, .num_workers = workers});
        CHECK(has(dispatched[0], "E_IO: data::Loader: reading sample 6 on rank 0"));
        for (size_t r : {size_t{1}, size_t{2}}) CHECK(has(dispatched[r], "E_IO: on rank 0, which reads for all: "));
    }
}

TEST_CASE("a stream without a beginning to go back to is read once", "[stream_source]") {
    struct Once {
        int64_t at = 0;
        std::optional<int64_t> next() { return at < 5 ? std::optional(at++) : std::nullopt; }
    };
    Once stream;
    data::Prepared loader{data::Loader{stream, {.batch_size = 2}}};
    int64_t batches = 0;
    for ([[maybe_unused]] auto& batch : loader) ++batches;
    CHECK(batches == 3);
    CHECK(has(error_of([&] { loader.begin(); }), "E_DATA: data::Loader: this stream can be read once, and was"));
    CHECK(has(error_of([&] { data::Prepared(data::Loader{stream, {.shuffle = true}}); }), "E_CONFIG: data::Loader: a stream cannot be shuffled"));
    CHECK(has(error_of([&] { data::Prepared(data::Loader{stream}, data::Context{0, 2}); }), "E_CONFIG"));
}

// ---- training inside a simulation ---------------------------------------------------------------------------------------------

namespace {

struct State {
    torch::Tensor field;
    int64_t id = 0;
    struct batch {
        torch::Tensor field, id;
    };
};
using Coupling = data::Coupling<State, Threads>;
using CoupledRun = Run<acc::loader::Coupled<>>;

/// `ranks` of which `producers` publish `count(p)` samples each; gives what each trainer saw. `slow`: milliseconds before a trainer begins.
std::vector<std::vector<int64_t>> couple(int64_t ranks, data::coupling_options o, std::function<int64_t(int64_t)> const& count, data::options loading, int64_t slow = 0,
                                         std::atomic<int64_t>* published = nullptr) {
    std::vector<std::vector<int64_t>> seen(static_cast<size_t>(ranks - o.producers));
    Threads::run(ranks, [&](Threads const& world) {
        Coupling coupling(world, o);
        if (coupling.is_producer()) {
            expect(coupling.producers().size() == o.producers, "producers have a communicator of their own");
            for (int64_t i = 0; i < count(world.rank()); ++i) {
                auto const id = world.rank() * 1000 + i;
                coupling.publish({torch::full({16}, static_cast<double>(id)), id});
                if (published) ++*published;
            }
            coupling.finish();
            expect(coupling.receive<double>(coupling.trainer()) == static_cast<double>(world.rank()) / 2, "a prediction comes back");
            return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(slow));
        if (published) expect(*published * (16 * 4) <= o.max_bytes * o.producers, "what is published is bounded while nobody reads");
        CoupledRun accelerator{{}, coupling.trainers()};
        auto loader = accelerator.prepare(data::Loader{coupling.stream(), loading});
        auto& mine = seen[static_cast<size_t>(world.rank() - o.producers)];
        for (auto& batch : loader)
            for (int64_t j = 0; j < loader.valid(); ++j) {
                auto const id = batch.id[j].item<int64_t>();
                expect(torch::equal(batch.field[j], torch::full({16}, static_cast<double>(id))), "a field belongs to its id");
                mine.push_back(id);
            }
        for (auto p = world.rank() - o.producers; p < o.producers; p += ranks - o.producers) coupling.send(static_cast<double>(p) / 2, p);
    });
    return seen;
}

}  // namespace

TEST_CASE("a simulation's samples arrive once each, however fast it is", "[coupling][channel]") {
    for (int64_t workers : {0, 1})
        for (int64_t window : {1, 8, 1000}) {
            auto const count = [](int64_t p) { return 50 + 13 * p; };
            auto const seen = couple(5, {.producers = 3, .max_bytes = 4096, .window = window}, count, {.batch_size = 4, .num_workers = workers});
            std::set<int64_t> all;
            for (auto const& trainer : seen)
                for (auto id : trainer) CHECK(all.insert(id).second);
            CHECK(all.size() == 50 + 63 + 76);
            for (auto id : seen[0]) CHECK((id / 1000) % 2 == 0);  // of producers 0 and 2
            if (window == 1) CHECK(std::is_sorted(seen[1].begin(), seen[1].end()));
            else CHECK(!std::is_sorted(seen[1].begin(), seen[1].end()));
        }
    std::atomic<int64_t> published = 0;
    couple(2, {.producers = 1, .max_bytes = 4096}, [](int64_t) { return 500; }, {.batch_size = 8}, 200, &published);
    CHECK(published == 500);
}

TEST_CASE("a coupling that cannot work says why", "[coupling]") {
    CHECK(has(error_of([] { Coupling(Threads::world(), {.producers = 1}); }), "E_CONFIG: data::Coupling: 1 of 1 ranks produce"));
    CHECK(has(error_of([] { couple(2, {.producers = 1, .max_bytes = 100}, [](int64_t) { return 1; }, {}); }), "E_CONFIG: data::Coupling.publish: a sample has "));
    Threads::run(2, [](Threads const& world) {
        Coupling coupling(world, {});
        auto const text = error_of([&] { coupling.is_producer() ? static_cast<void>(coupling.trainers()) : coupling.publish({}); });
        has(text, "E_CALL_ORDER: data::Coupling");
    });
}

TEST_CASE("a producer that dies is named to the trainers", "[coupling]") {
    std::mutex mutex;
    std::vector<std::string> texts;
    CHECK_THROWS_AS(Threads::run(4, [&](Threads const& world) {
        Coupling coupling(world, {.producers = 2});
        if (coupling.is_producer()) {
            for (int64_t i = 0; i < 10; ++i) coupling.publish({torch::ones({4}), i});
            if (world.rank() == 1) throw std::runtime_error("the simulation blew up");
            coupling.finish();
            return;
        }
        auto const text = error_of([&] {
            CoupledRun accelerator{{}, coupling.trainers()};
            auto loader = accelerator.prepare(data::Loader{coupling.stream(), {.batch_size = 4}});
            for ([[maybe_unused]] auto& batch : loader) {}
        });
        std::lock_guard lock(mutex);
        texts.push_back(text);
    }), std::runtime_error);
    REQUIRE(texts.size() == 2);
    for (auto const& text : texts) CHECK(has(text, "E_PEER_LOST"));
}
