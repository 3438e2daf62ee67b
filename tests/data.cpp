// The data room through its public names, on one process: against Python Accelerate's batches (a table made with it, and worked
// examples), formulas and hand-written expectations.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, whose CHECK ends the process
#include "support/errors.hpp"
#include "support/folder.hpp"

#include <accelerate/data/corpus.hpp>
#include <accelerate/data/orders.hpp>
#include <accelerate/data/policy.hpp>
#include <accelerate/data/ragged.hpp>
#include <accelerate/data/tensors.hpp>
#include <accelerate/data/text.hpp>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>
#include <unistd.h>

namespace acc = accelerate;
namespace data = acc::data;

namespace {

std::vector<int64_t> numbers(torch::Tensor const& t) { return {t.const_data_ptr<int64_t>(), t.const_data_ptr<int64_t>() + t.numel()}; }

/// Samples 0 .. n-1 as numbers.
struct Count {
    int64_t n = 0;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
};

using Batches = std::vector<std::vector<int64_t>>;

/// One range-for over a loader of numbers.
template <class Prepared>
Batches epoch_of(Prepared& loader) {
    Batches out;
    for (auto& batch : loader) out.push_back(numbers(batch));
    return out;
}

std::set<int64_t> united(std::vector<Batches> const& ranks) {
    std::set<int64_t> all;
    for (auto const& r : ranks)
        for (auto const& b : r) all.insert(b.begin(), b.end());
    return all;
}

}  // namespace

// ---- cutting over ranks -----------------------------------------------------------------------------------------------------

namespace {

/// "0,1,2;6,7,8" of each rank.
std::vector<std::string> cut(int64_t n, int64_t batch_size, int64_t ranks, bool split, bool even, bool drop) {
    std::vector<std::string> out;
    for (int64_t r = 0; r < ranks; ++r) {
        data::Shard const shard{.samples = n, .batch_size = batch_size, .drop_last = drop, .even_batches = even, .split_batches = split,
                                .rank = r, .size = ranks};
        std::string text;
        for (int64_t k = 0; k < shard.batches(); ++k) {
            if (k) text += ";";
            for (int64_t j = 0; j < shard.batch_length(k); ++j) text += (j ? "," : "") + std::to_string(shard.position(k, j));
        }
        out.push_back(text);
    }
    return out;
}

}  // namespace

TEST_CASE("batches are cut over ranks as Python Accelerate cuts them: worked examples", "[shard]") {
    using V = std::vector<std::string>;
    CHECK(cut(24, 3, 2, false, true, false) == V{"0,1,2;6,7,8;12,13,14;18,19,20", "3,4,5;9,10,11;15,16,17;21,22,23"});
    CHECK(cut(22, 3, 2, false, true, false) == V{"0,1,2;6,7,8;12,13,14;18,19,20", "3,4,5;9,10,11;15,16,17;21,0,1"});
    CHECK(cut(21, 3, 2, false, true, false) == V{"0,1,2;6,7,8;12,13,14;18,19,20", "3,4,5;9,10,11;15,16,17;0,1,2"});
    CHECK(cut(20, 3, 2, false, true, false) == V{"0,1,2;6,7,8;12,13,14;18,19,0", "3,4,5;9,10,11;15,16,17;1,2,3"});
    for (bool even : {true, false}) CHECK(cut(22, 3, 2, false, even, true) == V{"0,1,2;6,7,8;12,13,14", "3,4,5;9,10,11;15,16,17"});
    CHECK(cut(22, 3, 2, false, false, false) == V{"0,1,2;6,7,8;12,13,14;18,19,20", "3,4,5;9,10,11;15,16,17;21"});
    CHECK(cut(20, 3, 2, false, false, false) == V{"0,1,2;6,7,8;12,13,14;18,19", "3,4,5;9,10,11;15,16,17"});
    CHECK(cut(2, 3, 2, false, true, false) == V{"0,1,0", "1,0,1"});
    CHECK(cut(2, 3, 2, false, false, false) == V{"0,1", ""});
    CHECK(cut(10, 4, 2, false, true, false) == V{"0,1,2,3;8,9,0,1", "4,5,6,7;2,3,4,5"});
    CHECK(cut(13, 4, 3, false, true, false) == V{"0,1,2,3;12,0,1,2", "4,5,6,7;3,4,5,6", "8,9,10,11;7,8,9,10"});
    CHECK(cut(22, 4, 2, true, true, false) == V{"0,1;4,5;8,9;12,13;16,17;20,21", "2,3;6,7;10,11;14,15;18,19;0,1"});
    CHECK(cut(21, 4, 2, true, true, false) == V{"0,1;4,5;8,9;12,13;16,17;20,0", "2,3;6,7;10,11;14,15;18,19;1,2"});
    CHECK(cut(21, 4, 2, true, false, false) == V{"0,1;4,5;8,9;12,13;16,17;20", "2,3;6,7;10,11;14,15;18,19"});
    CHECK(cut(21, 4, 2, true, true, true) == V{"0,1;4,5;8,9;12,13;16,17", "2,3;6,7;10,11;14,15;18,19"});
    CHECK(cut(2, 4, 2, true, true, false) == V{"0,1", "0,1"});
    // Upstream's tests of even_batches: 3 and 7 samples on two ranks.
    CHECK(cut(3, 1, 2, false, true, false) == V{"0;2", "1;0"});
    CHECK(cut(3, 1, 2, false, false, false) == V{"0;2", "1"});
    CHECK(cut(7, 2, 2, false, false, false) == V{"0,1;4,5", "2,3;6"});
}

