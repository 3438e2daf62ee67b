// One run of the golden model, as its only argument (JSON) asks: started by tests/golden_python.py, which runs Python Accelerate
// on the same case and compares. Prints the losses of every rank and the gradient norms as JSON, on rank 0.
#include "support/golden_gpt.hpp"

#include <accelerate.hpp>
#include <cstdio>

namespace acc = accelerate;

namespace {

template <class Precision, class Sharding>
void run(nlohmann::json const& c) {
    using Run = acc::Accelerator<acc::device::Cpu, Precision, Sharding, acc::loader::Stateful<>>;
    Run accelerator({.gradient_accumulation_steps = c.at("accumulation")});
    golden::Tokens const tokens(c.at("samples").get<int64_t>());
    auto [model, optimizer, loader, schedule] = accelerator.prepare(
        golden::Gpt(),
        acc::optim::AdamW{.lr = 1e-3, .betas = {0.9, 0.95}, .weight_decay = 0.1, .operations = c.at("bits").get<bool>() ? acc::Operations::Torch : acc::Operations::Fused},
        acc::data::Loader{tokens, {.batch_size = c.at("batch"), .drop_last = c.at("drop_last"), .even_batches = c.at("even"), .split_batches = c.at("split")}},
        acc::schedule::Cosine{.warmup = acc::OptimizerSteps{c.at("warmup")}, .total = acc::OptimizerSteps{c.at("total")}});
    std::vector<double> losses, norms, rates;
    while (loader.epoch() < c.at("epochs").get<int64_t>())
        for (auto& batch : loader) {
            auto window = accelerator.accumulate(model);
            auto const loss = golden::loss(model(batch.x), batch.y);
            accelerator.backward(loss);
            auto const norm = accelerator.clip_grad_norm(model, 1.0);
            rates.push_back(optimizer.lr());
            optimizer.step();
            schedule.step();
            optimizer.zero_grad();
            losses.push_back(loss.template item<double>());
            if (accelerator.sync_gradients()) norms.push_back(norm.template item<double>());
        }
    auto const all = accelerator.comm().all_gather_bytes(nlohmann::json(losses).dump());
    nlohmann::json out{{"norms", norms}, {"lr", rates}, {"losses", nlohmann::json::array()}};
    for (auto const& text : all) out["losses"].push_back(nlohmann::json::parse(text));
    if (accelerator.is_main_process()) std::printf("%s\n", out.dump().c_str());
}

}  // namespace

int main(int, char** argv) {
    return acc::run([&] {
        auto const c = nlohmann::json::parse(argv[1]);
        if (c.at("bf16").get<bool>()) run<acc::precision::Bf16<>, acc::sharding::Ddp<>>(c);
        else if (c.at("ranks").get<int64_t>() > 1) run<acc::precision::Fp32, acc::sharding::Ddp<>>(c);
        else run<acc::precision::Fp32, acc::sharding::None>(c);
    });
}
