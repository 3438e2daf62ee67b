// A consumer's program: the whole library through its umbrella, and the libraries that the target must have brought along.
#include <xxhash.h>

#include <accelerate.hpp>
#include <nlohmann/json.hpp>

namespace acc = accelerate;

int main() {
    return acc::run([] {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(2, 1), acc::optim::AdamW{.lr = 0.1});
        auto const x = torch::ones({4, 2});
        auto const before = model(x).sum().item<double>();
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(x).mean());
        optimizer.step();
        acc::check(model(x).sum().item<double>() < before, acc::code::internal, "it did not learn");
        acc::check(XXH3_64bits("a", 1) != 0 && nlohmann::json::array().empty(), acc::code::internal, "a library is missing");
    });
}