namespace {
struct PythonRow {
    bool split, even, drop;
    int64_t ranks, batch_size;
    uint32_t hash;
};
// Made with accelerate 1.15.0: for n = 0..40 and every rank, FNV-1a (32 bit) of the batches of BatchSamplerShard(BatchSampler(range(n),
// batch_size, drop), ranks, rank, split_batches=split, even_batches=even), each written as "0,1,2;", and "|" after each rank. With one
// rank Accelerate leaves the BatchSampler as it is.
PythonRow const python_rows[] = {
    {0, 0, 0, 1, 1, 0xcf92d9b7}, {0, 0, 0, 1, 2, 0x94cb71bd}, {0, 0, 0, 1, 3, 0x6e2d9602}, {0, 0, 0, 1, 4, 0x582f0bc1}, {0, 0, 0, 1, 5, 0x3e674e83},
    {0, 0, 0, 2, 1, 0x8b2037f1}, {0, 0, 0, 2, 2, 0xb378f1cf}, {0, 0, 0, 2, 3, 0xc629f260}, {0, 0, 0, 2, 4, 0xaf16bb33}, {0, 0, 0, 2, 5, 0x7336572d},
    {0, 0, 0, 3, 1, 0xd8a8c75b}, {0, 0, 0, 3, 2, 0xa58ba3d9}, {0, 0, 0, 3, 3, 0xb877968a}, {0, 0, 0, 3, 4, 0x1cfe9673}, {0, 0, 0, 3, 5, 0xaa6845fb},
    {0, 0, 0, 4, 1, 0x21de8eb1}, {0, 0, 0, 4, 2, 0xb93e9343}, {0, 0, 0, 4, 3, 0xdc584090}, {0, 0, 0, 4, 4, 0x81546bf5}, {0, 0, 0, 4, 5, 0xb80e1d9f},
    {0, 0, 1, 1, 1, 0xcf92d9b7}, {0, 0, 1, 1, 2, 0x24e80c57}, {0, 0, 1, 1, 3, 0x7d9abd25}, {0, 0, 1, 1, 4, 0x0ef13587}, {0, 0, 1, 1, 5, 0xc30388df},
    {0, 0, 1, 2, 1, 0x31164711}, {0, 0, 1, 2, 2, 0x22ecc0d1}, {0, 0, 1, 2, 3, 0xbf299e71}, {0, 0, 1, 2, 4, 0xcaf7abbb}, {0, 0, 1, 2, 5, 0x7612183d},
    {0, 0, 1, 3, 1, 0x72c8cc4b}, {0, 0, 1, 3, 2, 0x79c99083}, {0, 0, 1, 3, 3, 0xa98d6983}, {0, 0, 1, 3, 4, 0x08d89542}, {0, 0, 1, 3, 5, 0x786a9871},
    {0, 0, 1, 4, 1, 0x74f38a6d}, {0, 0, 1, 4, 2, 0x23764695}, {0, 0, 1, 4, 3, 0x4e537cfd}, {0, 0, 1, 4, 4, 0xebf568a1}, {0, 0, 1, 4, 5, 0x77d36ff9},
    {0, 1, 0, 1, 1, 0xcf92d9b7}, {0, 1, 0, 1, 2, 0x94cb71bd}, {0, 1, 0, 1, 3, 0x6e2d9602}, {0, 1, 0, 1, 4, 0x582f0bc1}, {0, 1, 0, 1, 5, 0x3e674e83},
    {0, 1, 0, 2, 1, 0xb56c45dd}, {0, 1, 0, 2, 2, 0x7544742c}, {0, 1, 0, 2, 3, 0xd0cc86bd}, {0, 1, 0, 2, 4, 0x32d50ad8}, {0, 1, 0, 2, 5, 0xa5c901a2},
    {0, 1, 0, 3, 1, 0x88e63e41}, {0, 1, 0, 3, 2, 0x1012642d}, {0, 1, 0, 3, 3, 0xc7b5e61a}, {0, 1, 0, 3, 4, 0x6dbfb144}, {0, 1, 0, 3, 5, 0xf38f3e0a},
    {0, 1, 0, 4, 1, 0x4253a2a8}, {0, 1, 0, 4, 2, 0x8c3cee50}, {0, 1, 0, 4, 3, 0xc783e662}, {0, 1, 0, 4, 4, 0xcccf943f}, {0, 1, 0, 4, 5, 0x37fc82aa},
    {0, 1, 1, 1, 1, 0xcf92d9b7}, {0, 1, 1, 1, 2, 0x24e80c57}, {0, 1, 1, 1, 3, 0x7d9abd25}, {0, 1, 1, 1, 4, 0x0ef13587}, {0, 1, 1, 1, 5, 0xc30388df},
    {0, 1, 1, 2, 1, 0x31164711}, {0, 1, 1, 2, 2, 0x22ecc0d1}, {0, 1, 1, 2, 3, 0xbf299e71}, {0, 1, 1, 2, 4, 0xcaf7abbb}, {0, 1, 1, 2, 5, 0x7612183d},
    {0, 1, 1, 3, 1, 0x72c8cc4b}, {0, 1, 1, 3, 2, 0x79c99083}, {0, 1, 1, 3, 3, 0xa98d6983}, {0, 1, 1, 3, 4, 0x08d89542}, {0, 1, 1, 3, 5, 0x786a9871},
    {0, 1, 1, 4, 1, 0x74f38a6d}, {0, 1, 1, 4, 2, 0x23764695}, {0, 1, 1, 4, 3, 0x4e537cfd}, {0, 1, 1, 4, 4, 0xebf568a1}, {0, 1, 1, 4, 5, 0x77d36ff9},
    {1, 0, 0, 1, 1, 0xcf92d9b7}, {1, 0, 0, 1, 2, 0x94cb71bd}, {1, 0, 0, 1, 3, 0x6e2d9602}, {1, 0, 0, 1, 4, 0x582f0bc1}, {1, 0, 0, 1, 5, 0x3e674e83},
    {1, 0, 0, 2, 2, 0x8b2037f1}, {1, 0, 0, 2, 4, 0xb378f1cf}, {1, 0, 0, 3, 3, 0xd8a8c75b}, {1, 0, 0, 4, 4, 0x21de8eb1}, {1, 0, 1, 1, 1, 0xcf92d9b7},
    {1, 0, 1, 1, 2, 0x24e80c57}, {1, 0, 1, 1, 3, 0x7d9abd25}, {1, 0, 1, 1, 4, 0x0ef13587}, {1, 0, 1, 1, 5, 0xc30388df}, {1, 0, 1, 2, 2, 0x31164711},
    {1, 0, 1, 2, 4, 0x22ecc0d1}, {1, 0, 1, 3, 3, 0x72c8cc4b}, {1, 0, 1, 4, 4, 0x74f38a6d}, {1, 1, 0, 1, 1, 0xcf92d9b7}, {1, 1, 0, 1, 2, 0x94cb71bd},
    {1, 1, 0, 1, 3, 0x6e2d9602}, {1, 1, 0, 1, 4, 0x582f0bc1}, {1, 1, 0, 1, 5, 0x3e674e83}, {1, 1, 0, 2, 2, 0xb56c45dd}, {1, 1, 0, 2, 4, 0x7544742c},
    {1, 1, 0, 3, 3, 0x88e63e41}, {1, 1, 0, 4, 4, 0x4253a2a8}, {1, 1, 1, 1, 1, 0xcf92d9b7}, {1, 1, 1, 1, 2, 0x24e80c57}, {1, 1, 1, 1, 3, 0x7d9abd25},
    {1, 1, 1, 1, 4, 0x0ef13587}, {1, 1, 1, 1, 5, 0xc30388df}, {1, 1, 1, 2, 2, 0x31164711}, {1, 1, 1, 2, 4, 0x22ecc0d1}, {1, 1, 1, 3, 3, 0x72c8cc4b},
    {1, 1, 1, 4, 4, 0x74f38a6d},
};
}  // namespace

