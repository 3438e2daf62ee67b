// What a checkpoint costs: how long training stands still, how long until it is durable, how much slower steps are meanwhile, how long loading takes.
//   main save FOLDER LAYERS WIDTH ROUNDS      JSON lines, the best of the rounds: stall of synchronous and asynchronous saves, and limits
//   main load FOLDER LAYERS WIDTH ROUNDS      of the checkpoint that `save` leaves: warm and cold, until every byte was read
// The state is a stack of linear layers with AdamW: 12 bytes a parameter.
#include <torch/torch.h>

#include "../median.hpp"

#include <accelerate.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <string>
#include <unistd.h>

namespace acc = accelerate;
namespace fs = std::filesystem;

namespace {

using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;

double seconds_of(auto&& body) {
    auto const begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Bytes of memory: the most that were in use so far ("VmHWM:"), or are now ("VmRSS:").
double memory(std::string const& key) {
    std::ifstream in("/proc/self/status");
    for (std::string word; in >> word;)
        if (double kb = 0; word == key && in >> kb) return kb * 1024;
    return 0;
}

void say(char const* what, double value) { std::printf("{\"arm\": \"ours\", \"what\": \"%s\", \"value\": %.9g}\n", what, value); }

struct Trained {
    Trained(int64_t layers, int64_t width) : input(torch::randn({4, width})) {
        torch::nn::Sequential net;
        for (int64_t i = 0; i < layers; ++i) net->push_back(torch::nn::Linear(torch::nn::LinearOptions(width, width).bias(false)));
        prepared.emplace(accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-5}));
    }
    double step() {
        return seconds_of([&] {
            auto& [model, optimizer] = *prepared;
            accelerator.backward(model(input).square().mean());
            optimizer.step();
            optimizer.zero_grad();
        });
    }
    Run accelerator;
    torch::Tensor input;
    std::optional<decltype(accelerator.prepare(torch::nn::Sequential(), acc::optim::AdamW{}))> prepared;
};

/// What the disk can do: a file of that size reserved, written and made durable.
void write_plainly(fs::path const& path, void const* data, int64_t bytes) {
    auto const fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (::fallocate(fd, 0, 0, bytes) != 0) std::fprintf(stderr, "space is not reserved\n");
    for (int64_t at = 0; at < bytes;) {
        auto const n = ::write(fd, static_cast<char const*>(data) + at, static_cast<size_t>(std::min<int64_t>(bytes - at, int64_t{16} << 20)));
        acc::check(n > 0, acc::code::io, "the plain write failed");
        at += n;
    }
    ::fsync(fd);
    ::close(fd);
}

void save(fs::path const& folder, int64_t layers, int64_t width, int64_t rounds) {
    Trained run(layers, width);
    for (int i = 0; i < 3; ++i) run.step();
    auto const bytes = 12 * layers * width * width;
    double const before = memory("VmRSS:");
    std::vector<double> ordinary, stall, asynchronous, durable, durable_asynchronous, slower, copy, disk;
    auto const source = torch::ones({bytes}, torch::kByte), target = torch::ones({bytes}, torch::kByte);
    double const limits = memory("VmRSS:") - before;  // what measuring the limits takes
    for (int64_t round = 0; round <= rounds; ++round) {
        bool const warm = round > 0;  // the first round makes the copy's memory
        auto const note = [&](std::vector<double>& list, double value) {
            if (warm) list.push_back(value);
        };
        std::vector<double> before_saving;
        for (int i = 0; i < 5; ++i) before_saving.push_back(run.step());
        note(ordinary, *std::min_element(before_saving.begin(), before_saving.end()));
        auto const usual = median(before_saving);
        std::array<std::function<void()>, 3> const writers{
            [&] {
                fs::remove_all(folder / "sync");
                auto const call = seconds_of([&] { run.accelerator.save_state(folder / "sync"); });
                note(durable, call);
                note(stall, call + run.step());
            },
            [&] {
                fs::remove_all(folder / "async");
                auto const begin = std::chrono::steady_clock::now();
                auto const since = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
                auto const copying = seconds_of([&] { run.accelerator.save_state(folder / "async", {.asynchronous = true}); });
                note(asynchronous, copying + run.step());
                std::vector<double> meanwhile;
                while (!fs::exists(folder / "async")) meanwhile.push_back(run.step());
                note(durable_asynchronous, since());
                run.accelerator.wait_for_checkpoint();
                if (!meanwhile.empty()) meanwhile.pop_back();  // the last began beside the writer and may have ended alone
                if (meanwhile.empty()) return;
                note(slower, median(meanwhile) / usual);
            },
            [&] {
                fs::remove(folder / "plain");
                note(disk, seconds_of([&] { write_plainly(folder / "plain", source.const_data_ptr(), bytes); }));
                fs::remove(folder / "plain");
            }};
        // Disks that are shared let some bytes through fast and then hold back: each writer comes first in its turn.
        for (size_t i = 0; i < writers.size(); ++i) writers[(i + static_cast<size_t>(round)) % writers.size()]();
        note(copy, seconds_of([&] { std::memcpy(target.mutable_data_ptr(), source.const_data_ptr(), static_cast<size_t>(bytes)); }));
    }
    auto const best = [](std::vector<double> const& list) { return list.empty() ? 0 : *std::min_element(list.begin(), list.end()); };
    say("bytes", static_cast<double>(bytes));
    say("step", best(ordinary));
    say("memcpy", best(copy));
    say("disk", best(disk));
    say("stall", best(stall) - best(ordinary));
    say("durable", best(durable));
    say("stall, asynchronous", best(asynchronous) - best(ordinary));
    say("durable, asynchronous", best(durable_asynchronous));
    say("slower while writing", best(slower));
    say("memory above the state", memory("VmHWM:") - before - limits);
    fs::remove_all(folder / "async");
}

void load(fs::path const& folder, int64_t layers, int64_t width, int64_t rounds) {
    Trained run(layers, width);
    run.step();
    double warm = 1e9, cold = 1e9, unverified = 1e9;
    for (int64_t round = 0; round < rounds; ++round) {
        warm = std::min(warm, seconds_of([&] { run.accelerator.load_state(folder / "sync"); }));
        unverified = std::min(unverified, seconds_of([&] { run.accelerator.load_state(folder / "sync", {.verify = false}); }));
        for (auto const& entry : fs::directory_iterator(folder / "sync")) {
            auto const fd = ::open(entry.path().c_str(), O_RDONLY);
            ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            ::close(fd);
        }
        cold = std::min(cold, seconds_of([&] { run.accelerator.load_state(folder / "sync"); }));
    }
    say("load, warm", warm);
    say("load, warm, not verified", unverified);
    say("load, cold", cold);
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 6, acc::code::config, "main save|load FOLDER LAYERS WIDTH ROUNDS");
        fs::create_directories(argv[2]);
        (argv[1] == std::string("save") ? save : load)(argv[2], std::stoll(argv[3]), std::stoll(argv[4]), std::stoll(argv[5]));
    });
}
