// An order of your own: a curriculum. Early epochs see the easy samples first, later ones are shuffled more and more. An order is a
// function of (epoch, number of samples) alone, so that every rank and every restart sees the same.
//   ./own_order        mpirun -n 2 ./own_order
#include <accelerate.hpp>

namespace acc = accelerate;

struct Curriculum {
    std::vector<double> difficulty;  ///< of every sample
    int64_t seed = 0;                ///< saved and restored with the loader, as any member of this name is

    std::vector<int64_t> epoch(int64_t e, int64_t n) const {
        std::vector<std::pair<double, int64_t>> ranked;
        for (int64_t i = 0; i < n; ++i) {
            acc::data::Random random(seed, e, i);
            ranked.emplace_back(difficulty[static_cast<size_t>(i)] + static_cast<double>(e) * random.uniform(), i);
        }
        std::sort(ranked.begin(), ranked.end());
        std::vector<int64_t> order;
        for (auto const& [key, index] : ranked) order.push_back(index);
        return order;
    }
};

int main() {
    return acc::run([] {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        auto const x = torch::linspace(-3, 3, 600).unsqueeze(1), y = torch::sin(x * x);
        std::vector<double> difficulty;
        for (int64_t i = 0; i < x.size(0); ++i) difficulty.push_back(std::abs(x[i].item<double>()) / 3);  // it swings faster further out

        torch::manual_seed(1);
        torch::nn::Sequential net{torch::nn::Linear(1, 64), torch::nn::Tanh(), torch::nn::Linear(64, 1)};
        auto [model, optimizer, train] = accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-2}, acc::data::Loader{acc::data::Tensors{x, y}, {.batch_size = 20}, Curriculum{difficulty, 3}});
        while (train.epoch() < 20) {
            auto const epoch = train.epoch();
            double first = -1;
            torch::Tensor loss;
            for (auto& [input, target] : train) {
                if (first < 0) first = accelerator.reduce(input.abs().mean(), "mean").item<double>();
                auto window = accelerator.accumulate(model);
                loss = torch::mse_loss(model(input), target);
                accelerator.backward(loss);
                optimizer.step();
                optimizer.zero_grad();
            }
            loss = accelerator.reduce(loss.detach(), "mean");
            if (epoch % 5 == 0) accelerator.print("epoch", epoch, "begins at |x| =", first, "ends with loss", loss.item<double>());
        }
    });
}
