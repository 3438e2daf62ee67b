// One data-parallel training step, several arms interleaved in one run (under mpirun -n 2 or 4): processes that do not talk, Ddp,
// Ddp without the gather pass, Ddp with overlap forced on. A step ends when all ranks have done it.
//   main WIDTH ROUNDS     an MLP of five square layers; prints median and minimum of each arm, in ms, as JSON on rank 0
//   main WIDTH timeline   prints when each bucket of one step was ready, began and ended, with overlap forced on
#include <torch/torch.h>

#include <accelerate.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace acc = accelerate;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int64_t layers = 5, batch = 16;

struct Mlp : torch::nn::Module {
    explicit Mlp(int64_t d) {
        for (int64_t i = 0; i < layers; ++i) net->push_back(torch::nn::Linear(torch::nn::LinearOptions(d, d).bias(false)));
        register_module("net", net);
    }
    torch::Tensor forward(torch::Tensor x) {
        for (auto& layer : *net) x = torch::relu(layer->as<torch::nn::LinearImpl>()->forward(x));
        return x;
    }
    torch::nn::ModuleList net;
};

template <class Sharding>
class Arm {
    using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, Sharding, acc::loader::Stateful<>>;

public:
    explicit Arm(int64_t width) : prepared_(accelerator_.prepare(std::make_shared<Mlp>(width), acc::optim::AdamW{.lr = 1e-4})), width_(width) {}

    double step() {
        auto& [model, optimizer] = prepared_;
        accelerator_.wait_for_everyone();
        auto const begin = Clock::now();
        auto window = accelerator_.accumulate(model);
        auto const loss = torch::mse_loss(model(x_), y_);
        before_backward_ = Clock::now();
        accelerator_.backward(loss);
        after_backward_ = Clock::now();
        optimizer.step();
        optimizer.zero_grad();
        accelerator_.wait_for_everyone();  // ranks that share a core do not begin together
        return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
    }
    auto& model() { return std::get<0>(prepared_); }
    double backward_ms() const { return std::chrono::duration<double, std::milli>(after_backward_ - before_backward_).count(); }

private:
    Run accelerator_;
    decltype(std::declval<Run&>().prepare(std::declval<std::shared_ptr<Mlp>>(), acc::optim::AdamW{})) prepared_;
    int64_t width_;
    torch::Tensor x_ = torch::randn({batch, width_}), y_ = torch::randn({batch, width_});
    Clock::time_point before_backward_, after_backward_;
};

using Silent = acc::sharding::None;
using Gathered = acc::sharding::Ddp<>;
using Sliced = acc::sharding::Ddp<acc::ddp{.gather_gradients = false}>;
using Overlapped = acc::sharding::Ddp<acc::ddp{.overlap = acc::Overlap::On}>;

struct Sample {
    char const* name;
    std::vector<double> ms;
};

void measure(int64_t width, int64_t rounds) {
    Arm<Silent> silent(width);
    Arm<Gathered> gathered(width);
    Arm<Sliced> sliced(width);
    Arm<Overlapped> overlapped(width);
    std::vector<Sample> samples{{"silent", {}}, {"ddp", {}}, {"sliced", {}}, {"overlapped", {}}};
    for (int64_t round = -2; round < rounds; ++round) {
        double const ms[] = {silent.step(), gathered.step(), sliced.step(), overlapped.step()};
        if (round >= 0)
            for (size_t i = 0; i < samples.size(); ++i) samples[i].ms.push_back(ms[i]);
    }
    auto const world = acc::device::Cpu::communicator::world();
    std::string line = acc::concat("{\"parameters\": ", layers * width * width);
    for (auto& s : samples) {
        auto t = torch::tensor(s.ms, torch::kDouble);
        world.all_reduce(t, acc::comm::Reduction::Max);
        line += acc::concat(", \"", s.name, "\": [", t.median().item<double>(), ", ", t.min().item<double>(), "]");
    }
    if (world.rank() == 0) std::printf("%s}\n", line.c_str());
}

void timeline(int64_t width) {
    Arm<Overlapped> arm(width);
    for (int i = 0; i < 4; ++i) arm.step();
    auto world = acc::device::Cpu::communicator::world();
    if (world.rank() != 0) return;
    auto const backward = arm.backward_ms();
    std::printf("backward %.1f ms\n  bucket      MB   ready   begin     end (ms)\n", backward);
    auto const& buckets = arm.model().state().timeline();
    for (size_t b = 0; b < buckets.size(); ++b) {
        auto const& t = buckets[b];
        std::printf("  %6zu  %6.2f  %6.1f  %6.1f  %6.1f  |", b, static_cast<double>(t.bytes) / 1e6, t.ready * 1e3, t.begin * 1e3, t.end * 1e3);
        for (int column = 0; column < 60; ++column) {
            auto const at = backward * column / 60e3;
            std::putchar(at < t.ready ? ' ' : at < t.begin ? '.' : at < t.end ? '#' : ' ');
        }
        std::printf("|\n");
    }
    std::printf("first reduction begins after %.0f %% of backward\n", 1e5 * buckets.front().begin / backward);
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        at::set_num_threads(1);
        auto const width = argc > 1 ? std::stoll(argv[1]) : 2280;
        if (argc > 2 && std::string(argv[2]) == "timeline") timeline(width);
        else measure(width, argc > 2 ? std::stoll(argv[2]) : 15);
    });
}
