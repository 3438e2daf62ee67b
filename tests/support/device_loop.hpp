// A short training loop for any device, and what it computes: to be compared between devices.
#pragma once

#include "catch.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>

namespace device_loop {

namespace acc = accelerate;

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    Net() : words(this, "words", 7, 6), body(this, "body", 2, 6, 6), head(this, "head", 6, 3) { register_buffer("scale", torch::full({6}, 2.0)); }
    torch::Tensor forward(torch::Tensor x) { return head(torch::tanh(body(words(x))) * named_buffers()["scale"]); }
    acc::Unit<S, torch::nn::Embedding> words;
    acc::Layers<S, torch::nn::Linear> body;
    acc::Linear<S> head;
};

struct Sample {
    torch::Tensor input, target;
};
struct Words {
    size_t size() const { return 24; }
    Sample operator[](size_t i) const { return {torch::tensor(static_cast<int64_t>(i * 5 % 7)), torch::tensor(static_cast<int64_t>(i % 3))}; }
};

struct Run {
    std::vector<double> losses;
    acc::TensorMap weights;
};

/// Nine steps: the mean losses, and the whole weights.
template <class D, class Precision, class Sharding>
Run loop(typename D::communicator const& c, int64_t batch) {
    acc::Accelerator<D, Precision, Sharding, acc::loader::Stateful<>> accelerator({.seed = 5}, c);
    auto net = accelerator.template make<Net>();
    auto [model, optimizer, train] = accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-2}, acc::data::Loader{Words{}, {.batch_size = batch, .shuffle = true, .seed = 3}});
    Run run;
    while (train.epoch() < 3)
        for (auto& each : train) {
            acc::check(each.input.device() == accelerator.device(), acc::code::internal, "the batch is not on the device");
            auto window = accelerator.accumulate(model);
            auto const loss = torch::nn::functional::cross_entropy(model(each.input), each.target);
            accelerator.backward(loss);
            accelerator.clip_grad_norm(model, 0.5);
            optimizer.step();
            optimizer.zero_grad();
            run.losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
        }
    for (auto const& p : model->parameters()) acc::check(p.device() == accelerator.device(), acc::code::internal, "a parameter is not on the device");
    for (auto& [name, t] : accelerator.get_state_dict(model)) run.weights[name] = t.to(at::kCPU);
    return run;
}

/// What the CPU computes in one process.
inline Run expected() {
    return loop<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp32, acc::sharding::None>(acc::comm::Self(), 8);
}

inline void compare(Run const& run, Run const& one, double losses, double weights) {
    REQUIRE(one.losses.size() == 9);
    REQUIRE(run.losses.size() == one.losses.size());
    for (size_t i = 0; i < one.losses.size(); ++i) CHECK(std::abs(run.losses[i] - one.losses[i]) <= losses * std::abs(one.losses[i]));
    REQUIRE(run.weights.size() == one.weights.size());
    for (auto const& [name, w] : one.weights) {
        CAPTURE(name);
        CHECK((run.weights.at(name) - w).abs().max().item<double>() <= weights);
    }
}

}  // namespace device_loop
