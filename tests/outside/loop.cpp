// A program outside the repository: compiled by hand against include/ alone, as a user's would be. It uses the names that
// design fixes for users and nothing else, trains on two ranks, and checks what it sees.
#include <accelerate.hpp>
#include <cmath>
#include <cstdio>

namespace acc = accelerate;

template <class S = acc::Plain>
struct Block : torch::nn::Module {
    explicit Block(int64_t d) : up(this, "up", d, 4 * d), down(this, "down", 4 * d, d) {}
    torch::Tensor forward(torch::Tensor x) { return x + down(torch::gelu(up(x))); }
    acc::Linear<S> up, down;
};

struct Config {
    int64_t width = 16, depth = 2;
};

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    explicit Net(Config c) : in(this, "in", 8, c.width), blocks(this, "blocks", c.depth, c.width), out(this, "out", c.width, 4) {}
    torch::Tensor forward(torch::Tensor x) { return out(blocks(in(x))); }
    acc::Linear<S> in;
    acc::Layers<S, Block<S>> blocks;
    acc::Unit<S, torch::nn::Linear> out;
};

struct Sample {
    torch::Tensor input, target;
};

struct Data {
    torch::Tensor x, y;
    size_t size() const { return static_cast<size_t>(x.size(0)); }
    Sample operator[](size_t i) const { return {x[static_cast<int64_t>(i)], y[static_cast<int64_t>(i)]}; }
};

int main() {
    return acc::run([&] {
        using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;
        Run accelerator{{.gradient_accumulation_steps = 2, .project_dir = "runs/outside"}};
        torch::manual_seed(0);
        Data dataset{torch::randn({96, 8}), torch::randint(4, {96})};

        auto net = accelerator.make<Net>(Config{});
        auto [model, optimizer, train, schedule] = accelerator.prepare(
            net, acc::optim::AdamW{.lr = 1e-2, .weight_decay = 0.1}, acc::data::Loader{dataset, {.batch_size = 4, .shuffle = true, .seed = 42}},
            acc::schedule::Cosine{.warmup = acc::OptimizerSteps{5}, .total = acc::OptimizerSteps{100}});

        double first = 0, last = 0;
        while (train.epoch() < 10)
            for (auto& batch : train) {
                auto window = accelerator.accumulate(model);
                auto loss = torch::nn::functional::cross_entropy(model(batch.input), batch.target);
                accelerator.backward(loss);
                accelerator.clip_grad_norm(model, 1.0);
                optimizer.step();
                schedule.step();
                optimizer.zero_grad();
                last = loss.template item<double>();
                if (first == 0) first = last;
            }
        accelerator.print("ranks", accelerator.num_processes(), "first loss", first, "last loss", last);
        auto const w = model->out->weight.detach().clone();
        acc::check(torch::allclose(accelerator.reduce(w, "mean"), w), acc::code::internal, "the ranks' weights differ");
        acc::check(std::isfinite(last) && last < first, acc::code::internal, "the loop did not learn");
        accelerator.save_model(model, "runs/outside/model");
    });
}
