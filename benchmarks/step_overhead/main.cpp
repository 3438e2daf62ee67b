// What the abstraction adds to a training step: the best hand-written LibTorch loop against the same loop through the library.
//   main time          minimum of 40 interleaved rounds, microseconds a step
//   main calls         ATen calls a step
//   main loop ARM N    N steps of one arm (hand or ours), to be counted by callgrind (see run.py)
#include <torch/torch.h>

#include <accelerate.hpp>
#include <chrono>
#include <cstdio>
#include <functional>
#include <string>

namespace acc = accelerate;

namespace {

constexpr int64_t in = 64, hidden = 128, out = 10, batch = 32;
constexpr double lr = 1e-3, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.01;

struct Net : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(in, hidden))}, b{register_module("b", torch::nn::Linear(hidden, out))};
    torch::Tensor forward(torch::Tensor const& x) { return b(torch::relu(a(x))); }
};

struct Batch {
    torch::Tensor x = torch::randn({batch, in}), y = torch::randint(out, {batch});
};

/// Parameters and gradients in one buffer each, one fused update, one zero_().
class Hand {
public:
    Hand() {
        torch::NoGradGuard no_grad;
        int64_t total = 0;
        for (auto& p : net_->parameters()) total += (p.numel() + 15) / 16 * 16;
        parameters_ = torch::zeros({total}), gradients_ = torch::zeros({total});
        int64_t at = 0;
        for (auto& p : net_->parameters()) {
            auto view = parameters_.narrow(0, at, p.numel()).view(p.sizes());
            view.copy_(p);
            p.set_data(view);
            p.mutable_grad() = gradients_.narrow(0, at, p.numel()).view(p.sizes());
            at += (p.numel() + 15) / 16 * 16;
        }
        p_ = {parameters_}, g_ = {gradients_}, m_ = {torch::zeros({total})}, v_ = {torch::zeros({total})}, t_ = {torch::zeros({})};
    }
    void step(Batch const& data) {
        auto const loss = torch::nn::functional::cross_entropy(net_->forward(data.x), data.y);
        loss.backward();
        torch::NoGradGuard no_grad;
        *t_[0].mutable_data_ptr<float>() += 1;
        at::_fused_adamw_(p_, g_, m_, v_, {}, t_, lr, beta1, beta2, decay, eps, false, false);
        gradients_.zero_();
    }

private:
    std::shared_ptr<Net> net_ = std::make_shared<Net>();
    torch::Tensor parameters_, gradients_;
    std::vector<torch::Tensor> p_, g_, m_, v_, t_;
};

class Ours {
    using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;
    Run accelerator_;
    decltype(std::declval<Run&>().prepare(std::declval<std::shared_ptr<Net>>(), acc::optim::AdamW{}, acc::schedule::Constant{})) prepared_ =
        accelerator_.prepare(std::make_shared<Net>(), acc::optim::AdamW{.lr = lr, .betas = {beta1, beta2}, .eps = eps, .weight_decay = decay}, acc::schedule::Constant{});

public:
    void step(Batch const& data) {
        auto& [model, optimizer, schedule] = prepared_;
        auto window = accelerator_.accumulate(model);
        auto const loss = torch::nn::functional::cross_entropy(model(data.x), data.y);
        accelerator_.backward(loss);
        optimizer.step();
        schedule.step();
        optimizer.zero_grad();
    }
};

template <class Arm>
double microseconds(Arm& arm, Batch const& data, int64_t steps) {
    auto const begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < steps; ++i) arm.step(data);
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / static_cast<double>(steps);
}

int64_t calls = 0;

template <class Arm>
int64_t aten_calls(Arm& arm, Batch const& data) {
    for (int64_t i = 0; i < 3; ++i) arm.step(data);
    auto const handle = at::addGlobalCallback(at::RecordFunctionCallback([](at::RecordFunction const&) -> std::unique_ptr<at::ObserverContext> {
                                                  ++calls;
                                                  return nullptr;
                                              }).scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION}));
    calls = 0;
    arm.step(data);
    at::removeCallback(handle);
    return calls;
}

}  // namespace

int main(int argc, char** argv) {
    at::set_num_threads(1);
    std::string const mode = argc > 1 ? argv[1] : "time";
    torch::manual_seed(1);
    Batch const data;
    if (mode == "loop") {
        auto const n = std::stoll(argv[3]);
        if (std::string(argv[2]) == "hand") {
            Hand arm;
            microseconds(arm, data, n);
        } else {
            Ours arm;
            microseconds(arm, data, n);
        }
        return 0;
    }
    Hand hand;
    Ours ours;
    if (mode == "calls") {
        auto const h = aten_calls(hand, data), o = aten_calls(ours, data);
        std::printf("{\"hand\": %ld, \"ours\": %ld}\n", h, o);
        return 0;
    }
    double best_hand = 1e30, best_ours = 1e30;
    for (int64_t round = 0; round < 40; ++round) {
        best_hand = std::min(best_hand, microseconds(hand, data, 250));
        best_ours = std::min(best_ours, microseconds(ours, data, 250));
    }
    std::printf("{\"hand\": %.3f, \"ours\": %.3f}\n", best_hand, best_ours);
}
