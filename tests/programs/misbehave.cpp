// Two ranks of which one does something wrong; started by tests/failures.py, which looks at what the terminal shows.
#include <accelerate.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace acc = accelerate;
using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;

struct Net : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(4, 4))};
    torch::Tensor forward(torch::Tensor const& x) { return a(x); }
};

/// Trains; at step `at`, `what` happens on `who`.
template <class What>
void train(Run& accelerator, int64_t who, int64_t at, What&& what, int64_t steps = 1'000'000) {
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Net>(), acc::optim::Sgd{.lr = 0.1});
    for (int64_t step = 0; step < steps; ++step) {
        if (step == at && accelerator.process_index() == who) what();
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(torch::ones({2, 4})).pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
    }
}

int main(int, char** argv) {
    std::string const mode = argv[1];
    return acc::run([&] {
        Run accelerator({.timeout_s = mode == "stuck" ? 3.0 : 600.0});
        auto const rank = accelerator.process_index();
        if (mode == "throw") train(accelerator, 1, 20, [] { throw std::runtime_error("the dog ate batch 20"); });
        if (mode == "kill") train(accelerator, 1, 20, [] { std::raise(SIGKILL); });
        if (mode == "stuck") train(accelerator, 1, 20, [] { std::this_thread::sleep_for(std::chrono::hours(1)); });
        if (mode == "leave") train(accelerator, 1, 20, [] { std::_Exit(0); });
        if (mode == "exit") train(accelerator, 1, 20, [] { std::exit(3); });
        if (mode == "exit_all") train(accelerator, rank, 20, [] { std::exit(0); });
        if (mode == "child") train(accelerator, 1, 20, [] { if (auto const pid = ::fork(); pid == 0) std::exit(0); else ::waitpid(pid, nullptr, 0); }, 40);
        if (mode == "shapes") accelerator.comm().all_reduce(torch::ones({rank == 0 ? 3 : 4}));
        if (mode == "dtypes") accelerator.comm().all_reduce(torch::ones({3}, rank == 0 ? torch::kFloat : torch::kInt));
        if (mode == "collective") rank == 0 ? accelerator.wait_for_everyone() : accelerator.comm().broadcast(torch::ones({3}), 0);
        if (mode == "empty") accelerator.prepare(acc::data::Loader{std::vector<torch::Tensor>(), {.batch_size = 2}});
        if (mode == "text") acc::data::read_corpus("/nonexistent/text");
        std::printf("rank %ld came to the end\n", rank);
    });
}