TEST_CASE("batches are cut over ranks as Python Accelerate cuts them: 0..40 samples, 1..4 ranks, batches of 1..5", "[shard]") {
    for (auto const& row : python_rows) {
        uint32_t hash = 2166136261u;
        auto add = [&](std::string const& text) {
            for (char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619u;
        };
        for (int64_t n = 0; n <= 40; ++n)
            for (auto const& rank : cut(n, row.batch_size, row.ranks, row.split, row.even, row.drop)) add(rank.empty() ? "|" : rank + ";|");
        INFO("split " << row.split << " even " << row.even << " drop " << row.drop << " ranks " << row.ranks << " batch_size " << row.batch_size);
        CHECK(hash == row.hash);
    }
}

TEST_CASE("what a round of batches adds up to", "[shard]") {
    data::Shard const shard{.samples = 20, .batch_size = 3, .rank = 1, .size = 2};
    CHECK(shard.total_batch_size() == 6);
    CHECK(shard.local_batch_size() == 3);
    CHECK(shard.remainder() == 2);
    CHECK(shard.consumed(0) == 6);
    CHECK(shard.consumed(3) == 20);
    data::Shard const dropping{.samples = 20, .batch_size = 4, .drop_last = true, .split_batches = true, .rank = 1, .size = 2};
    CHECK(dropping.total_batch_size() == 4);
    CHECK(dropping.local_batch_size() == 2);
    CHECK(dropping.remainder() == 0);
    CHECK(dropping.batches() == 5);
    data::Shard const uneven{.samples = 8, .batch_size = 3, .split_batches = true, .size = 2};
    CHECK(has(error_of([&] { uneven.validate(); }), "E_CONFIG"));
    // A whole epoch and its rest after any round agree, also where the rest is cut for other ranks.
    for (int64_t begin : {0, 6, 12, 18, 20}) {
        std::multiset<int64_t> seen;
        for (int64_t r = 0; r < 4; ++r) {
            data::Shard const rest{.samples = 20, .batch_size = 2, .even_batches = false, .rank = r, .size = 4, .begin = begin};
            for (int64_t k = 0; k < rest.batches(); ++k)
                for (int64_t j = 0; j < rest.batch_length(k); ++j) seen.insert(rest.position(k, j));
        }
        CHECK(seen.size() == static_cast<size_t>(20 - begin));
        CHECK((seen.empty() || *seen.begin() == begin));
    }
}

// ---- order ------------------------------------------------------------------------------------------------------------------

TEST_CASE("a keyed permutation visits everything once, for any size", "[permutation]") {
    for (int64_t n : {1, 2, 3, 7, 8, 63, 64, 65, 100, 1000, 4095, 4097}) {
        data::Permutation const p(static_cast<uint64_t>(n) * 7, n);
        std::vector<bool> seen(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; ++i) {
            REQUIRE((p[i] >= 0 && p[i] < n));
            seen[static_cast<size_t>(p[i])] = true;
        }
        CHECK(std::count(seen.begin(), seen.end(), true) == n);
    }
    auto const huge = int64_t{1} << 62;
    data::Permutation const p(1, huge);
    std::set<int64_t> ends;
    for (int64_t i = 0; i < 100; ++i) ends.insert({p[i], p[huge - 1 - i]});
    CHECK(ends.size() == 200);
    CHECK((*ends.begin() >= 0 && *ends.rbegin() < huge));
}

TEST_CASE("every order of a few samples is about as frequent as any other", "[permutation]") {
    for (int64_t n : {2, 3, 4, 5}) {
        std::map<std::vector<int64_t>, int> count;
        int const draws = 24000;
        for (uint64_t key = 0; key < draws; ++key) {
            data::Permutation const p(key, n);
            std::vector<int64_t> order(static_cast<size_t>(n));
            for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = p[i];
            ++count[order];
        }
        auto const kinds = std::tgamma(static_cast<double>(n + 1));
        REQUIRE(count.size() == static_cast<size_t>(kinds));
        double chi2 = 0;
        for (auto const& [order, c] : count) chi2 += std::pow(c - draws / kinds, 2) / (draws / kinds);
        CHECK(chi2 < kinds + 9 + 5 * std::sqrt(2 * (kinds - 1)));  // by chance less than once in ten thousand seeds
    }
}

TEST_CASE("neighbours, epochs and seeds are unrelated", "[permutation][order]") {
    // Bins of (a position's sample, what it is compared with): independent if the 10 x 10 table is flat.
    int64_t const n = 1000;
    auto flat = [&](auto const& compared) {
        std::array<double, 100> bins{};
        int const draws = 20000;
        for (int64_t seed = 0; seed < draws; ++seed)
            ++bins[static_cast<size_t>(data::order::Shuffled{seed}.epoch(0, n)[333] / 100 * 10 + compared(seed) / 100)];
        double chi2 = 0;
        for (double b : bins) chi2 += (b - draws / 100.0) * (b - draws / 100.0) / (draws / 100.0);
        return chi2 < 99 + 5 * std::sqrt(2 * 99.0);
    };
    CHECK(flat([&](int64_t seed) { return data::order::Shuffled{seed}.epoch(0, n)[334]; }));
    CHECK(flat([&](int64_t seed) { return data::order::Shuffled{seed}.epoch(1, n)[333]; }));
    CHECK(flat([&](int64_t seed) { return data::order::Shuffled{seed + 1}.epoch(0, n)[333]; }));
}

TEST_CASE("orders are functions of seed, epoch and position", "[order]") {
    auto const all = [](auto const& view, int64_t n) {
        std::vector<int64_t> out;
        for (int64_t i = 0; i < n; ++i) out.push_back(view[i]);
        return out;
    };
    using data::order::Sequential, data::order::Shuffled, data::order::Standard;
    CHECK(all(Sequential().epoch(3, 4), 4) == std::vector<int64_t>{0, 1, 2, 3});
    CHECK(all(Shuffled{42}.epoch(3, 50), 50) == all(Shuffled{42}.epoch(3, 50), 50));
    CHECK(all(Shuffled{42}.epoch(3, 50), 50) != all(Shuffled{42}.epoch(4, 50), 50));
    CHECK(all(Shuffled{42}.epoch(3, 50), 50) != all(Shuffled{43}.epoch(3, 50), 50));
    CHECK(all(Standard{true, 42}.epoch(3, 50), 50) == all(Shuffled{42}.epoch(3, 50), 50));
    CHECK(all(Standard{false, 42}.epoch(3, 50), 50) == all(Sequential().epoch(3, 50), 50));
    // Runs are resumed with later versions of the library: these orders must never change.
    CHECK(all(Shuffled{42}.epoch(0, 10), 10) == std::vector<int64_t>{6, 5, 8, 1, 7, 0, 4, 3, 2, 9});
    CHECK(Shuffled{42}.epoch(7, 1000000007)[123456789] == 927983012);
    static_assert(data::order_policy<Sequential> && data::order_policy<Shuffled> && data::order_policy<Standard>);
    static_assert(!data::order_policy<int>);
}

// ---- samples and batches ----------------------------------------------------------------------------------------------------

namespace {

struct One {
    torch::Tensor x;
};
struct Pair {
    torch::Tensor input, target;
};
struct Nested {
    Pair pair;
    std::array<torch::Tensor, 2> views;
    std::map<std::string, torch::Tensor> extra;
};
struct Everything {
    bool a;
    float b;
    std::string c;
    std::vector<int64_t> d;
    std::optional<torch::Tensor> e;
    std::shared_ptr<int> f;
    Nested g;
};
struct Sixteen {
    torch::Tensor a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p;
};
struct Labelled {
    torch::Tensor input;
    int64_t label;
    std::string name;
    struct batch {
        torch::Tensor input, label;
        std::vector<std::string> name;
    };
};
struct WithConstructor {
    explicit WithConstructor(int);
    torch::Tensor x;
};

}  // namespace

TEST_CASE("tensors of a batch go to the device; what is there already is not touched", "[move_to]") {
    auto pair = std::pair(torch::ones(2), torch::Tensor());
    auto const* before = pair.first.unsafeGetTensorImpl();
    data::move_to(pair, at::kCPU);
    CHECK(pair.first.unsafeGetTensorImpl() == before);
    data::move_to(pair, at::kMeta);
    CHECK((pair.first.is_meta() && !pair.second.defined()));
    Labelled::batch batch{torch::ones(2), torch::ones(3), {"a", "b"}};
    data::move_to(batch, at::kMeta);
    CHECK((batch.input.is_meta() && batch.label.is_meta()));
}

TEST_CASE("collation keeps the shape of a sample and adds dimension 0", "[collate]") {
    data::Collate const collate;
    SECTION("tensors and numbers") {
        CHECK(torch::equal(collate(std::vector{torch::tensor({1, 2}), torch::tensor({3, 4})}), torch::tensor({{1, 2}, {3, 4}})));
        auto const check = [&](auto a, auto b, at::ScalarType type) {
            auto const batch = collate(std::vector{a, b});
            CHECK(batch.scalar_type() == type);
            CHECK(torch::equal(batch, torch::tensor({a, b}, type)));
        };
        check(1, 2, at::kLong);
        check(uint8_t{1}, uint8_t{200}, at::kLong);
        check(int64_t{1} << 40, int64_t{2}, at::kLong);
        check(1.5f, 2.5f, at::kFloat);
        check(1.5, 2.5, at::kDouble);
        check(true, false, at::kBool);
        CHECK(collate(std::vector<std::string>{"a", "b"}) == std::vector<std::string>{"a", "b"});
    }
    SECTION("tuples, pairs, arrays, vectors and maps") {
        auto const [numbers_, texts, tensors] =
            collate(std::vector{std::tuple(1, std::string("a"), torch::ones(2)), std::tuple(2, std::string("b"), torch::zeros(2))});
        CHECK(torch::equal(numbers_, torch::tensor({1, 2}, at::kLong)));
        CHECK(texts == std::vector<std::string>{"a", "b"});
        CHECK(tensors.sizes() == at::IntArrayRef({2, 2}));
        auto const pair = collate(std::vector{std::pair(1.0, 2), std::pair(3.0, 4)});
        CHECK(torch::equal(pair.first, torch::tensor({1.0, 3.0}, at::kDouble)));
        CHECK(torch::equal(pair.second, torch::tensor({2, 4}, at::kLong)));
        CHECK(torch::equal(collate(std::vector{std::array{1.f, 2.f, 3.f}, std::array{4.f, 5.f, 6.f}}), torch::tensor({{1.f, 2.f, 3.f}, {4.f, 5.f, 6.f}})));
        CHECK(torch::equal(collate(std::vector<std::vector<bool>>{{true, false}, {false, false}}), torch::tensor({{true, false}, {false, false}})));
        std::array<torch::Tensor, 2> const views = collate(std::vector{std::array{torch::ones(1), torch::ones(2)}, std::array{torch::ones(1), torch::ones(2)}});
        CHECK(views[1].sizes() == at::IntArrayRef({2, 2}));
        std::vector const both{torch::ones(1), torch::ones(2)};
        std::vector<torch::Tensor> const list = collate(std::vector{both, both});
        CHECK(list.size() == 2);
        std::map<std::string, torch::Tensor> const map =
            collate(std::vector<std::map<std::string, double>>{{{"x", 1.0}, {"y", 2.0}}, {{"x", 3.0}, {"y", 4.0}}});
        CHECK(torch::equal(map.at("y"), torch::tensor({2.0, 4.0}, at::kDouble)));
        acc::TensorMap const sample{{"b", torch::ones(2)}, {"a", torch::zeros(1)}}, named = collate(std::vector{sample, sample});
        CHECK(named.at("b").sizes() == at::IntArrayRef({2, 2}));
        CHECK(named.begin()->first == "b");
    }
    SECTION("structs of tensors stay what they are; others name their batch") {
        Pair const batch = collate(std::vector{Pair{torch::ones(2), torch::zeros({})}, Pair{torch::ones(2), torch::ones({})}});
        CHECK(batch.input.sizes() == at::IntArrayRef({2, 2}));
        CHECK(torch::equal(batch.target, torch::tensor({0.f, 1.f})));
        Nested const n{{torch::ones(2), torch::ones(3)}, {torch::ones(4), torch::ones(5)}, {{"k", torch::ones(6)}}};
        Nested const nested = collate(std::vector{n, n, n});
        CHECK(nested.extra.at("k").sizes() == at::IntArrayRef({3, 6}));
        CHECK(nested.views[0].sizes() == at::IntArrayRef({3, 4}));
        Labelled::batch const labelled = collate(std::vector{Labelled{torch::ones(2), 7, "a"}, Labelled{torch::ones(2), 8, "b"}});
        CHECK(torch::equal(labelled.label, torch::tensor({7, 8}, at::kLong)));
        CHECK(labelled.name[1] == "b");
        static_assert(std::is_same_v<data::batch_t<Labelled>, Labelled::batch>);
    }
    SECTION("what does not fit is named") {
        CHECK(has(error_of([&] { collate(std::vector{torch::ones(2), torch::ones(2), torch::ones(3)}); }),
                  "item 2 of the batch has shape [3], item 0 has [2]"));
        CHECK(has(error_of([&] { collate(std::vector<std::vector<int>>{{1}, {1, 2}}); }), "item 1 of the batch has 2 elements"));
        CHECK(has(error_of([&] { collate(std::vector<std::map<std::string, int>>{{{"x", 1}}, {{"y", 1}}}); }), "item 1 of the batch has no \"x\""));
    }
}

namespace {
struct Sentence {
    data::PaddedSequence words;
    data::PackedSequence letters;
    int64_t label = 0;
    struct batch {
        data::PaddedBatch words;
        data::PackedBatch letters;
        torch::Tensor label;
    };
};
}  // namespace

TEST_CASE("sequences of different length are padded or packed", "[ragged][collate]") {
    auto const batch = data::Collate()(std::vector<Sentence>{{{torch::tensor({1, 2, 3})}, {torch::ones({2, 5})}, 7}, {{torch::tensor({4})}, {torch::zeros({0, 5})}, 8}, {{torch::tensor({5, 6})}, {torch::full({1, 5}, 2.0)}, 9}});
    CHECK(torch::equal(batch.words.values, torch::tensor({{1, 2, 3}, {4, 0, 0}, {5, 6, 0}})));
    CHECK(torch::equal(batch.words.mask, torch::tensor({{true, true, true}, {true, false, false}, {true, true, false}})));
    CHECK(torch::equal(batch.words.lengths, torch::tensor({3, 1, 2})));
    CHECK(torch::equal(batch.letters.values, torch::cat({torch::ones({2, 5}), torch::full({1, 5}, 2.0)})));
    CHECK(torch::equal(batch.letters.cu_seqlens, torch::tensor({0, 2, 2, 3}, torch::kInt)));
    CHECK(batch.letters.max_length == 2);
    CHECK(torch::equal(batch.label, torch::tensor({7, 8, 9})));
    auto const wide = data::pad({torch::ones({3, 2}), torch::ones({1, 2})}, -1, 4);
    CHECK(wide.values.sizes() == at::IntArrayRef({2, 4, 2}));
    CHECK(wide.values.eq(-1).sum().item<int64_t>() == 2 * (1 + 3));
    CHECK(torch::equal(wide.mask.sum(1), wide.lengths));
    CHECK(has(error_of([&] { data::pad({torch::ones({3, 2}), torch::ones({1, 3})}); }), "E_DATA: data::pad: item 1 of the batch has shape [1, 3]"));
    CHECK(has(error_of([&] { data::pack({torch::ones({3}), torch::ones({})}); }), "E_DATA: data::pack: item 1 of the batch is no sequence"));
    data::Prepared loader{data::Loader{std::vector<Sentence>(5, {{torch::tensor({1, 2})}, {torch::ones({2, 5})}, 1}), {.batch_size = 2}}};
    CHECK(loader.begin()->letters.values.sizes() == at::IntArrayRef({4, 5}));
}

TEST_CASE("tensors in memory: rows are samples, batches are gathered", "[tensors][dataset]") {
    auto const x = torch::randn({10, 2, 3}), y = torch::arange(10);
    data::Tensors const both{x, y};
    static_assert(data::BatchingDataset<decltype(both)>);
    CHECK(both.size() == 10);
    auto const [row, label] = both[4];
    CHECK(torch::equal(row, x[4]));
    CHECK(label.item<int64_t>() == 4);
    std::vector<int64_t> const rows{3, 3, 9, 0};
    auto const index = torch::tensor(rows);
    auto const [images, labels] = both.batch(rows);
    CHECK(torch::equal(images, x.index_select(0, index)));
    CHECK(torch::equal(labels, index));
    CHECK(torch::equal(data::Tensors{x}.batch(rows), images));
    for (auto const& from : {x.transpose(1, 2), x.to(at::kHalf), x > 0, torch::empty({10, 0}), x.clone().requires_grad_()})
        CHECK(torch::equal(data::gather_rows(from, rows), from.index_select(0, index)));
    CHECK(data::gather_rows(x, {}).sizes() == at::IntArrayRef({0, 2, 3}));
    CHECK(has(error_of([&] { data::Tensors(x, torch::ones(9)); }), "E_DATA"));
    CHECK(has(error_of([&] { data::Tensors(torch::ones({})); }), "E_DATA"));
}

TEST_CASE("the smallest data sets are data sets", "[dataset]") {
    static_assert(data::IndexedDataset<Count> && data::IndexedDataset<Count const&> && data::IndexedDataset<std::vector<torch::Tensor>&>);
    static_assert(!data::IndexedDataset<int> && !data::IndexedDataset<std::set<int>> && !data::BatchingDataset<Count>);
    static_assert(std::is_same_v<data::sample_t<std::vector<Pair> const&>, Pair>);
}

// ---- loaders ----------------------------------------------------------------------------------------------------------------

namespace {

struct Immovable {
    Immovable() = default;
    Immovable(Immovable const&) = delete;
    size_t size() const { return 3; }
    int operator[](size_t i) { return static_cast<int>(i) + ++reads * 0; }
    int reads = 0;
};
struct MoveOnly {
    std::unique_ptr<int> number = std::make_unique<int>(5);
    size_t size() const { return 3; }
    int64_t operator[](size_t i) const { return *number + static_cast<int64_t>(i); }
};

/// Throws at sample `bad`.
struct Faulty {
    int64_t bad = 0;
    bool as_error = false;
    size_t size() const { return 8; }
    int64_t operator[](size_t i) const {
        if (static_cast<int64_t>(i) == bad) {
            if (as_error) throw acc::Error(acc::code::io, "the disk is gone");
            throw std::runtime_error("the disk is gone");
        }
        return static_cast<int64_t>(i);
    }
};

}  // namespace

TEST_CASE("a loader references a named data set and owns a temporary one", "[loader][options]") {
    Immovable here;
    data::Loader named{here, {.batch_size = 2}};
    static_assert(std::is_same_v<decltype(named), data::Loader<Immovable&>>);
    CHECK(&named.dataset() == &here);
    data::Prepared prepared{named};  // a loader that references its data can be copied
    CHECK(&prepared.dataset() == &here);
    static_assert(std::is_same_v<decltype(data::Loader{Count{4}}), data::Loader<Count>>);
    Count const constant{4};
    static_assert(std::is_same_v<decltype(data::Loader{constant}), data::Loader<Count const&>>);
    data::Prepared owning{data::Loader{MoveOnly(), {.batch_size = 2}}};
    CHECK(epoch_of(owning) == Batches{{5, 6}, {7}});
    static_assert(data::is_loader<decltype(named)> && !data::is_loader<Count>);
    static_assert(std::is_same_v<decltype(data::Loader{here, {}, data::order::Sequential()}), data::Loader<Immovable&, data::order::Sequential>>);

    data::options const defaults;
    auto const& [batch_size, shuffle, seed, drop_last, even_batches, split_batches, num_workers, prefetch_factor, timeout_s, pin_memory, non_blocking] = defaults;
    CHECK(std::tuple(batch_size, shuffle, seed, drop_last, split_batches, num_workers) == std::tuple(1, false, 0, false, false, 0));
    CHECK(even_batches == data::Pad);
    CHECK(std::tuple(prefetch_factor, timeout_s, pin_memory, non_blocking) == std::tuple(2, 0.0, false, false));
    CHECK(has(error_of([] { data::Loader{Count{4}, {.batch_size = 0}}; }), "batch_size is 0"));
    CHECK(has(error_of([] { data::Loader{Count{4}, {.num_workers = -1}}; }), "num_workers is -1"));
}

TEST_CASE("a loader takes a collate function and an order", "[loader][fetch]") {
    auto const sum_of = [](std::vector<int64_t> const& v) { return std::accumulate(v.begin(), v.end(), int64_t{0}); };
    data::Prepared sums{data::Loader{Count{5}, {.batch_size = 2}}.collate(sum_of)};
    std::vector<int64_t> seen;
    for (auto& sum : sums) seen.push_back(sum);
    CHECK(seen == std::vector<int64_t>{1, 5, 4});
    // It wins over a data set that makes batches itself.
    data::Prepared counted{
        data::Loader{data::Tensors{torch::ones({3, 2})}, {.batch_size = 2}}.collate([](std::vector<torch::Tensor>&& v) { return v.size(); })};
    for (auto& n : counted) CHECK((n == 2 || n == 1));

    struct Backwards {  // an order of the user's that builds a table
        struct Table {
            std::vector<int64_t> indices;
            int64_t operator[](int64_t position) const { return indices[static_cast<size_t>(position)]; }
        };
        Table epoch(int64_t e, int64_t n) const {
            Table table;
            for (int64_t i = 0; i < n; ++i) table.indices.push_back((2 * n - 1 - i - e) % n);
            return table;
        }
    };
    data::Prepared backwards{data::Loader{Count{4}, {.batch_size = 2, .shuffle = true}, Backwards()}};
    CHECK(epoch_of(backwards) == Batches{{3, 2}, {1, 0}});
    CHECK(epoch_of(backwards) == Batches{{2, 1}, {0, 3}});
    data::Prepared both{data::Loader{Count{4}, {.batch_size = 3}, Backwards(), [](std::vector<int64_t> v) { return torch::tensor(v) * 10; }}};
    CHECK(epoch_of(both) == Batches{{30, 20, 10}, {0}});
}

TEST_CASE("a range-for runs one epoch", "[prepared]") {
    data::Prepared loader{data::Loader{Count{10}, {.batch_size = 4}}};
    CHECK(loader.size() == 3);
    CHECK(loader.total_batch_size() == 4);
    CHECK((loader.epoch() == 0 && loader.consumed() == 0));
    static_assert(std::ranges::input_range<decltype(loader)>);
    std::vector<int64_t> consumed;
    for (auto& batch : loader) {
        consumed.push_back(loader.consumed());
        CHECK(loader.epoch() == 0);
        batch = torch::Tensor();  // the loop's to do with as it likes
    }
    CHECK(consumed == std::vector<int64_t>{4, 8, 10});
    CHECK((loader.epoch() == 1 && loader.consumed() == 0));
    CHECK(epoch_of(loader) == Batches{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}});  // one rank has no reason to fill up
    CHECK(loader.epoch() == 2);
}

