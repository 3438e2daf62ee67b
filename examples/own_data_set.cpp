// A data set of your own: anything with size() and a sample at i. This one makes its samples when asked, changes them at random (the
// same way whatever the number of workers and ranks), and is read by two threads while the model trains.
//   ./own_data_set        mpirun -n 2 ./own_data_set
#include <accelerate.hpp>

namespace acc = accelerate;

// [snippet dataset]
struct Swing {  // a sample is a plain struct: the batch is the same struct, each tensor with one row a sample
    torch::Tensor angle, position;
};

/// A pendulum seen through a noisy sensor.
struct Pendulum {
    int64_t count;
    double noise;

    size_t size() const { return static_cast<size_t>(count); }
    Swing at(size_t i, acc::data::Random& random) const {  // or operator[](size_t i), where nothing is random
        auto const angle = std::sin(0.37 * static_cast<double>(i));
        return {torch::tensor({angle + noise * (random.uniform() - 0.5)}, torch::kFloat), torch::tensor({std::sin(angle), std::cos(angle)}, torch::kFloat)};
    }
};
// [end]

int main() {
    return acc::run([] {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        torch::manual_seed(1);
        torch::nn::Sequential net{torch::nn::Linear(1, 32), torch::nn::Tanh(), torch::nn::Linear(32, 2)};  // braces: between parentheses g++ draws the last layer's weights first
        auto [model, optimizer, train, held_out] = accelerator.prepare(
            net, acc::optim::AdamW{.lr = 1e-2}, acc::data::Loader{Pendulum{2000, 0.05}, {.batch_size = 50, .shuffle = true, .seed = 7, .num_workers = 2}},
            acc::data::Loader{Pendulum{333, 0}, {.batch_size = 50, .even_batches = acc::data::Mask}});

        while (train.epoch() < 5) {
            for (auto& batch : train) {
                auto window = accelerator.accumulate(model);
                accelerator.backward(torch::mse_loss(model(batch.angle), batch.position));
                optimizer.step();
                optimizer.zero_grad();
            }
            torch::NoGradGuard no_grad;
            acc::metrics::Mean error;
            for (auto& batch : held_out)  // 333 samples do not fill batches of 50: the mask says which are real
                error.update((model(batch.angle) - batch.position).square().sum(1), held_out.mask());
            accelerator.print("epoch", train.epoch(), "held-out error", error.compute(accelerator.comm()), "waited for data", train.statistics().waiting_s, "s");
        }
    });
}
