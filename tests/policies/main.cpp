// One source, several targets: prints which policies the build chose, and trains with them.
#include <accelerate.hpp>

namespace acc = accelerate;

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    explicit Net(int64_t d) : up(this, "up", d, d), down(this, "down", d, 1) {}
    torch::Tensor forward(torch::Tensor x) { return down(torch::tanh(up(x))); }
    acc::Unit<S, torch::nn::Linear> up;
    acc::Linear<S> down;
};

int main() {
    return acc::run([] {
        acc::DefaultAccelerator accelerator;
        accelerator.print(accelerator.policies());
        auto [model, optimizer] = accelerator.prepare(accelerator.make<Net>(8), acc::optim::Sgd{.lr = 0.1});
        torch::manual_seed(0);
        auto const x = torch::randn({64, 8}), y = x.sum(1, true).tanh();
        double first = 0, last = 0;
        for (int i = 0; i < 50; ++i) {
            auto window = accelerator.accumulate(model);
            auto const loss = torch::mse_loss(model(x), y);
            accelerator.backward(loss);
            optimizer.step();
            optimizer.zero_grad();
            last = loss.item<double>();
            if (i == 0) first = last;
        }
        acc::check(last < 0.5 * first, acc::code::internal, "it did not learn: ", first, " to ", last);
    });
}