TEST_CASE("shuffled epochs differ, are the same on every rank, and are each complete", "[prepared][context]") {
    int64_t const n = 23, ranks = 3;
    for (bool split : {false, true}) {
        std::vector<data::Prepared<data::Loader<Count>>> loaders;
        for (int64_t r = 0; r < ranks; ++r)
            loaders.emplace_back(data::Loader{Count{n}, {.batch_size = split ? 6 : 2, .shuffle = true, .seed = 5, .split_batches = split}},
                                 data::Context{r, ranks});
        std::vector<Batches> first, second;
        for (auto& l : loaders) first.push_back(epoch_of(l));
        for (auto& l : loaders) second.push_back(epoch_of(l));
        CHECK(first != second);
        CHECK(united(first).size() == static_cast<size_t>(n));
        CHECK(united(second).size() == static_cast<size_t>(n));
        auto const order = data::order::Shuffled{5}.epoch(0, n);
        for (int64_t r = 0; r < ranks; ++r) {
            CHECK(first[static_cast<size_t>(r)].size() == 4);
            CHECK(first[static_cast<size_t>(r)][1] == std::vector<int64_t>{order[6 + 2 * r], order[6 + 2 * r + 1]});
        }
    }
    data::Prepared alone{data::Loader{Count{n}, {.batch_size = 6, .shuffle = true, .seed = 5}}};
    CHECK(united({epoch_of(alone)}).size() == static_cast<size_t>(n));
}

