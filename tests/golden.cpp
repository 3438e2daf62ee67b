// The numbers of Python Accelerate, step by step (tests/data/golden). Under mpirun -n 1 and -n 2.
#include "support/catch.hpp"
#include "support/golden_gpt.hpp"

#include <accelerate.hpp>
#include <cstdio>

namespace acc = accelerate;

namespace {

using Single = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;
using Replicated = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;
template <acc::Overlap Mode, bool Gather>
using Variant = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<acc::ddp{.first_bucket_kb = 16, .gather_gradients = Gather, .overlap = Mode}>,
                                 acc::loader::Stateful<>>;

struct Trace {
    std::vector<double> losses, norms;
    acc::TensorMap weights;
};

template <class Run>
Trace train(golden::Record const& record, acc::Operations operations) {
    golden::Tokens const tokens(record.samples);
    Run accelerator;
    auto [model, optimizer, loader] = accelerator.prepare(
        golden::Gpt(), acc::optim::AdamW{.lr = 1e-3, .betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.1, .operations = operations},
        acc::data::Loader{tokens, {.batch_size = record.batch}});
    Trace trace;
    size_t step = 0;
    for (auto& batch : loader) {
        auto window = accelerator.accumulate(model);
        optimizer.set_lr(record.lr.at(step++));
        auto loss = golden::loss(model(batch.x), batch.y);
        accelerator.backward(loss);
        auto const norm = accelerator.clip_grad_norm(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
        trace.losses.push_back(loss.template item<float>());
        trace.norms.push_back(norm.template item<float>());
    }
    for (auto& p : model->named_parameters()) trace.weights.insert(p.key(), p.value().detach().clone());
    return trace;
}

void compare(Trace const& trace, golden::Record const& record, int64_t rank, std::string const& weights) {
    REQUIRE(trace.losses.size() == record.losses.size());
    double worst_loss = 0, worst_norm = 0, worst_weight = 0;
    for (size_t i = 0; i < trace.losses.size(); ++i) {
        auto const expected = record.losses[i].at(static_cast<size_t>(rank));
        worst_loss = std::max(worst_loss, std::abs(trace.losses[i] - expected) / expected);
        worst_norm = std::max(worst_norm, std::abs(trace.norms[i] - record.norms[i]) / record.norms[i]);
    }
    for (auto const& [name, expected] : acc::load_file(golden::folder() / weights))
        worst_weight = std::max(worst_weight, (trace.weights.at(name) - expected).abs().max().item<double>());
    std::printf("%zu losses, worst relative difference: loss %.2e, gradient norm %.2e; final weights %.2e absolute\n", trace.losses.size(), worst_loss, worst_norm, worst_weight);
    CHECK(worst_loss < 5e-6);
    CHECK(worst_norm < 1e-5);
    CHECK(worst_weight < 2e-4);
}

int64_t world() { return Replicated().num_processes(); }

}  // namespace

TEST_CASE("one process gives the losses of Python Accelerate", "[golden]") {
    if (world() != 1) return;
    golden::Record const record("single");
    compare(train<Single>(record, acc::Operations::Fused), record, 0, "final_single.safetensors");
}

namespace {

/// The same run without the library: LibTorch's operations one by one, in the order of Python's `clip_grad_norm_` and fused AdamW.
std::vector<double> by_hand(golden::Record const& record) {
    golden::Gpt net;
    golden::Tokens const tokens(record.samples);
    auto parameters = net->parameters();
    std::vector<torch::Tensor> m, v, t;
    for (auto& p : parameters) m.push_back(torch::zeros_like(p)), v.push_back(torch::zeros_like(p)), t.push_back(torch::zeros({}));
    std::vector<double> losses;
    for (size_t step = 0; step < record.lr.size(); ++step) {
        std::vector<torch::Tensor> x, y, gradients;
        for (size_t i = 0; i < static_cast<size_t>(record.batch); ++i) {
            auto const sample = tokens[step * static_cast<size_t>(record.batch) + i];
            x.push_back(sample.x), y.push_back(sample.y);
        }
        auto const loss = golden::loss(net(torch::stack(x)), torch::stack(y));
        loss.backward();
        torch::NoGradGuard no_grad;
        for (auto& p : parameters) gradients.push_back(p.grad());
        auto const norm = at::linalg_vector_norm(torch::stack(at::_foreach_norm(gradients, 2)), 2);
        at::_foreach_mul_(gradients, torch::clamp(1.0 / (norm + 1e-6), c10::nullopt, 1.0));
        at::_foreach_add_(t, 1);
        at::_fused_adamw_(parameters, gradients, m, v, {}, t, record.lr[step], 0.9, 0.95, 0.1, 1e-8, false, false);
        for (auto& p : parameters) p.mutable_grad() = torch::Tensor();
        losses.push_back(loss.item<float>());
    }
    return losses;
}

int64_t equal_to(std::vector<double> const& losses, golden::Record const& record) {
    int64_t equal = 0;
    for (size_t i = 0; i < losses.size(); ++i) equal += losses[i] == record.losses[i][0];
    return equal;
}

}  // namespace

TEST_CASE("Operations::Torch gives Python's losses to the last bit", "[golden]") {
    if (world() != 1) return;
    golden::Record const record("fused");
    auto const ours = train<Single>(record, acc::Operations::Torch).losses;
    auto const hand = by_hand(record);
    CHECK(ours == hand);
    // The recorded bits are those of an AVX2 CPU; on another class Python itself gives others. ctest holds the kernels to AVX2;
    // tests/golden_python.py compares with Python on the machine at hand.
    auto const reproducible = equal_to(hand, record);
    std::printf("%ld of 40 losses bit-equal to the recorded run, %ld to a hand-written loop%s\n", equal_to(ours, record), static_cast<int64_t>(ours == hand ? 40 : 0),
                reproducible == 40 ? "" : "; this CPU class gives other bits than the recording's");
    if (reproducible == 40) CHECK(equal_to(ours, record) == 40);
}

TEST_CASE("two ranks under DDP give the losses of Python's two ranks", "[golden]") {
    if (world() != 2) return;
    golden::Record const record("ddp2");
    auto const rank = Replicated().process_index();
    compare(train<Replicated>(record, acc::Operations::Fused), record, rank, "final_ddp2.safetensors");
    compare(train<Variant<acc::Overlap::On, true>>(record, acc::Operations::Fused), record, rank, "final_ddp2.safetensors");
    compare(train<Variant<acc::Overlap::On, false>>(record, acc::Operations::Fused), record, rank, "final_ddp2.safetensors");
    compare(train<Variant<acc::Overlap::Off, false>>(record, acc::Operations::Fused), record, rank, "final_ddp2.safetensors");
    compare(train<Replicated>(record, acc::Operations::Torch), record, rank, "final_ddp2.safetensors");
}
