// Process control on ranks that are threads: who does what, in which turn, and how work is split. References are lists written by hand.
#include "support/catch.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <atomic>
#include <mutex>
#include <thread>

namespace acc = accelerate;

namespace {

using Threads = acc::device::BasicCpu<acc::comm::Threads>;
using State = acc::PartialState<Threads>;
using Run = acc::Accelerator<Threads, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;

/// Runs `body(state)` on n ranks; what each gives back (no bool: those share bytes), by rank.
template <class Body>
auto on_ranks(int64_t n, Body const& body) {
    std::vector<std::invoke_result_t<Body const&, State&>> found(static_cast<size_t>(n));
    acc::debug_launcher(n, [&](acc::comm::Threads comm) {
        State state(comm);
        found[static_cast<size_t>(comm.rank())] = body(state);
    });
    return found;
}

using Ints = std::vector<int64_t>;
using Lists = std::vector<Ints>;

Ints count_to(int64_t n) {
    Ints out;
    for (int64_t i = 0; i < n; ++i) out.push_back(i);
    return out;
}

Ints values(torch::Tensor const& t) {
    auto const flat = t.to(torch::kLong).contiguous().reshape({-1});
    return Ints(flat.data_ptr<int64_t>(), flat.data_ptr<int64_t>() + flat.numel());
}

}  // namespace

TEST_CASE("ranks know their place", "[process_control][partial_state]") {
    auto const who = on_ranks(3, [](State& s) { return Ints{s.process_index(), s.num_processes(), s.local_process_index(), s.is_main_process(), s.is_local_main_process(), s.is_last_process(), s.use_distributed()}; });
    CHECK(who == Lists{{0, 3, 0, 1, 1, 0, 1}, {1, 3, 1, 0, 0, 0, 1}, {2, 3, 2, 0, 0, 1, 1}});
    acc::PartialState<acc::device::BasicCpu<acc::comm::Self>> alone;
    CHECK(alone.num_processes() == 1);
    CHECK((alone.is_main_process() && alone.is_last_process() && !alone.use_distributed()));
    CHECK(alone.device() == torch::kCPU);
}

TEST_CASE("work is split as in Python", "[split_between][process_control]") {
    // The two examples of Accelerate's documentation of this function, and what padding makes of the second.
    CHECK(on_ranks(4, [](State& s) { return s.split_between_processes(count_to(17)); }) == Lists{{0, 1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}, {13, 14, 15, 16}});
    CHECK(on_ranks(4, [](State& s) { return s.split_between_processes(count_to(2)); }) == Lists{{0}, {1}, {}, {}});
    CHECK(on_ranks(4, [](State& s) { return s.split_between_processes(count_to(2), true); }) == Lists{{0}, {1}, {1}, {1}});
    CHECK(on_ranks(3, [](State& s) { return s.split_between_processes(Ints{}, true); }) == Lists{{}, {}, {}});
    CHECK(on_ranks(3, [](State& s) { return s.split_between_processes(count_to(6), true); }) == Lists{{0, 1}, {2, 3}, {4, 5}});

    auto const rows = torch::arange(10).reshape({5, 2});
    CHECK(on_ranks(3, [&](State& s) { return values(s.split_between_processes(rows)); }) == Lists{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9}});
    CHECK(on_ranks(3, [&](State& s) { return values(s.split_between_processes(rows, true)); }) == Lists{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 8, 9}});
    CHECK(on_ranks(2, [&](State& s) { return values(s.split_between_processes(rows.slice(0, 0, 0), true)); }) == Lists{{}, {}});

    std::map<std::string, Ints> const map{{"a", count_to(3)}, {"b", {7, 8, 9}}};
    auto const parts = on_ranks(2, [&](State& s) { return s.split_between_processes(map); });
    CHECK(parts[0] == std::map<std::string, Ints>{{"a", {0, 1}}, {"b", {7, 8}}});
    CHECK(parts[1] == std::map<std::string, Ints>{{"a", {2}}, {"b", {9}}});
    CHECK(map.at("a").size() == 3);  // Python slices the caller's own

    acc::PartialState<acc::device::BasicCpu<acc::comm::Self>> alone;
    CHECK(alone.split_between_processes(count_to(3), true) == count_to(3));
    CHECK_THROWS_WITH(alone.split_between_processes(std::map<std::string, Ints>{{"a", {1}}, {"b", {}}}), contains("E_DATA") && contains("\"b\" has 0 items"));
    CHECK_THROWS_WITH(alone.split_between_processes(torch::ones({})), contains("0-dim"));
}