TEST_CASE("a loop that breaks off starts its epoch again", "[prepared]") {
    data::Prepared loader{data::Loader{Count{10}, {.batch_size = 2, .shuffle = true}}};
    std::vector<int64_t> first;
    for (auto& batch : loader) {
        first = numbers(batch);
        break;
    }
    CHECK((loader.epoch() == 0 && loader.consumed() == 2));
    auto const again = epoch_of(loader);
    CHECK(again.size() == 5);
    CHECK(again[0] == first);
    CHECK(loader.epoch() == 1);
}

TEST_CASE("set_epoch", "[prepared]") {
    data::Prepared loader{data::Loader{Count{10}, {.batch_size = 4, .shuffle = true}}}, other{data::Loader{Count{10}, {.batch_size = 4, .shuffle = true}}};
    auto const zero = epoch_of(loader), one = epoch_of(loader);
    other.set_epoch(1);
    CHECK(epoch_of(other) == one);
    CHECK(other.epoch() == 2);
    other.set_epoch(0);
    CHECK(epoch_of(other) == zero);
    CHECK(has(error_of([&] { other.set_epoch(-1); }), "E_CONFIG"));
    int64_t bodies = 0;
    for (auto& batch : other) {
        CHECK(batch.numel() == 4);
        if (++bodies == 1) other.set_epoch(7);
    }
    CHECK(bodies == 1);
    CHECK(other.epoch() == 7);
}

TEST_CASE("no batch at all is legal, no sample at all is not", "[prepared]") {
    data::Prepared few{data::Loader{Count{3}, {.batch_size = 4, .drop_last = true}}};
    CHECK(few.size() == 0);
    for (auto& batch : few) FAIL(batch.numel());
    CHECK(few.epoch() == 1);
    data::Prepared background{data::Loader{Count{3}, {.batch_size = 4, .drop_last = true, .num_workers = 1}}};
    for (auto& batch : background) FAIL(batch.numel());
    for (int64_t r : {0, 1})
        CHECK(has(error_of([&] { data::Prepared(data::Loader{Count{0}}, data::Context{r, 2}); }), "E_DATA: prepare: the data set of a Loader is empty"));
    CHECK(has(error_of([] { data::Prepared(data::Loader{Count{9}, {.batch_size = 3, .split_batches = true}}, data::Context{0, 2}); }),
              "multiple of the number of ranks"));
}

TEST_CASE("a state goes on at the first sample that nobody consumed", "[prepared]") {
    auto const make = [](int64_t rank, int64_t ranks, int64_t batch, int64_t workers = 0) {
        data::Loader loader{Count{41}, {.batch_size = batch, .shuffle = true, .seed = 9, .even_batches = false, .num_workers = workers}};
        return data::Prepared(std::move(loader), data::Context{rank, ranks});
    };
    SECTION("on the same ranks: exactly the batches that are missing") {
        for (int64_t workers : {0, 2})
            for (size_t stop = 0; stop < 6; ++stop) {
                auto whole = make(1, 2, 4);
                epoch_of(whole);
                auto const expected = epoch_of(whole);
                auto loader = make(1, 2, 4, workers);
                epoch_of(loader);
                size_t seen = 0;
                acc::StateDict state = loader.state_dict();
                if (stop > 0)
                    for ([[maybe_unused]] auto& batch : loader) {
                        state = loader.state_dict();
                        if (++seen == stop) break;
                    }
                if (stop > expected.size()) continue;
                auto const json = nlohmann::json::parse(state.values.dump());
                auto resumed = make(1, 2, 4, workers);
                resumed.load_state_dict({{}, json});
                CHECK((resumed.epoch() == 1 && resumed.consumed() == loader.consumed()));
                resumed.set_epoch(1);  // the epoch that is loaded already: changes nothing
                CHECK(epoch_of(resumed) == Batches(expected.begin() + static_cast<std::ptrdiff_t>(stop), expected.end()));
                CHECK((resumed.epoch() == 2 && resumed.consumed() == 0));
                CHECK(epoch_of(resumed) == epoch_of(whole));
            }
    }
    SECTION("on other ranks: everything once") {
        for (int64_t before : {1, 2, 4})
            for (int64_t after : {1, 2, 3}) {
                std::multiset<int64_t> seen;
                acc::StateDict state;
                for (int64_t r = 0; r < before; ++r) {
                    auto loader = make(r, before, 3);
                    int64_t k = 0;
                    for (auto& batch : loader) {
                        for (auto i : numbers(batch)) seen.insert(i);
                        state = loader.state_dict();
                        if (++k == 2) break;
                    }
                }
                CHECK(state.values.at("consumed") == 6 * before);
                for (int64_t r = 0; r < after; ++r) {
                    auto loader = make(r, after, 5);
                    loader.load_state_dict(state);
                    for (auto& batch : loader)
                        for (auto i : numbers(batch)) seen.insert(i);
                }
                CHECK(seen.size() == 41);
                CHECK(std::set<int64_t>(seen.begin(), seen.end()).size() == 41);
            }
    }
    SECTION("the seed comes with it; the last batch was the last") {
        auto loader = make(0, 1, 10);
        acc::StateDict state;
        for ([[maybe_unused]] auto& batch : loader) state = loader.state_dict();
        CHECK(state.values == nlohmann::json{{"seed", 9}, {"epoch", 0}, {"consumed", 41}, {"size", 41}});
        data::Prepared other{data::Loader{Count{41}, {.batch_size = 10, .shuffle = true, .seed = 1, .even_batches = false}}};
        other.load_state_dict(state);
        CHECK(epoch_of(other).empty());
        CHECK(other.epoch() == 1);
        CHECK(epoch_of(other) == epoch_of(loader));
    }
    SECTION("a loop that runs while a state is loaded ends with its batch") {
        auto loader = make(0, 1, 10);
        auto const start = loader.state_dict();
        int64_t bodies = 0;
        for ([[maybe_unused]] auto& batch : loader)
            if (++bodies == 2) loader.load_state_dict(start);
        CHECK(bodies == 2);
        CHECK((loader.epoch() == 0 && loader.consumed() == 0));
        CHECK(epoch_of(loader).size() == 5);
    }
    SECTION("what cannot be is refused") {
        auto loader = make(0, 1, 10);
        auto const load = [&](nlohmann::json const& values) { return error_of([&] { loader.load_state_dict({{}, values}); }); };
        CHECK(has(load({{"seed", 9}, {"epoch", 0}, {"consumed", 0}, {"size", 40}}), "has 41 samples, it had 40"));
        CHECK(has(load({{"seed", 9}, {"epoch", 0}, {"consumed", 42}, {"size", 41}}), "E_DATA"));
        CHECK(has(load({{"seed", 9}, {"epoch", -1}, {"consumed", 0}, {"size", 41}}), "E_DATA"));
        CHECK(has(load({{"seed", 9}, {"epoch", 0}, {"size", 41}}), "no value \"consumed\""));
        CHECK(has(load({{"seed", "x"}, {"epoch", 0}, {"consumed", 0}, {"size", 41}}), "wrong type"));
        CHECK((loader.epoch() == 0 && loader.consumed() == 0));
    }
}

TEST_CASE("prepared loaders can be moved, also while their loop runs", "[prepared]") {
    data::Prepared from{data::Loader{MoveOnly(), {.batch_size = 1}}};
    auto it = from.begin();
    auto to = std::move(from);
    auto moved = std::move(it);
    Batches seen;
    for (; moved != std::default_sentinel; ++moved) seen.push_back(numbers(*moved));
    CHECK(seen == Batches{{5}, {6}, {7}});
    CHECK(to.epoch() == 1);
}

TEST_CASE("an error in the data names the sample", "[fetch][workers]") {
    for (int64_t workers : {0, 1}) {
        data::Prepared loader{data::Loader{Faulty{5}, {.batch_size = 2, .num_workers = workers}}};
        int64_t bodies = 0;
        auto const text = error_of([&] {
            for ([[maybe_unused]] auto& batch : loader) ++bodies;
        });
        CHECK(bodies == 2);  // the batches before it were handed out
        CHECK(loader.consumed() == 4);
        std::string const where = workers ? ", worker 0" : "";
        CHECK(has(text, "E_DATA: data::Loader: reading sample 5 on rank 0" + where + ": the disk is gone"));
        data::Prepared typed{data::Loader{Faulty{5, true}, {.batch_size = 2, .num_workers = workers}}};
        CHECK(has(error_of([&] { epoch_of(typed); }), "E_IO: data::Loader: reading sample 5 on rank 0" + where + ": the disk is gone"));
        std::vector<torch::Tensor> const ragged{torch::ones(1), torch::ones(1), torch::ones(1), torch::ones(2)};
        data::Prepared shapes{data::Loader{ragged, {.batch_size = 2, .num_workers = workers}}};
        auto const collation = error_of([&] {
            for ([[maybe_unused]] auto& batch : shapes) {}
        });
        CHECK(has(collation, "collating samples 2, 3"));
        CHECK(has(collation, "item 1 of the batch has shape [2]"));
    }
    try {
        data::Prepared loader{data::Loader{Faulty{0}}};
        loader.begin();
        FAIL("no exception");
    } catch (std::exception const& e) {
        CHECK_THROWS_AS(std::rethrow_if_nested(e), std::runtime_error);  // the original is inside
    }
}

