// What happens between backward and the next forward: unscaling, clipping, AdamW, clearing.
//   main PARAMETERS THREADS fp32|fp16 ROUNDS     a JSON line for each arm: nanoseconds a parameter, (whole step) - (backward alone)
// fp16 stands for its gradient scaler: the arithmetic of this model is the same in both.
#include <torch/torch.h>

#include "../median.hpp"

#include <accelerate.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>

namespace acc = accelerate;

namespace {

constexpr int64_t tensors = 100;
constexpr double lr = 1e-3, max_norm = 1;

/// The loss is the product of parameters and given numbers, which are its gradient.
struct Net : torch::nn::Module {
    explicit Net(int64_t numel) {
        for (int64_t i = 0; i < tensors; ++i) register_parameter("p" + std::to_string(i), torch::randn({numel / tensors}));
        for (int64_t i = 0; i < tensors; ++i) slopes.push_back(torch::randn({numel / tensors}));
    }
    torch::Tensor forward() {
        auto loss = torch::zeros({});
        auto const all = parameters();
        for (size_t i = 0; i < all.size(); ++i) loss = loss + (all[i] * slopes[i]).sum();
        return loss;
    }
    double norm() const {
        double sum = 0;
        for (auto const& s : slopes) sum += s.to(at::kDouble).square().sum().item<double>();
        return std::sqrt(sum);
    }
    std::vector<torch::Tensor> slopes;
};

double seconds_of(auto&& body) {
    auto const begin = std::chrono::steady_clock::now();
    body();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

template <class Precision>
class Ours {
    using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Precision, acc::sharding::None, acc::loader::Stateful<>>;
    std::shared_ptr<Net> net_;
    Run accelerator_{{.grad_scaler = {.init_scale = 1024}}};
    decltype(std::declval<Run&>().prepare(std::declval<std::shared_ptr<Net>>(), acc::optim::AdamW{})) prepared_;

public:
    explicit Ours(std::shared_ptr<Net> net) : net_(net), prepared_(accelerator_.prepare(net, acc::optim::AdamW{.lr = lr})) {}
    static constexpr char const* name = "ours";
    double norm = 0;

    double backward() {
        auto& [model, optimizer] = prepared_;
        auto const loss = model();
        auto const time = seconds_of([&] { accelerator_.backward(loss); });
        optimizer.zero_grad();
        return time;
    }
    double step() {
        auto& prepared = prepared_;
        auto const loss = std::get<0>(prepared)();
        torch::Tensor before;
        auto const time = seconds_of([&] {
            auto& [model, optimizer] = prepared;
            accelerator_.backward(loss);
            before = accelerator_.clip_grad_norm(model, max_norm);
            optimizer.step();
            optimizer.zero_grad();
        });
        norm = before.template item<double>();
        return time;
    }
};

class Torch {
    std::shared_ptr<Net> net_;
    torch::optim::AdamW optimizer_;
    bool scaled_;

public:
    Torch(std::shared_ptr<Net> net, bool scaled) : net_(net), optimizer_(net->parameters(), torch::optim::AdamWOptions(lr)), scaled_(scaled) {}
    static constexpr char const* name = "torch::optim";

    double backward() {
        auto const loss = scaled_ ? net_->forward() * 1024 : net_->forward();
        auto const time = seconds_of([&] { loss.backward(); });
        optimizer_.zero_grad();
        return time;
    }
    double step() {
        auto const loss = scaled_ ? net_->forward() * 1024 : net_->forward();
        return seconds_of([&] {
            loss.backward();
            if (scaled_) {
                auto found = torch::zeros({1}), inverse = torch::full({1}, 1.0 / 1024);
                std::vector<torch::Tensor> gradients;
                for (auto const& p : net_->parameters()) gradients.push_back(p.grad());
                at::_amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse);
            }
            torch::nn::utils::clip_grad_norm_(net_->parameters(), max_norm);
            optimizer_.step();
            optimizer_.zero_grad();
        });
    }
};

[[gnu::target("avx2,fma")]] void stream(float* p, float* g, float* m, float* v, int64_t n) {
    auto const half = _mm256_set1_ps(0.5f);
    for (int64_t i = 0; i + 8 <= n; i += 8) {
        auto const gradient = _mm256_loadu_ps(g + i);
        _mm256_storeu_ps(p + i, _mm256_fmadd_ps(half, gradient, _mm256_loadu_ps(p + i)));
        _mm256_storeu_ps(m + i, _mm256_fmadd_ps(half, gradient, _mm256_loadu_ps(m + i)));
        _mm256_storeu_ps(v + i, _mm256_fmadd_ps(half, gradient, _mm256_loadu_ps(v + i)));
        _mm256_storeu_ps(g + i, _mm256_setzero_ps());
    }
}

/// The limit: a plain loop that reads and writes what an update and a clearing must.
class Stream {
    std::vector<torch::Tensor> arrays_;

public:
    explicit Stream(int64_t numel) {
        for (int i = 0; i < 4; ++i) arrays_.push_back(torch::zeros({numel}));
    }
    static constexpr char const* name = "stream";
    double backward() { return 0; }
    double step() {
        std::array<float*, 4> a{};
        for (size_t i = 0; i < 4; ++i) a[i] = arrays_[i].mutable_data_ptr<float>();
        return seconds_of([&] {
            at::parallel_for(0, arrays_[0].numel(), 1 << 15, [&](int64_t b, int64_t e) { stream(a[0] + b, a[1] + b, a[2] + b, a[3] + b, e - b); });
        });
    }
};

template <class Arm>
double phase(Arm& arm) {
    auto const alone = arm.backward();
    return arm.step() - alone;
}

template <class Precision>
void measure(int64_t numel, int64_t rounds, bool scaled) {
    auto const mine = std::make_shared<Net>(numel);
    Ours<Precision> ours(mine);
    Torch torch(std::make_shared<Net>(numel), scaled);
    Stream limit(numel);
    std::vector<double> times[3];
    for (int64_t round = -2; round < rounds; ++round) {
        double const now[] = {phase(ours), phase(torch), phase(limit)};
        for (size_t i = 0; i < 3 && round >= 0; ++i) times[i].push_back(now[i] * 1e9 / static_cast<double>(numel));
    }
    std::printf("{\"arm\": \"%s\", \"ns\": %.4f, \"norm_error\": %.3g}\n", ours.name, median(times[0]), std::abs(ours.norm / mine->norm() - 1));
    std::printf("{\"arm\": \"%s\", \"ns\": %.4f}\n{\"arm\": \"%s\", \"ns\": %.4f}\n", torch.name, median(times[1]), limit.name, median(times[2]));
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 5) {
        std::fprintf(stderr, "usage: %s PARAMETERS THREADS fp32|fp16 ROUNDS\n", argv[0]);
        return 64;
    }
    auto const numel = std::stoll(argv[1]), rounds = std::stoll(argv[4]);
    at::set_num_threads(std::stoi(argv[2]));
    torch::manual_seed(1);
    if (std::string(argv[3]) == "fp16") measure<acc::precision::Fp16<>>(numel, rounds, true);
    else measure<acc::precision::Fp32>(numel, rounds, false);
}
