// Two models that train against each other: a generator learns to draw numbers as the data are drawn, a discriminator to tell the two apart.
// A backward is of the models that its loss reaches: the discriminator's stops at `made.detach()`, the generator's goes through both.
//   ./adversarial        mpirun -n 2 ./adversarial
#include <accelerate.hpp>

namespace acc = accelerate;

torch::Tensor loss(torch::Tensor const& judged, double truth) { return torch::binary_cross_entropy_with_logits(judged, torch::full_like(judged, truth)); }

int main() {
    return acc::run([] {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        torch::manual_seed(1);
        auto const numbers = torch::randn({4096, 1}) * 0.5 + 3;
        torch::nn::Sequential maker{torch::nn::Linear(4, 32), torch::nn::ReLU(), torch::nn::Linear(32, 1)};
        torch::nn::Sequential judge{torch::nn::Linear(1, 32), torch::nn::LeakyReLU(torch::nn::LeakyReLUOptions().negative_slope(0.2)), torch::nn::Linear(32, 1)};
        auto [generator, discriminator, of_generator, of_discriminator, train] = accelerator.prepare(
            maker, judge, acc::optim::Adam{.lr = 2e-3, .betas = {0.5, 0.99}}, acc::optim::Adam{.lr = 2e-3, .betas = {0.5, 0.99}},
            acc::data::Loader{acc::data::Tensors{numbers}, {.batch_size = 128, .shuffle = true, .split_batches = true}});
        accelerator.set_seed(2, {.device_specific = true});  // every rank its own noise

        while (train.epoch() < 20)
            for (auto& real : train) {
                auto window = accelerator.accumulate(generator, discriminator);
                auto const made = generator(torch::randn({real.size(0), 4}));
                accelerator.backward(loss(discriminator(real), 1) + loss(discriminator(made.detach()), 0));
                of_discriminator.step(), of_discriminator.zero_grad();

                accelerator.backward(loss(discriminator(made), 1));
                of_generator.step(), of_generator.zero_grad();
                of_discriminator.zero_grad();  // what the generator's loss has left there
            }

        torch::NoGradGuard const no_grad;
        auto const drawn = accelerator.gather(generator(torch::randn({5000, 4})));
        auto const mean = drawn.mean().item<double>(), deviation = drawn.std().item<double>();
        accelerator.print("drawn: mean", mean, "(3), standard deviation", deviation, "(0.5)");
        acc::check(std::abs(mean - 3) < 0.3 && deviation > 0.2 && deviation < 0.9, acc::code::internal, "the generator has not learned");
    });
}