TEST_CASE("only the ranks that are meant do it", "[process_control]") {
    auto const did = on_ranks(3, [](State& s) {
        Ints seen;
        s.on_main_process([&] { seen.push_back(0); });
        s.on_last_process([&] { seen.push_back(1); });
        s.on_process(1, [&] { seen.push_back(2); });
        s.on_local_main_process([&] { seen.push_back(3); });
        s.on_local_process(2, [&] { seen.push_back(4); });
        if (auto const got = s.on_main_process([] { return 42; })) seen.push_back(*got);
        return seen;
    });
    CHECK(did == Lists{{0, 3, 42}, {2}, {1, 4}});
    acc::PartialState<acc::device::BasicCpu<acc::comm::Self>> alone;
    CHECK_THROWS_WITH(alone.on_process(1, [] {}), contains("E_CONFIG") && contains("there are 1"));
    for (int64_t index : {-1, 1}) CHECK_THROWS_WITH(alone.on_local_process(index, [] {}), contains("E_CONFIG") && contains("there are 1"));
    std::string const name = "a name";
    CHECK(alone.on_main_process([&]() -> std::string const& { return name; }) == name);
}

TEST_CASE("the main process goes first", "[process_control]") {
    std::atomic<bool> done = false;
    auto const seen = on_ranks(3, [&](State& s) {
        auto first = s.main_process_first();
        if (s.is_main_process()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(30));
            done = true;
        }
        return int64_t{done.load()};
    });
    CHECK(seen == Ints{1, 1, 1});

    done = false;
    CHECK(on_ranks(2, [&](State& s) {
        auto first = s.local_main_process_first();
        if (s.is_local_main_process()) done = true;
        return int64_t{done.load()};
    }) == Ints{1, 1});

    // An exception of the main process is the error of the run; nobody waits for the turn that never ends.
    CHECK_THROWS_WITH(on_ranks(2, [](State& s) {
        auto first = s.main_process_first();
        if (s.is_main_process()) throw std::runtime_error("the main process could not prepare the data");
        return int64_t{0};
    }), contains("could not prepare the data"));
}

TEST_CASE("a trigger that any rank sets is seen by all, once", "[process_control]") {
    auto const seen = on_ranks(3, [](State& s) {
        Ints found;
        found.push_back(s.check_trigger());
        if (s.is_last_process()) s.set_trigger();
        found.push_back(s.check_trigger());
        found.push_back(s.check_trigger());
        return found;
    });
    CHECK(seen == Lists{{0, 1, 0}, {0, 1, 0}, {0, 1, 0}});
}

TEST_CASE("bytes go between ranks", "[process_control]") {
    auto const all = on_ranks(3, [](State& s) { return s.gather_object(std::string(static_cast<size_t>(s.process_index()), 'x') + '\0'); });
    using namespace std::string_literals;
    for (auto const& one : all) CHECK(one == std::vector<std::string>{"\0"s, "x\0"s, "xx\0"s});
    auto const told = on_ranks(3, [](State& s) {
        auto text = s.process_index() == 2 ? "from the last"s : "something longer that is replaced"s;
        s.broadcast_object(text, 2);
        return text;
    });
    CHECK(told == std::vector<std::string>(3, "from the last"));
}

TEST_CASE("tensors are padded to the longest of all ranks", "[pad][accelerator]") {
    std::mutex mutex;
    acc::debug_launcher(3, [&](acc::comm::Threads comm) {
        Run accelerator({}, comm);
        auto const r = accelerator.process_index();
        auto const mine = torch::full({2, r + 1}, r, torch::kLong);
        auto const behind = accelerator.pad_across_processes(mine, 1, -7), before = accelerator.pad_across_processes(mine, -1, -7, true);
        auto const nested = accelerator.pad_across_processes(std::pair(mine.t().contiguous(), torch::ones({})));
        auto const other = accelerator.pad_across_processes(mine, 5);
        auto const gathered = accelerator.gather(behind);
        std::lock_guard const lock(mutex);
        CHECK(mine.size(1) == r + 1);
        CHECK(values(behind[0]) == (r == 0 ? Ints{0, -7, -7} : r == 1 ? Ints{1, 1, -7} : Ints{2, 2, 2}));
        CHECK(values(before[0]) == (r == 0 ? Ints{-7, -7, 0} : r == 1 ? Ints{-7, 1, 1} : Ints{2, 2, 2}));
        CHECK(nested.first.sizes() == torch::IntArrayRef({3, 2}));
        CHECK(nested.second.dim() == 0);
        CHECK(other.equal(mine));
        CHECK(gathered.sizes() == torch::IntArrayRef({6, 3}));
    });
}
