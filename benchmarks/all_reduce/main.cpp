// All-reduce of fp32 at 2 ranks with one thread each (under mpirun -n 2), every way interleaved in one run: ours on a buffer with
// the gather pass and without, ours on an ordinary tensor, MPI_Allreduce in place, and the floor of shared memory (floor.hpp).
//   main ROUNDS LARGEST [SMALLEST]   a line of JSON for each payload up to LARGEST bytes, on rank 0: by arm, median and minimum in us
#include <torch/torch.h>

#include <accelerate.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "floor.hpp"

namespace acc = accelerate;

namespace {

constexpr int64_t payloads[] = {1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 25 << 20, 100 << 20, 256 << 20};

struct Arm {
    std::string name;
    std::function<void()> once;
    std::vector<double> us{};
};

/// Times arms in turn. A sample is the mean of so many calls that it lasts about 500 us, the slower rank's; ranks begin it together.
void measure(std::vector<Arm>& arms, int64_t rounds, int64_t calls, std::function<void()> const& begin) {
    using Clock = std::chrono::steady_clock;
    for (int64_t round = -1; round < rounds; ++round)
        for (auto& arm : arms) {
            for (int64_t i = 0; i < 1 + calls / 4; ++i) arm.once();
            begin();
            auto const start = Clock::now();
            for (int64_t i = 0; i < calls; ++i) arm.once();
            auto const us = std::chrono::duration<double, std::micro>(Clock::now() - start).count() / static_cast<double>(calls);
            if (round >= 0) arm.us.push_back(us);
        }
    for (auto& arm : arms) MPI_Allreduce(MPI_IN_PLACE, arm.us.data(), static_cast<int>(rounds), MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
}

void print(std::string const& head, std::vector<Arm>& arms, bool here) {
    auto line = "{" + head;
    for (auto& arm : arms) {
        std::sort(arm.us.begin(), arm.us.end());
        line += acc::concat(", \"", arm.name, "\": [", arm.us[arm.us.size() / 2], ", ", arm.us.front(), "]");
    }
    if (here) std::printf("%s}\n", line.c_str()), std::fflush(stdout);
}

void expect_mean(at::Tensor const& t, char const* name) { acc::check(t.eq(1.5).all().item<bool>(), acc::code::internal, name, ": wrong result"); }

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        using acc::comm::Reduction;
        at::set_num_threads(1);
        auto const rounds = argc > 1 ? std::stoll(argv[1]) : 40, largest = argc > 2 ? std::stoll(argv[2]) : payloads[9], smallest = argc > 3 ? std::stoll(argv[3]) : 0;
        auto const world = acc::device::Cpu::communicator::world();
        acc::check(world.size() == 2, acc::code::config, "this benchmark wants 2 ranks, there are ", world.size());
        auto const me = static_cast<double>(world.rank());
        Floor floor(largest);
        auto const begin = [&] { floor.arrive(); };

        auto one = torch::zeros({1});
        std::vector<Arm> meetings{{"barrier", [&] { world.barrier(); }}, {"4 bytes", [&] { world.all_reduce(one, Reduction::Mean); }}, {"arrival", [&] { floor.arrive(); }}};
        measure(meetings, rounds, 300, begin);
        print("\"bytes\": 0", meetings, me == 0);

        for (auto const bytes : payloads) {
            if (bytes > largest || bytes < smallest) continue;
            auto const n = bytes / 4;
            auto const memory = world.allocate(n, at::kFloat);
            auto const& buffer = memory.tensor();
            auto tensor = torch::empty({n});
            auto fixed = at::from_blob(floor.data(), {n});

            std::vector<Arm> arms{
                {"ours", [&] { world.all_reduce(memory, 0, n, Reduction::Mean, true); }},
                {"ours sliced", [&] { world.all_reduce(memory, 0, n, Reduction::Mean, false), world.release(memory); }},
                {"ours tensor", [&] { world.all_reduce(tensor, Reduction::Mean); }},
                {"MPI", [&] { MPI_Allreduce(MPI_IN_PLACE, tensor.data_ptr(), static_cast<int>(n), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD); }},
                {"floor halves", [&] { floor.halves(n); }},
                {"floor halves streamed", [&] { floor.halves_streamed(n); }},
                {"floor sliced", [&] { floor.sliced(n); }},
                {"floor sliced streamed", [&] { floor.sliced_streamed(n); }},
            };
            if (bytes <= Floor::most_staged) {
                arms.push_back({"floor copies", [&] { floor.copies(n); }});
                arms.push_back({"floor copies streamed", [&] { floor.copies_streamed(n); }});
            }
            // Ones and twos, so that the mean is 1.5; zeros where MPI adds, so that it stays finite.
            for (auto& arm : arms) {
                if (arm.name == "MPI") continue;
                for (auto const& t : {buffer, tensor, fixed}) t.fill_(1 + me);
                arm.once();
                if (arm.name == "ours tensor") expect_mean(tensor, "ours tensor");
                else if (arm.name == "ours") expect_mean(buffer, "ours");
                else if (arm.name == "ours sliced") {
                    auto const [lo, hi] = memory.slice(0, n, world.rank(), 2);
                    expect_mean(memory.reduced(world.rank()).slice(0, lo, hi), "ours sliced");
                } else if (arm.name.find("sliced") == std::string::npos) expect_mean(fixed, arm.name.c_str());
            }
            tensor.zero_();
            auto const calls = std::max<int64_t>(1, static_cast<int64_t>(500 / (static_cast<double>(bytes) / 5e3 + 1)));
            measure(arms, bytes > (4 << 20) ? std::max<int64_t>(5, rounds / 2) : rounds, calls, begin);
            print(acc::concat("\"bytes\": ", bytes), arms, me == 0);
        }
    });
}