TEST_CASE("batches are made by worker threads, in order, a bounded number ahead", "[workers][prepared]") {
    struct Watched {
        std::mutex mutex = {};
        std::set<std::thread::id> threads = {};
        std::atomic<int64_t> read = 0;
        size_t size() const { return 60; }
        int64_t operator[](size_t i) {
            if (i % 4 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // uneven, so that workers overtake each other
            std::lock_guard lock(mutex);
            threads.insert(std::this_thread::get_id());
            ++read;
            return static_cast<int64_t>(i) + (at::GradMode::is_enabled() ? 0 : 100);
        }
    };
    for (int64_t workers : {1, 2, 5}) {
        Watched watched;
        data::Prepared loader{data::Loader{watched, {.batch_size = 2, .num_workers = workers, .prefetch_factor = 3}}};
        int64_t expected = 0, most = 0;
        for (auto& batch : loader) {
            REQUIRE(numbers(batch) == std::vector{expected, expected + 1});
            expected += 2;
            most = std::max<int64_t>(most, watched.read - expected);
        }
        CHECK(expected == 60);
        CHECK(watched.read == 60);
        CHECK(most <= 2 * (3 * workers));
        CHECK(watched.threads.size() <= static_cast<size_t>(workers));
        CHECK(!watched.threads.contains(std::this_thread::get_id()));
        torch::NoGradGuard guard;  // the loop's settings hold there too
        CHECK(numbers(*loader.begin()) == std::vector<int64_t>{100, 101});
    }
    data::Prepared loader{data::Loader{Count{6}, {.batch_size = 2, .num_workers = 2}}};
    for (int i = 0; i < 50; ++i)
        for ([[maybe_unused]] auto& batch : loader)
            if (i % 3 != 2) break;  // leaves batches behind
    CHECK(loader.epoch() == 16);
}

TEST_CASE("a worker that does not come back is named, with its sample", "[workers]") {
    auto const gate = std::make_shared<std::promise<void>>();
    struct Stuck {
        std::shared_future<void> gate;
        size_t size() const { return 8; }
        int64_t operator[](size_t i) const {
            if (i == 5) gate.wait();
            return static_cast<int64_t>(i);
        }
    };
    {
        data::Prepared loader{data::Loader{Stuck{gate->get_future().share()}, {.batch_size = 2, .num_workers = 2, .timeout_s = 0.2}}};
        int64_t bodies = 0;
        auto const text = error_of([&] {
            for ([[maybe_unused]] auto& batch : loader) ++bodies;
        });
        CHECK(bodies == 2);
        CHECK(has(text, "E_DEADLINE: data::Loader: sample 5 on rank 0, worker "));
        CHECK(has(text, "has not come back for 0.2 s"));
    }
    gate->set_value();  // the thread that was left behind ends
}

TEST_CASE("errors of several workers come at their batch", "[workers][fetch]") {
    struct Bad {
        size_t size() const { return 40; }
        int64_t operator[](size_t i) const {
            if (i >= 20) throw std::runtime_error(std::to_string(i));
            return static_cast<int64_t>(i);
        }
    };
    for (int i = 0; i < 20; ++i) {
        data::Prepared loader{data::Loader{Bad(), {.batch_size = 1, .num_workers = 4}}};
        int64_t bodies = 0;
        CHECK(has(error_of([&] {
                      for ([[maybe_unused]] auto& batch : loader) ++bodies;
                  }),
                  "reading sample 20 on rank 0, worker "));
        CHECK(bodies == 20);
    }
}

TEST_CASE("what a loader knows about the batch at hand, and what it has cost", "[delivery][end_rule][prepared]") {
    for (int64_t workers : {0, 2}) {
        data::Prepared loader{data::Loader{Count{7}, {.batch_size = 3, .even_batches = data::Mask, .num_workers = workers}}};
        std::string seen;
        for (auto& batch : loader) {
            CHECK(loader.mask().sizes() == batch.sizes());
            seen += acc::concat(batch.numel(), "/", loader.valid(), loader.end_of_dataloader() ? "L" : "", " ", loader.remainder(), ";");
        }
        CHECK(seen == "3/3 1;3/3 1;3/1L 1;");
        CHECK(torch::equal(loader.mask(), torch::tensor({true, false, false})));
        CHECK((loader.statistics().batches == 3 && loader.statistics().samples == 7));
        CHECK(loader.statistics().waiting_s > 0);
    }
    struct Slow {
        size_t size() const { return 4; }
        int64_t operator[](size_t) const { return std::this_thread::sleep_for(std::chrono::milliseconds(5)), 0; }
    };
    data::Prepared slow{data::Loader{Slow()}};
    epoch_of(slow);
    CHECK(slow.statistics().waiting_s >= 0.02);
    data::Prepared dropping{data::Loader{Count{7}, {.batch_size = 3, .even_batches = data::Drop}}};
    CHECK(epoch_of(dropping) == Batches{{0, 1, 2}, {3, 4, 5}});
    CHECK(dropping.size() == 2);
}

TEST_CASE("the first batches can be left out, at any distance", "[prepared]") {
    struct Huge {
        size_t size() const { return size_t{1} << 40; }
        int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
    };
    data::Prepared huge{data::Loader{Huge(), {.batch_size = 4, .shuffle = true, .seed = 3}}};
    auto const position = int64_t{1} << 35;
    auto const order = data::order::Shuffled{3}.epoch(0, int64_t{1} << 40);
    for (auto& batch : data::skip_first_batches(huge, position)) {
        CHECK(numbers(batch)[1] == order[position * 4 + 1]);
        break;
    }
    data::Prepared loader{data::Loader{Count{10}, {.batch_size = 3}}};
    for (auto& batch : loader.skip_first_batches(2)) {
        CHECK(numbers(batch) == std::vector<int64_t>{6, 7, 8});
        break;
    }
    CHECK(epoch_of(loader.skip_first_batches(3)) == Batches{{9}});
    CHECK(loader.epoch() == 1);
    CHECK(epoch_of(loader).size() == 4);  // later epochs are whole
    CHECK(epoch_of(loader.skip_first_batches(4)).empty());
    CHECK(loader.epoch() == 3);
    CHECK(epoch_of(loader.skip_first_batches(0)).size() == 4);
}

TEST_CASE("a data set of another hash is refused", "[indexed_source]") {
    struct Hashed {
        std::string text;
        size_t size() const { return 4; }
        int64_t operator[](size_t) const { return 0; }
        std::string hash() const { return text; }
    };
    data::Prepared before{data::Loader{Hashed{"one"}}}, same{data::Loader{Hashed{"one"}}}, other{data::Loader{Hashed{"two"}}};
    same.load_state_dict(before.state_dict());
    auto const text = error_of([&] { other.load_state_dict(before.state_dict()); });
    CHECK(has(text, "E_DATA: data::Loader.load_state_dict: the data set's hash is two, it was one"));
}

TEST_CASE("a state of an indexed data set is small", "[prepared][indexed_source]") {
    data::Prepared loader{data::Loader{Count{1000000000}, {.batch_size = 64, .shuffle = true, .seed = 1234}}};
    for ([[maybe_unused]] auto& batch : loader.skip_first_batches(10000000)) break;
    CHECK(loader.state_dict().values.dump().size() <= 64);
}

// ---- orders, samplers, random numbers -------------------------------------------------------------------------------------------

namespace {
template <class View>
std::vector<int64_t> all_of(View const& view, int64_t n) {
    std::vector<int64_t> out;
    for (int64_t i = 0; i < n; ++i) out.push_back(view[i]);
    return out;
}
}  // namespace

TEST_CASE("samples are drawn by weight", "[orders]") {
    data::order::Weighted const with{.weights = {1, 0, 3, 4}, .num_samples = 8000, .seed = 5};
    CHECK(with.length(4) == 8000);
    CHECK(all_of(with.epoch(2, 4), 8000) == all_of(with.epoch(2, 4), 8000));
    CHECK(all_of(with.epoch(2, 4), 8000) != all_of(with.epoch(3, 4), 8000));
    std::array<double, 4> count{};
    for (auto i : all_of(with.epoch(0, 4), 8000)) ++count[static_cast<size_t>(i)];
    CHECK(count[1] == 0);
    for (auto [i, p] : {std::pair(0, 1. / 8), std::pair(2, 3. / 8), std::pair(3, 4. / 8)})
        CHECK(std::abs(count[static_cast<size_t>(i)] - 8000 * p) < 5 * std::sqrt(8000 * p * (1 - p)));

    // Without replacement the first draw goes by weight, and nothing comes twice: here the first of 3 drawn from {1, 2, 5}.
    std::array<double, 3> first{};
    for (int64_t seed = 0; seed < 8000; ++seed) {
        auto const drawn = all_of(data::order::Weighted{.weights = {1, 2, 5}, .replacement = false, .seed = seed}.epoch(0, 3), 3);
        CHECK(std::set(drawn.begin(), drawn.end()).size() == 3);
        ++first[static_cast<size_t>(drawn[0])];
    }
    for (auto [i, p] : {std::pair(0, 1. / 8), std::pair(1, 2. / 8), std::pair(2, 5. / 8)})
        CHECK(std::abs(first[static_cast<size_t>(i)] - 8000 * p) < 5 * std::sqrt(8000 * p * (1 - p)));

    data::Prepared loader{data::Loader{Count{4}, {.batch_size = 3}, data::order::Weighted{.weights = {1, 0, 3, 4}, .num_samples = 10}}};
    CHECK(loader.size() == 4);
    auto const epoch = epoch_of(loader);
    CHECK((epoch.size() == 4 && epoch[3].size() == 1));
    auto const refused = [](data::order::Weighted const& w, std::string const& why) { CHECK(has(error_of([&] { w.epoch(0, 4); }), why)); };
    refused({.weights = {1, 2}}, "E_DATA: data::order::Weighted: 2 weights are given, the data set has 4 samples");
    refused({.weights = {1, -1, 1, 1}}, "a weight is -1");
    refused({.weights = {0, 0, 0, 0}}, "all weights are 0");
    refused({.weights = {1, 0, 0, 1}, .replacement = false}, "E_CONFIG: data::order::Weighted: 4 samples cannot be drawn without replacement from 2");
}

TEST_CASE("samples of similar length come together, still shuffled", "[orders]") {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < 100; ++i) lengths.push_back(i * 37 % 100);
    data::order::LengthGrouped const order{.lengths = lengths, .group = 20, .seed = 1};
    auto const one = all_of(order.epoch(0, 100), 100);
    CHECK(std::set(one.begin(), one.end()).size() == 100);
    CHECK(lengths[static_cast<size_t>(one[0])] == 99);
    int64_t falls = 0;
    for (size_t p = 1; p < 100; ++p) falls += lengths[static_cast<size_t>(one[p])] <= lengths[static_cast<size_t>(one[p - 1])];
    CHECK(falls >= 99 - 4 - 2);  // it rises where a stretch begins, and where the longest was moved from
    CHECK(all_of(order.epoch(1, 100), 100) != one);
    CHECK(has(error_of([&] { order.epoch(0, 99); }), "E_DATA: data::order::LengthGrouped: 100 lengths are given, the data set has 99 samples"));
}

