// Trains for 120 optimizer steps and saves all five. Kill it at any moment, in whatever way, and run it again: it goes on from the newest
// checkpoint that is whole, and ends with the loss of a run that was never killed, on samples held out, to the last bit.
//   mpirun -n 2 ./resume_training runs/killed
//   mpirun -n 2 ./resume_training runs/killed asynchronous     checkpoints are written by a thread, while training goes on
#include <torch/torch.h>

#include <accelerate.hpp>

namespace acc = accelerate;
using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    Net() : up(this, "up", 8, 256), down(this, "down", 256, 1) {}
    torch::Tensor forward(torch::Tensor const& x) { return down(torch::dropout(torch::relu(up(x)), 0.1, is_training())); }
    acc::Linear<S> up, down;
};

/// The sum of the squares of eight numbers. Those behind the last are held out.
struct Samples {
    size_t size() const { return 1000; }
    std::pair<torch::Tensor, torch::Tensor> operator[](size_t i) const {
        auto const x = at::randn({8}, at::detail::createCPUGenerator(i));
        return {x, x.square().sum(0, true)};
    }
};

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 2 || (argc == 3 && argv[2] == std::string_view("asynchronous")), acc::code::config, "resume_training FOLDER [asynchronous]");
        Run accelerator({.gradient_accumulation_steps = 2, .project_dir = argv[1], .total_limit = 3});
        torch::manual_seed(100 + static_cast<uint64_t>(accelerator.process_index()));  // dropout is drawn from here; its state is saved and restored like all else
        auto [model, optimizer, train, schedule] =
            accelerator.prepare(accelerator.make<Net>(), acc::optim::AdamW{.lr = 3e-3}, acc::data::Loader{Samples(), {.batch_size = 4, .shuffle = true, .seed = 42}},
                                acc::schedule::Cosine{.warmup = acc::OptimizerSteps{10}, .total = acc::OptimizerSteps{120}});
        if (accelerator.resume()) accelerator.print("goes on behind step", optimizer.steps());
        int64_t being_saved = 0;
        auto const report = [&](int64_t next) {
            if (being_saved > 0) accelerator.print("saved step", being_saved);
            being_saved = next;
        };
        while (optimizer.steps() < 120)
            for (auto& [x, y] : train) {
                {
                    auto window = accelerator.accumulate(model);
                    accelerator.backward(torch::mse_loss(model(x), y));
                    accelerator.clip_grad_norm(model, 10.0);
                    optimizer.step();
                    schedule.step();
                    optimizer.zero_grad();
                }
                if (accelerator.sync_gradients() && optimizer.steps() % 5 == 0) {
                    accelerator.save_state({.asynchronous = argc == 3});  // waits for the one before
                    report(optimizer.steps());
                }
                if (optimizer.steps() == 120) break;
            }
        accelerator.wait_for_checkpoint();
        report(0);

        // The loss of the last step is in no checkpoint: a run that was killed between that and here has no step left to take.
        torch::NoGradGuard const evaluation;
        model->eval();
        double loss = 0;
        for (size_t i = 0; i < 100; ++i) {
            auto const [x, y] = Samples()[Samples().size() + i];
            loss += torch::mse_loss(model(x), y).item<double>() / 100;
        }
        char exact[40];
        std::snprintf(exact, sizeof exact, "%.17g", loss);
        accelerator.print("done, loss", exact);
    });
}
