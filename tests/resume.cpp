// Going on from a checkpoint equals never having stopped, bit for bit: over every precision and sharding, the kinds of loaders, and the
// moments at which a run may stop.
#include "support/story.hpp"

#include "support/policies.hpp"

#include <array>
#include <concepts>
#include <utility>

using namespace told;

namespace {

/// Stops after `stop` bodies, begins anew from the folder, and is where the run is that did not stop.
template <class Precision, class Sharding, class Data = Indexed>
void resumes(int64_t ranks, std::vector<int64_t> const& stops) {
    for (auto stop : stops) {
        INFO(Precision::name << ", " << Sharding::name << ", " << Data::name << ", " << ranks << " ranks, stop after " << stop);
        Folder folder;
        auto const dir = folder / "here";
        torch::manual_seed(11);
        auto const through = stories<Precision, Sharding, Data>(ranks, {}, stop, [&](auto& accelerator) { accelerator.save_state(dir); });
        torch::manual_seed(12);
        auto const again = stories<Precision, Sharding, Data>(ranks, dir, -1, [](auto&) {});
        for (size_t r = 0; r < through.size(); ++r) {
            INFO("rank " << r);
            CHECK(again[r].at_stop == through[r].at_stop);
            CHECK(again[r].losses == std::vector<float>(through[r].losses.begin() + stop, through[r].losses.end()));
            CHECK(again[r].at_end == through[r].at_end);
        }
    }
}

/// A run that has gone on is saved and gone on from; and one goes back to the checkpoint from which it went on.
template <class Precision, class Sharding, class Data = Indexed>
void resumes_again(int64_t ranks, int64_t first, int64_t second) {
    INFO(Precision::name << ", " << Sharding::name << ", " << Data::name << ", " << ranks << " ranks");
    Folder folder;
    auto const run = stories<Precision, Sharding, Data>;
    auto const save_as = [&](char const* name) { return [dir = folder / name](auto& accelerator) { accelerator.save_state(dir); }; };
    auto const through = run(ranks, {}, first, save_as("first"));
    run(ranks, folder / "first", second, save_as("second"));
    auto const again = run(ranks, folder / "second", -1, [](auto&) {});
    std::vector<char> been(static_cast<size_t>(ranks));
    auto const back = run(ranks, folder / "first", second, [&](auto& accelerator) {
        if (!std::exchange(been[static_cast<size_t>(accelerator.process_index())], true)) accelerator.load_state(folder / "first");
    });
    for (size_t r = 0; r < through.size(); ++r) {
        INFO("rank " << r);
        auto const losses = [&](int64_t from, int64_t to) { return std::vector<float>(through[r].losses.begin() + from, through[r].losses.begin() + to); };
        CHECK(again[r].losses == losses(second, bodies));
        CHECK(again[r].at_end == through[r].at_end);
        auto twice = losses(first, second);
        for (auto const loss : losses(first, bodies)) twice.push_back(loss);
        CHECK(back[r].losses == twice);
        CHECK(back[r].at_end == through[r].at_end);
    }
}

/// One precision under one sharding: stops once inside a window (of three bodies) and once between two, over one of the kinds of loaders, in turn.
template <size_t P, size_t S>
void cells(int64_t& count) {
    using Precision = typename std::tuple_element_t<P, std::remove_const_t<decltype(policies::precisions)>>::type;
    using Sharding = typename std::tuple_element_t<S, std::remove_const_t<decltype(policies::shardings)>>::type;
    using Data = std::tuple_element_t<(P + S) % 3, std::tuple<Indexed, Streamed, Dispatched>>;
    if constexpr (acc::supported<acc::device::BasicCpu<acc::comm::Threads>, Precision, Sharding, typename Data::policy>) {
        constexpr int64_t ranks = std::same_as<Sharding, acc::sharding::None> ? 1 : 2 + (P + S) % 2;
        constexpr int64_t epoch = ranks == 1 ? 23 : ranks == 2 ? 12 : 8;
        constexpr std::array<int64_t, 5> inside{4, 5, 10, 11, 14};
        constexpr std::array<int64_t, 4> between{3, std::min<int64_t>(epoch, 18), std::min<int64_t>(epoch, 16) - 1, 6};  // mid-epoch; an epoch's end; its last batch but one
        resumes<Precision, Sharding, Data>(ranks, {inside[(P + 2 * S) % inside.size()], between[(P + S) % between.size()]});
        count += 2;
    }
}

template <size_t... I>
int64_t all_cells(std::index_sequence<I...>) {
    constexpr auto shardings = std::tuple_size_v<decltype(policies::shardings)>;
    int64_t count = 0;
    (cells<I / shardings, I % shardings>(count), ...);
    return count;
}

using namespace acc::precision;
using namespace acc::sharding;

}  // namespace

TEST_CASE("a run that goes on from a checkpoint is the run that never stopped", "[checkpoint_writer][checkpoint_reader][checkpoints][component][state_control][random_state]") {
    auto const count = all_cells(std::make_index_sequence<std::tuple_size_v<decltype(policies::precisions)> * std::tuple_size_v<decltype(policies::shardings)>>());
    WARN(count << " cells, at least half of them inside a window of " << window);
    CHECK(count >= 40);
}

TEST_CASE("a run that goes on may have gone on before, or go back", "[checkpoints][state_control]") {
    resumes_again<Fp32, Ddp<>>(2, 4, 9);
    resumes_again<Fp16<>, None, Streamed>(1, 7, 12);
    resumes_again<Bf16<>, Fsdp<>, Dispatched>(2, 3, 8);
    // Where each rank has reduced only its slice of the gradients.
    resumes<Fp32, Ddp<acc::ddp{.gather_gradients = false}>>(2, {3, 4, 5, 11});
    resumes<Fp16<>, Ddp<acc::ddp{.gather_gradients = false}>, Streamed>(3, {4, 6});
    // Where an epoch has ended, behind the loop; and where each rank reads a part of a stream.
    resumes<Fp32, Ddp<>, IndexedBetween>(2, {12});
    resumes<Fp32, Ddp<>, Parted>(2, {3, 4, 12});
    resumes<Bf16<>, Fsdp<>, Parted>(3, {7, 8});
    // From its beginning, where no optimizer has a state yet.
    resumes<Fp32, Ddp<>>(2, {0});
    resumes<Fp16<>, None, Streamed>(1, {0});
    resumes<Bf16<>, Fsdp<>, Dispatched>(2, {0});
    resumes<Fp32, Fsdp<>, Parted>(2, {0});
}

TEST_CASE("a run that goes on: what is special", "[checkpoints][state_control]") {
    resumes<Fp16<>, None>(1, {1, 3, 9});  // the scaler begins too high: the first steps are skipped
    resumes<Fp8<acc::recipe::Delayed<4>>, None>(1, {6, 7});
    resumes<Fp8<acc::recipe::LowBitOptimizer<2>>, None>(1, {6, 7});
    resumes<Bf16<acc::bf16{.parameters = at::kBFloat16}>, None>(1, {9, 10});
    resumes<Bf16<acc::bf16{.parameters = at::kBFloat16}>, Fsdp<>>(2, {4, 6});
    resumes<Fp32, None>(2, {4, 9});  // each rank for itself
    resumes<Fp16<>, None>(2, {9});   // with a scaler of its own
}