namespace {
/// Batches given as a table.
struct GivenView {
    std::vector<std::vector<int64_t>> table;
    size_t size() const { return table.size(); }
    std::vector<int64_t> const& operator[](int64_t k) const { return table[static_cast<size_t>(k)]; }
};
struct Dynamic {
    GivenView batches(int64_t, int64_t) const { return {{{0, 1, 2}, {3, 4}, {5, 6, 7, 8}, {9, 10}, {11}}}; }
};
Batches rank_of(int64_t rank, int64_t size, data::EvenBatches even, bool drop = false) {
    data::Prepared loader{data::Loader{Count{12}, {.drop_last = drop, .even_batches = even}, Dynamic()}, data::Context{rank, size}};
    return epoch_of(loader);
}
}  // namespace

TEST_CASE("a batch sampler's batches are cut over ranks whole, as in Python", "[sampler][plan]") {
    static_assert(data::batch_sampler<Dynamic> && data::batch_sampler<data::sampler::TokenBudget<>> && !data::batch_sampler<data::order::Shuffled> && !data::order_policy<Dynamic>);
    CHECK(rank_of(0, 2, true) == Batches{{0, 1, 2}, {5, 6, 7, 8}, {11}});
    CHECK(rank_of(1, 2, true) == Batches{{3, 4}, {9, 10}, {0, 1, 2}});
    CHECK(rank_of(0, 3, false) == Batches{{0, 1, 2}, {9, 10}});
    CHECK(rank_of(1, 3, false) == Batches{{3, 4}, {11}});
    CHECK(rank_of(2, 3, false) == Batches{{5, 6, 7, 8}});
    CHECK(rank_of(1, 2, data::Drop) == Batches{{3, 4}, {9, 10}});
    CHECK(rank_of(0, 1, true).size() == 5);
    data::Prepared first{data::Loader{Count{12}, {}, Dynamic()}, data::Context{1, 2}};
    for (auto& batch : first) {
        CHECK((first.valid() == batch.numel() && first.consumed() == 5));
        break;
    }
    data::Prepared next{data::Loader{Count{12}, {.even_batches = false}, Dynamic()}, data::Context{2, 3}};
    next.load_state_dict(first.state_dict());
    CHECK(epoch_of(next) == Batches{{11}});
    auto broken = first.state_dict();
    broken.values["consumed"] = 4;
    next.load_state_dict(broken);
    CHECK(has(error_of([&] { epoch_of(next); }), "E_DATA: data::Loader: sample 4 of the epoch is not the first of a batch"));
}

TEST_CASE("batches by a budget of tokens, and batches that grow", "[sampler]") {
    std::vector<int64_t> const lengths{5, 1, 1, 4, 2, 2, 2, 9};
    auto const sizes = [](auto const& batches) {
        std::vector<std::vector<int64_t>> out;
        for (size_t k = 0; k < batches.size(); ++k) out.emplace_back(batches[static_cast<int64_t>(k)].begin(), batches[static_cast<int64_t>(k)].end());
        return out;
    };
    CHECK(sizes(data::sampler::TokenBudget<>{.lengths = lengths, .max_tokens = 10}.batches(0, 8)) == Batches{{0, 1}, {2, 3}, {4, 5, 6}, {7}});
    CHECK(sizes(data::sampler::TokenBudget<>{.lengths = lengths, .max_tokens = 10, .padded = false}.batches(0, 8)) == Batches{{0, 1, 2}, {3, 4, 5, 6}, {7}});
    CHECK(has(error_of([&] { data::sampler::TokenBudget<>{.lengths = lengths, .max_tokens = 8}.batches(0, 8); }), "E_DATA: data::sampler::TokenBudget: sample 7 has 9 tokens; the budget is 8"));
    CHECK(has(error_of([&] { data::sampler::TokenBudget<>{.lengths = lengths, .max_tokens = 9}.batches(0, 7); }), "8 lengths are given, the data set has 7"));
    data::sampler::TokenBudget<> const shuffled{.lengths = std::vector<int64_t>(50, 3), .max_tokens = 12, .order = {true, 7}};
    data::Prepared loader{data::Loader{Count{50}, {}, shuffled}};
    std::set<int64_t> seen;
    for (auto& batch : loader) {
        CHECK(batch.numel() <= 4);
        for (auto i : numbers(batch)) CHECK(seen.insert(i).second);
    }
    CHECK(seen.size() == 50);
    CHECK(loader.state_dict().values["seed"] == 7);
    CHECK(sizes(data::sampler::ChangingSize<>{.size = [](int64_t step) { return step + 1; }}.batches(0, 8)) == Batches{{0}, {1, 2}, {3, 4, 5}, {6, 7}});
    CHECK(has(error_of([&] { data::sampler::ChangingSize<>{.size = [](int64_t) { return 0; }}.batches(0, 8); }), "E_CONFIG"));
    CHECK(has(error_of([&] { data::Prepared(data::Loader{Count{12}, {.batch_size = 2, .split_batches = true}, Dynamic()}); }), "E_CONFIG: data::Loader: split_batches cannot be combined with a batch sampler"));
}

namespace {
struct Noisy {
    size_t size() const { return 23; }
    std::pair<int64_t, double> at(size_t i, data::Random& random) const { return {static_cast<int64_t>(i), random.uniform()}; }
};
/// What each sample became in the given epoch, over all ranks.
std::map<int64_t, double> noise(int64_t ranks, int64_t workers, int64_t batch_size, int64_t epoch, int64_t seed) {
    std::map<int64_t, double> out;
    for (int64_t r = 0; r < ranks; ++r) {
        data::Prepared loader{data::Loader{Noisy(), {.batch_size = batch_size, .shuffle = true, .seed = seed, .even_batches = false, .num_workers = workers}}, data::Context{r, ranks}};
        loader.set_epoch(epoch);
        for (auto& [index, value] : loader)
            for (int64_t j = 0; j < index.numel(); ++j) CHECK(out.emplace(index[j].item<int64_t>(), value[j].item<double>()).second);
    }
    return out;
}
}  // namespace

TEST_CASE("random changes of samples depend on seed, epoch and position alone", "[random][fetch]") {
    auto const one = noise(1, 0, 4, 0, 5);
    CHECK(one.size() == 23);
    CHECK(noise(1, 3, 4, 0, 5) == one);
    CHECK(noise(3, 2, 2, 0, 5) == one);
    CHECK(noise(2, 0, 7, 0, 5) == one);
    CHECK(noise(1, 0, 4, 1, 5) != one);
    CHECK(noise(1, 0, 4, 0, 6) != one);
    data::Random a(1, 2, 3), b(1, 2, 3), c(1, 2, 4);
    CHECK(a() == b());
    CHECK(a() != c());
    double sum = 0;
    std::array<int, 5> faces{};
    for (int i = 0; i < 20000; ++i) {
        auto const u = a.uniform();
        CHECK((u >= 0 && u < 1));
        sum += u;
        ++faces[static_cast<size_t>(a.below(5))];
    }
    CHECK(std::abs(sum / 20000 - 0.5) < 0.01);
    for (auto f : faces) CHECK(std::abs(f - 4000) < 300);
    data::Random d(1, 2, 3), e(1, 2, 3);
    CHECK(torch::equal(torch::randn({4}, d.generator()), torch::randn({4}, e.generator())));
}

