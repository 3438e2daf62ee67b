// The golden GPT (tests/data/golden/README.md, 110k parameters) under one precision policy or fp8 recipe.
//   main NAME [STEPS]     trains (400) and prints a JSON line: loss, time, bytes, what fp8 saturated and lost
//   main --list           the names
#include "../median.hpp"
#include "support/golden_gpt.hpp"

#include <accelerate.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>

namespace acc = accelerate;
namespace precision = acc::precision;
namespace recipe = acc::recipe;

namespace {

template <class S = acc::Plain>
using Gpt = golden::BasicGpt<acc::Linear<S>>;

template <class Precision>
nlohmann::json run_with(int64_t steps, acc::optimizer_storage const& storage) {
    using clock = std::chrono::steady_clock;
    using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Precision, acc::sharding::None, acc::loader::Stateful<>>;
    Run accelerator;
    auto net = accelerator.template make<Gpt>();
    net->load_init();
    int64_t const batch = 8, samples = 1600;
    auto [model, optimizer, loader, schedule] = accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-3, .betas = {0.9, 0.95}, .weight_decay = 0.1, .storage = storage}, acc::data::Loader{golden::Tokens(samples), {.batch_size = batch}},
                                                                    acc::schedule::Cosine{.warmup = acc::OptimizerSteps{steps / 8}, .total = acc::OptimizerSteps{steps}});
    std::vector<double> losses, seconds;
    while (static_cast<int64_t>(losses.size()) < steps)
        for (auto& sample : loader) {
            auto const begin = clock::now();
            auto window = accelerator.accumulate(model);
            auto const loss = golden::loss(model(sample.x).to(at::kFloat), sample.y);
            accelerator.backward(loss);
            accelerator.clip_grad_norm(model, 1.0);
            optimizer.step();
            schedule.step();
            optimizer.zero_grad();
            seconds.push_back(std::chrono::duration<double>(clock::now() - begin).count());
            losses.push_back(loss.template item<double>());
            if (static_cast<int64_t>(losses.size()) == steps) break;
        }
    int64_t parameters = 0, bytes = 0;
    for (auto const& p : model->parameters()) parameters += p.numel(), bytes += 2 * p.numel() * p.element_size();  // and its gradient
    bytes += optimizer.state_bytes();
    precision::Fp8Counts total;
    for (auto const& row : precision::fp8_report(*model))
        for (auto const& counts : {row.activation, row.weight, row.gradient}) total.numbers += counts.numbers, total.saturated += counts.saturated, total.underflowed += counts.underflowed;
    return {{"losses", losses}, {"ns_per_step", 1e9 * median(seconds)}, {"parameters", parameters}, {"bytes_per_parameter", static_cast<double>(bytes) / static_cast<double>(parameters)},
            {"numbers", total.numbers}, {"saturated", total.saturated}, {"underflowed", total.underflowed}, {"fp8_share", precision::fp8_share(precision::choose_fp8_layers(*model, {}))}};
}

template <class Precision>
nlohmann::json run(int64_t steps) {
    return run_with<Precision>(steps, {});
}
template <class Precision>
nlohmann::json run_by_chance(int64_t steps) {
    return run_with<Precision>(steps, {.stochastic_rounding = true});
}

constexpr acc::fp8 counted{.gemm = acc::Gemm::Widened, .counters = true};

std::map<std::string, std::function<nlohmann::json(int64_t)>> const policies{
    {"Fp32", run<precision::Fp32>},
    {"Tf32", run<precision::Tf32>},
    {"Bf16, native", run<precision::Bf16<acc::bf16{.gemm = acc::Gemm::Native}>>},
    {"Bf16, widened", run<precision::Bf16<acc::bf16{.gemm = acc::Gemm::Widened}>>},
    {"Bf16, pure, masters", run<precision::Bf16<acc::bf16{.gemm = acc::Gemm::Widened, .parameters = at::kBFloat16}>>},
    {"Bf16, pure, stochastic", run_by_chance<precision::Bf16<acc::bf16{.gemm = acc::Gemm::Widened, .parameters = at::kBFloat16, .master = at::kBFloat16}>>},
    {"Fp16, widened", run<precision::Fp16<acc::fp16{.gemm = acc::Gemm::Widened}>>},
    {"Fp8 Tensorwise", run<precision::Fp8<recipe::Tensorwise, counted>>},
    {"Fp8 Rowwise", run<precision::Fp8<recipe::Rowwise, counted>>},
    {"Fp8 Blockwise", run<precision::Fp8<recipe::Blockwise, counted>>},
    {"Fp8 LowBitOptimizer<3>", run<precision::Fp8<recipe::LowBitOptimizer<3>, counted>>},
    {"Fp8 Delayed<16>", run<precision::Fp8<recipe::Delayed<16, acc::delayed{.amax_compute_algo = acc::AmaxCompute::Max}>, counted>>},
};

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        if (argc > 1 && std::strcmp(argv[1], "--list") == 0) {
            for (auto const& [name, f] : policies) std::printf("%s\n", name.c_str());
            return;
        }
        acc::check(argc > 1 && policies.contains(argv[1]), acc::code::config, "usage: recipes NAME [STEPS], NAME as in recipes --list");
        auto const steps = argc > 2 ? std::atoll(argv[2]) : 400;
        acc::check(steps >= 8, acc::code::config, "recipes: STEPS is at least 8");
        std::printf("%s\n", policies.at(argv[1])(steps).dump().c_str());
    });
}
