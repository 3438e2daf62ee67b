// A simulation written with Eigen feeds the training of a network that stands in for it:
//
//   mpirun -n 2 eigen_simulation
//
// Two pendulums on a spring are integrated by Runge-Kutta in Eigen, a network learns their state after a tenth of a second, and is
// then asked to go on by itself. Nothing is copied between the two libraries: `tensor_of` makes tensors of Eigen's matrices, `eigen_map`
// lets Eigen read what the network says. The program fails unless the network is twenty times better than "nothing moves".
#include <Eigen/Core>
#include <accelerate.hpp>
#include <accelerate/eigen.hpp>
#include <random>

namespace acc = accelerate;

using State = Eigen::Vector4f;  // two angles, two velocities

State slope(State const& s) {
    float const spring = 2 * (s[1] - s[0]);
    return {s[2], s[3], -9.81f * std::sin(s[0]) + spring - 0.1f * s[2], -9.81f * std::sin(s[1]) - spring - 0.1f * s[3]};
}

/// The state a tenth of a second later.
State simulate(State s) {
    constexpr float h = 0.05f;
    for (int step = 0; step < 2; ++step) {
        State const a = slope(s), b = slope(s + h / 2 * a), c = slope(s + h / 2 * b), d = slope(s + h * c);
        s += h / 6 * (a + 2 * b + 2 * c + d);
    }
    return s;
}

struct Sample {
    torch::Tensor before, after;
};

/// Sample i is a function of i: every rank simulates its own part, and nothing is stored.
struct Pendulums {
    size_t size() const { return 4096; }
    Sample operator[](size_t i) const {
        std::mt19937 random(static_cast<unsigned>(i));
        std::uniform_real_distribution<float> angle(-1, 1), velocity(-3, 3);
        State const before{angle(random), angle(random), velocity(random), velocity(random)};  // braces: drawn in this order by every compiler
        return {acc::tensor_of(before), acc::tensor_of(simulate(before))};
    }
};

/// Learns the change of the state.
template <class S = acc::Plain>
struct Surrogate : torch::nn::Module {
    explicit Surrogate(int64_t width) : in(this, "in", 4, width), middle(this, "middle", width, width), out(this, "out", width, 4) {}
    torch::Tensor forward(torch::Tensor const& x) { return x + out(torch::tanh(middle(torch::tanh(in(x))))); }
    acc::Linear<S> in, middle, out;
};

int main() {
    return acc::run([] {
        constexpr int64_t epochs = 40;
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;
        auto net = accelerator.make<Surrogate>(64);
        auto [model, optimizer, train, schedule] =
            accelerator.prepare(net, acc::optim::AdamW{.lr = 5e-3}, acc::data::Loader{Pendulums{}, {.batch_size = 64, .shuffle = true, .seed = 1, .split_batches = true}},
                                acc::schedule::Cosine{.warmup = acc::OptimizerSteps{20}, .total = acc::OptimizerSteps{epochs * 4096 / 64}});
        while (train.epoch() < epochs)
            for (auto& batch : train) {
                auto window = accelerator.accumulate(model);
                accelerator.backward(torch::mse_loss(model(batch.before), batch.after));
                accelerator.clip_grad_norm(model, 1.0);
                optimizer.step();
                schedule.step();
                optimizer.zero_grad();
            }

        // One second by the network alone, ten steps from a state that is in no sample.
        torch::NoGradGuard no_grad;
        State const start(0.6f, -0.3f, 0, 1);
        State truth = start;
        auto state = acc::tensor_of(start);
        for (int step = 0; step < 10; ++step) {
            truth = simulate(truth);
            state = model(state);
        }
        auto const predicted = acc::eigen_map<State const>(state);
        auto const error = (predicted - truth).norm(), still = (start - truth).norm();
        accelerator.print("after one second: simulated", truth.transpose(), "predicted", predicted.transpose(), "error", error, "against", still, "if nothing moved");
        acc::check(error < still / 20, acc::code::data, "the network has not learned the simulation");
    });
}