// ---- what the training loop knows ---------------------------------------------------------------------------------------------

TEST_CASE("the innermost loop is known, and whether it is at its last batch", "[loops][context]") {
    auto const loops = std::make_shared<data::Loops>();
    data::Prepared outer{data::Loader{Count{20}, {.batch_size = 3}}, data::Context{0, 2, at::kCPU, loops}};
    data::Prepared inner{data::Loader{Count{2}, {.batch_size = 1}}, data::Context{0, 1, at::kCPU, loops}};
    CHECK((!loops->active() && !loops->at_last_batch() && loops->remainder() == 0));
    std::string last;
    for ([[maybe_unused]] auto& batch : outer) {
        CHECK(loops->active());
        CHECK(loops->remainder() == 2);
        last += loops->at_last_batch() ? "L" : ".";
        for ([[maybe_unused]] auto& evaluated : inner) {
            CHECK(loops->remainder() == 0);
            last += loops->at_last_batch() ? "l" : "-";
        }
        last += loops->at_last_batch() ? "L" : ".";
    }
    CHECK(last == ".-l..-l..-l.L-lL");
    CHECK(!loops->active());

    for ([[maybe_unused]] auto& batch : outer) break;
    CHECK(!loops->active());
    CHECK_THROWS_AS(
        [&] {
            for ([[maybe_unused]] auto& batch : outer) throw std::runtime_error("leaves the loop");
        }(),
        std::runtime_error);
    CHECK(!loops->active());
    {
        auto a = std::make_optional(outer.begin());
        auto b = std::make_optional(inner.begin());
        a.reset();  // not the innermost
        CHECK((loops->active() && !loops->at_last_batch()));
        ++*b;
        CHECK(loops->at_last_batch());
        ++*b;
        CHECK(!loops->active());
    }
    {
        loops->keep_windows();
        auto const state = [&] {
            for ([[maybe_unused]] auto& batch : inner) return inner.state_dict();
            return acc::StateDict();
        }();
        std::vector<int64_t> from_where;
        for ([[maybe_unused]] auto& batch : inner) {
            loops->window_begins();
            CHECK((loops->rerun() && inner.consumed() == 1 && inner.state_dict().value<int64_t>("consumed", "") == 0));  // a run that is resumed begins with the window
            inner.load_state_dict(state);
            from_where.push_back(inner.state_dict().value<int64_t>("consumed", ""));
        }
        CHECK(from_where == std::vector<int64_t>{1});  // and one that goes elsewhere is there
        CHECK(inner.consumed() == 1);
    }
    data::Prepared dropping{data::Loader{Count{20}, {.batch_size = 3, .drop_last = true}}, data::Context{0, 2, at::kCPU, loops}};
    for ([[maybe_unused]] auto& batch : dropping) CHECK(loops->remainder() == 0);
    {
        data::Loops::Entry first(loops, 1);
        data::Loops::Entry second(std::move(first));
        CHECK((!loops->at_last_batch() && loops->remainder() == 1));
        second.at_batch({.length = 4, .valid = 3, .remainder = 2, .last = true});
        CHECK((loops->at_last_batch() && loops->remainder() == 2 && loops->length() == 4 && loops->valid() == 3));
    }
    CHECK(!loops->active());
}

TEST_CASE("batches go to the device; the policy says how a loader is prepared", "[policy][context]") {
    using Policy = acc::loader::Stateful<>;
    static_assert(acc::loader_policy<Policy> && !acc::loader_policy<int>);
    static_assert(std::is_same_v<Policy::prepared<data::Loader<Count>>, data::Prepared<data::Loader<Count>>>);
    static_assert(acc::stateful<data::Prepared<data::Loader<Count>>>);
    Policy::prepared<data::Loader<std::vector<Pair>>> loader(data::Loader{std::vector{Pair{torch::ones(2), torch::ones(3)}}}, data::Context{0, 1, at::kMeta});
    for (auto& batch : loader) CHECK((batch.input.is_meta() && batch.target.is_meta() && batch.target.sizes() == at::IntArrayRef({1, 3})));
}

// ---- text ---------------------------------------------------------------------------------------------------------------------

TEST_CASE("a corpus is read from a file or a folder, and whole files are held out", "[corpus]") {
    Folder const folder;
    size_t total = 0;
    for (int i = 0; i < 20; ++i) {
        auto const text = std::string(static_cast<size_t>(10 + i), static_cast<char>('a' + i));
        folder.write((i % 2 ? "deep/er/" : "") + std::string("file") + std::to_string(i) + ".txt", text);
        total += text.size();
    }
    folder.write("other.bin", "binary");
    folder.write("empty.txt", "");
    auto const corpus = data::read_corpus(folder.path, {.extensions = {".txt"}, .held_out_every = 5});
    CHECK(corpus.train.size() + corpus.held_out.size() == total);
    CHECK(corpus.held_out_files.size() == 4);
    CHECK(corpus.train_files.size() == 16);
    for (char c : corpus.held_out) REQUIRE(corpus.train.find(c) == std::string::npos);
    CHECK(data::read_corpus(folder.path, {.extensions = {".txt"}, .held_out_every = 5}).train == corpus.train);
    CHECK(data::read_corpus(folder.path, {.extensions = {".txt"}, .held_out_every = 5, .seed = 1}).train != corpus.train);
    CHECK(data::read_corpus(folder.path, {.extensions = {".txt"}, .held_out_every = 0}).held_out.empty());
    auto const few = data::read_corpus(folder.path, {.extensions = {".txt"}, .held_out_every = 100});
    CHECK(few.held_out == std::string(10, 'a'));  // the smallest file
    auto const limited = data::read_corpus(folder.path, {.extensions = {".txt"}, .max_bytes = 100});
    CHECK(limited.train.size() + limited.held_out.size() == 100);

    auto const single = data::read_corpus(folder.write("single", std::string(90, 'x') + std::string(10, 'y')));
    CHECK(single.train == std::string(90, 'x'));
    CHECK(single.held_out == std::string(10, 'y'));
}

TEST_CASE("text that cannot be read is an error that names it", "[corpus]") {
    Folder const folder;
    CHECK(has(error_of([&] { data::read_corpus(folder.path / "none.txt"); }), "E_IO: data::read_file: " + ("\"" + (folder.path / "none.txt").string() + "\"")));
    auto const empty = folder.write("empty.txt", "");
    CHECK(has(error_of([&] { data::read_corpus(empty); }), "empty.txt\" is empty"));
    CHECK(has(error_of([&] { data::read_corpus(folder.path, {.extensions = {".md", ".txt"}}); }), "has no file with content among *.md *.txt"));
    CHECK(has(error_of([&] { data::read_file(folder.path); }), "E_IO"));
    CHECK(has(error_of([&] { data::read_corpus(empty, {.held_out_every = 1}); }), "E_CONFIG"));
    if (::geteuid() != 0) {
        auto const locked = folder.write("locked.txt", "secret");
        std::filesystem::permissions(locked, std::filesystem::perms::none);
        CHECK(has(error_of([&] { data::read_corpus(locked); }), "Permission denied"));
    }
}

TEST_CASE("bytes are numbered and written back", "[vocabulary]") {
    data::Vocabulary const v("hello");
    CHECK(v.symbols() == "ehlo");
    CHECK(v.size() == 5);
    CHECK(torch::equal(v.encode("hole"), torch::tensor({1, 3, 2, 0}, at::kLong)));
    CHECK(v.decode(v.encode("hello")) == "hello");
    CHECK(v.decode(v.encode("jello")) == "?ello");
    CHECK(data::Vocabulary(v.symbols()).symbols() == v.symbols());
    std::string all;
    for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
    data::Vocabulary const full(all);
    CHECK(full.size() == 256);
    CHECK(full.decode(full.encode(all)) == all);
    CHECK(has(error_of([&] { v.symbol(5); }), "E_DATA"));
    CHECK(data::unigram_entropy("aaaa") == 0);
    CHECK(data::unigram_entropy("abab") == Approx(std::log(2.0)));
    CHECK(data::unigram_entropy("aaab") == Approx(-(0.75 * std::log(0.75) + 0.25 * std::log(0.25))));
}

TEST_CASE("windows over text: the target is the input one byte later", "[text]") {
    std::string const text = "abcdefghijk";  // 11 bytes
    data::Vocabulary const v(text);
    data::TextWindows const windows(v, text, 3);
    CHECK(windows.size() == 3);  // the last one ends with the text's last but one byte
    auto const w = windows[1];
    CHECK(v.decode(w.input) == "def");
    CHECK(v.decode(w.target) == "efg");
    data::Prepared loader{data::Loader{windows, {.batch_size = 2}}};
    auto it = loader.begin();
    CHECK(it->input.sizes() == at::IntArrayRef({2, 3}));
    CHECK(it->input.scalar_type() == at::kLong);
    CHECK(v.decode(it->target) == "bcdefg");
    CHECK(data::TextWindows(v, "abcd", 3).size() == 1);
    CHECK(data::TextWindows(v, "abcdefg", 3).size() == 2);
    data::TextWindows const some(v, text, 1, 4);
    CHECK(some.size() == 4);
    CHECK(v.decode(some[3].input) == "g");
    CHECK(has(error_of([&] { data::TextWindows(v, "abc", 3); }), "E_DATA: data::TextWindows: the text has 3 bytes, one window needs 4"));
    CHECK(has(error_of([&] { data::TextWindows(v, "abc", 0); }), "E_CONFIG"));
}
