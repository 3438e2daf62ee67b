// The shortest whole program: fits a small network to y = sin(x0) + x1 on as many ranks as mpirun starts.
//
//   mpirun -n 2 quick_start
// [snippet program]
#include <accelerate.hpp>

namespace acc = accelerate;

template <class S = acc::Plain>  // the strategy: how parts are held and computed
struct Net : torch::nn::Module {
    explicit Net(int64_t width) : up(this, "up", 2, width), down(this, "down", width, 1) {}
    torch::Tensor forward(torch::Tensor x) { return down(torch::tanh(up(x))); }
    acc::Linear<S> up, down;
};

struct Sample {  // collated member by member; nothing has to be registered
    torch::Tensor input, target;
};

struct Waves {
    size_t size() const { return 4096; }
    Sample operator[](size_t i) const {
        auto const a = static_cast<double>(i % 61) / 10 - 3, b = static_cast<double>(i % 101) / 100;
        return {torch::tensor({a, b}, torch::kFloat), torch::tensor({std::sin(a) + b}, torch::kFloat)};
    }
};

int main() {
    return acc::run([] {
        using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;
        Run accelerator{{.gradient_accumulation_steps = 2}};

        auto net = accelerator.make<Net>(64);  // the same initial weights under every policy and on any number of ranks
        auto [model, optimizer, train, schedule] = accelerator.prepare(
            net, acc::optim::AdamW{.lr = 3e-2}, acc::data::Loader{Waves{}, {.batch_size = 32, .shuffle = true, .seed = 42}},
            acc::schedule::Cosine{.warmup = acc::OptimizerSteps{10}, .total = acc::OptimizerSteps{300}});

        torch::Tensor last;
        while (train.epoch() < 10)
            for (auto& batch : train) {
                auto window = accelerator.accumulate(model);
                auto loss = torch::mse_loss(model(batch.input), batch.target);
                accelerator.backward(loss);
                accelerator.clip_grad_norm(model, 1.0);
                optimizer.step();
                schedule.step();
                optimizer.zero_grad();
                last = loss.detach();
            }
        accelerator.print("loss", accelerator.reduce(last, "mean").item<double>(), "after", optimizer.steps(), "steps on", accelerator.num_processes(), "ranks");
        accelerator.save_model(model, "quick_start_out");  // safetensors that Python opens
    });
}
// [end]
