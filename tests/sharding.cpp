// N ranks under DDP equal one process on the concatenated batch. Run under mpirun -n 1, 2, 4; the one process is part of each rank.
#include "support/catch.hpp"
#include "support/folder_of_ranks.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>

namespace acc = accelerate;

namespace {

using Alone = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;
template <acc::ddp O = acc::ddp{}>
using Replicated = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<O>, acc::loader::Stateful<>>;

constexpr acc::ddp overlapped{.bucket_cap_mb = 1, .first_bucket_kb = 1, .overlap = acc::Overlap::On};
constexpr acc::ddp sliced{.gather_gradients = false, .overlap = acc::Overlap::Off};
constexpr acc::ddp sliced_overlapped{.first_bucket_kb = 1, .gather_gradients = false, .overlap = acc::Overlap::On};

torch::Tensor uniform(std::initializer_list<int64_t> shape, int64_t seed) {
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
    return torch::empty(shape).uniform_(-1, 1, generator);
}

/// Weights that do not depend on the global generator.
template <class Module>
void fill(Module& module) {
    torch::NoGradGuard no_grad;
    int64_t seed = 1;
    for (auto& p : module.parameters()) p.copy_(uniform({p.numel()}, ++seed).view(p.sizes()) * 0.3);
}

struct Mlp : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(6, 32))}, b{register_module("b", torch::nn::Linear(32, 3))};
    torch::Tensor forward(torch::Tensor const& x) { return b(torch::tanh(a(x))); }
    static torch::Tensor input(int64_t step, int64_t n) { return uniform({n, 6}, 100 + step); }
};

/// The convolution has no bias: in front of a normalisation its gradient is zero up to rounding, and AdamW would divide that by itself.
struct Conv : torch::nn::Module {
    torch::nn::Conv2d conv{register_module("conv", torch::nn::Conv2d(torch::nn::Conv2dOptions(2, 8, 3).bias(false)))};
    acc::SyncBatchNorm norm{register_module("norm", acc::SyncBatchNorm(torch::nn::BatchNormOptions(8)))};
    torch::nn::Linear head{register_module("head", torch::nn::Linear(8, 3))};
    torch::Tensor forward(torch::Tensor const& x) { return head(torch::relu(norm(conv(x))).mean({2, 3})); }
    static torch::Tensor input(int64_t step, int64_t n) { return uniform({n, 2, 6, 6}, 200 + step); }
};

struct Words : torch::nn::Module {
    torch::nn::Embedding words{register_module("words", torch::nn::Embedding(17, 8))};
    torch::nn::Linear head{register_module("head", torch::nn::Linear(8, 3))};
    torch::Tensor forward(torch::Tensor const& x) { return head(words(x).mean(1)); }
    static torch::Tensor input(int64_t step, int64_t n) { return (uniform({n, 5}, 300 + step) * 8 + 8).to(torch::kLong); }
};

struct Tied : torch::nn::Module {
    torch::nn::Embedding words{register_module("words", torch::nn::Embedding(17, 8))};
    torch::nn::Linear head{register_module("head", torch::nn::Linear(torch::nn::LinearOptions(8, 17).bias(false)))};
    torch::nn::Linear last{register_module("last", torch::nn::Linear(17, 3))};
    Tied() { acc::tie_weights(*head, "weight", head->weight, words->weight); }
    torch::Tensor forward(torch::Tensor const& x) { return last(head(words(x).mean(1))); }
    static torch::Tensor input(int64_t step, int64_t n) { return Words::input(step, n); }
};

struct Branch : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(6, 8))}, never{register_module("never", torch::nn::Linear(6, 8))}, b{register_module("b", torch::nn::Linear(8, 3))};
    torch::Tensor forward(torch::Tensor const& x) { return b(torch::relu(a(x))); }
    static torch::Tensor input(int64_t step, int64_t n) { return Mlp::input(step, n); }
};

struct Twice : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(6, 6))}, b{register_module("b", torch::nn::Linear(6, 3))};
    torch::Tensor forward(torch::Tensor const& x) { return b(torch::tanh(a(torch::tanh(a(x))))); }
    static torch::Tensor input(int64_t step, int64_t n) { return Mlp::input(step, n); }
};

std::vector<torch::Tensor> weights_of(std::initializer_list<torch::nn::Module const*> modules) {
    std::vector<torch::Tensor> weights;
    for (auto const* module : modules)
        for (auto const& p : module->parameters()) weights.push_back(p.detach().clone());
    return weights;
}

/// The same of prepared models, gathered. Collective.
template <class Run, class... Models>
std::vector<torch::Tensor> weights_of(Run& accelerator, Models const&... models) {
    std::vector<torch::Tensor> weights;
    auto const add = [&](auto const& model) {
        for (auto const& [name, w] : accelerator.get_state_dict(model)) weights.push_back(w);
    };
    (add(models), ...);
    return weights;
}

void close(std::vector<torch::Tensor> const& ours, std::vector<torch::Tensor> const& one) {
    REQUIRE(ours.size() == one.size());
    for (size_t i = 0; i < one.size(); ++i) CHECK(torch::allclose(ours[i], one[i], 1e-5, 1e-6));
}

/// `train(stop, folder)` gives the same bits whether it runs through (no folder) or goes on from a checkpoint behind `stop`.
template <class Train>
void same_when_resumed(std::initializer_list<int64_t> stops, std::filesystem::path const& folder, Train const& train) {
    auto const whole = train(0, std::filesystem::path());
    for (auto const stop : stops) {
        auto const resumed = train(stop, folder / std::to_string(stop));
        REQUIRE(resumed.size() == whole.size());
        for (size_t i = 0; i < whole.size(); ++i) CHECK(torch::equal(resumed[i], whole[i]));
    }
}

struct Result {
    std::vector<double> losses;
    acc::TensorMap weights;
};

constexpr int64_t global_batch = 8, steps = 10;

/// Each rank takes its rows of the same global batch.
template <class Model, class Run, class Recipe>
Result train(Run& accelerator, Recipe const& recipe, bool evaluate = false) {
    auto net = std::make_shared<Model>();
    fill(*net);
    auto [model, optimizer] = accelerator.prepare(net, recipe);
    auto const n = accelerator.num_processes(), rows = global_batch / n, first = rows * accelerator.process_index();
    Result result;
    for (int64_t step = 0; step < steps; ++step) {
        auto window = accelerator.accumulate(model);
        auto const x = Model::input(step, global_batch).slice(0, first, first + rows);
        auto const y = uniform({global_batch, 3}, 400 + step).slice(0, first, first + rows);
        auto const loss = torch::mse_loss(model(x), y);
        if (evaluate) {
            torch::NoGradGuard no_grad;
            model(Model::input(step + 50, global_batch).slice(0, first, first + rows));
        }
        accelerator.backward(loss);
        accelerator.clip_grad_norm(model, 0.1);  // less than the norms that occur
        optimizer.step();
        optimizer.zero_grad();
        result.losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
    }
    for (auto const& p : model->named_parameters()) result.weights.insert(p.key(), p.value().detach().clone());
    return result;
}
template <class Run, class Model, class Recipe>
Result train(Recipe const& recipe, bool evaluate = false) {
    Run accelerator;
    return train<Model>(accelerator, recipe, evaluate);
}

void compare(Result const& ours, Result const& one, double loss_tolerance, double weight_tolerance) {
    REQUIRE(ours.losses.size() == one.losses.size());
    for (size_t i = 0; i < one.losses.size(); ++i) CHECK(std::abs(ours.losses[i] - one.losses[i]) <= loss_tolerance * std::abs(one.losses[i]));
    for (auto const& [name, w] : one.weights) CHECK((ours.weights.at(name) - w).abs().max().item<double>() <= weight_tolerance);
}

template <class Model, acc::ddp O>
void both_optimizers(bool evaluate = false) {
    acc::optim::Sgd const sgd{.lr = 0.1, .momentum = 0.9};
    compare(train<Replicated<O>, Model>(sgd, evaluate), train<Alone, Model>(sgd), 1e-6, 1e-5);
    acc::optim::AdamW const adamw{.lr = 1e-2};
    compare(train<Replicated<O>, Model>(adamw, evaluate), train<Alone, Model>(adamw), 5e-6, 2e-4);
}

template <class Model>
void every_mode() {
    both_optimizers<Model, acc::ddp{}>();
    both_optimizers<Model, overlapped>();
    both_optimizers<Model, sliced>();
    both_optimizers<Model, sliced_overlapped>();
}

/// A student learns from a teacher that is prepared for evaluation, everything prepared singly; against LibTorch's own loop over the whole batch.
template <class Accelerator>
void learns_from_teacher() {
    Accelerator accelerator;
    auto const ranks = accelerator.num_processes();
    auto const teacher = std::make_shared<Mlp>(), student = std::make_shared<Mlp>(), reference = std::make_shared<Mlp>();
    fill(*teacher), fill(*student), fill(*reference);
    {
        torch::NoGradGuard no_grad;
        for (auto const& net : {student, reference}) net->a->weight.mul_(0.5), net->b->bias.add_(0.25);
    }
    auto teaches = accelerator.prepare_model(teacher, {.evaluation_mode = true});
    auto learns = accelerator.prepare_model(student);
    auto optimizer = accelerator.prepare_optimizer(acc::optim::Sgd{.lr = 0.2, .momentum = 0.9}, learns);
    auto schedule = accelerator.prepare_scheduler(acc::schedule::Step{.every = acc::OptimizerSteps{2}, .gamma = 0.5}, optimizer);
    std::vector<torch::Tensor> rows;
    for (int64_t i = 0; i < 4 * 4 * ranks; ++i) rows.push_back(Mlp::input(i, 1)[0]);
    auto loader = accelerator.prepare_loader(acc::data::Loader{rows, {.batch_size = 4}});
    for (auto const& p : teacher->parameters()) CHECK_FALSE(p.requires_grad());
    std::vector<double> rates, expected;
    int64_t step = 0;
    for (auto& x : loader) {
        auto window = accelerator.accumulate(learns);
        accelerator.backward(torch::mse_loss(learns(x), teaches(x)));
        optimizer.step();
        schedule.step();
        optimizer.zero_grad();
        rates.push_back(optimizer.lr());
        expected.push_back(0.2 * std::pow(0.5, ++step / 2));
    }
    REQUIRE(step == 4);
    CHECK(rates == expected);
    torch::optim::SGD plain(reference->parameters(), torch::optim::SGDOptions(0.2).momentum(0.9));
    for (int64_t i = 0; i < step; ++i) {
        auto const x = torch::stack(std::vector<torch::Tensor>(rows.begin() + i * 4 * ranks, rows.begin() + (i + 1) * 4 * ranks));
        plain.zero_grad();
        torch::mse_loss(reference->forward(x), teacher->forward(x)).backward();
        plain.step();
        for (auto& group : plain.param_groups()) static_cast<torch::optim::SGDOptions&>(group.options()).lr(expected[static_cast<size_t>(i)]);
    }
    auto const theirs = reference->parameters(), ours = accelerator.unwrap_model(learns)->parameters();
    for (size_t i = 0; i < ours.size(); ++i) CHECK(torch::allclose(ours[i], theirs[i], 1e-5, 1e-6));
    for (auto const& p : teacher->parameters()) CHECK_FALSE(p.grad().defined());
}

}  // namespace

TEST_CASE("MLP: N ranks equal one", "[ddp][none][flat][flat_model][layout]") { every_mode<Mlp>(); }
TEST_CASE("convolution with SyncBatchNorm: N ranks equal one", "[sync_batch_norm]") { every_mode<Conv>(); }

TEST_CASE("a converted batch normalisation: N ranks equal torch's over the whole batch", "[sync_batch_norm]") {
    Replicated<> accelerator;
    auto const ranks = accelerator.num_processes(), rank = accelerator.process_index();
    torch::nn::Sequential plain({{"a", torch::nn::Linear(6, 8)}, {"norm", torch::nn::BatchNorm1d(8)}, {"act", torch::nn::Tanh()}, {"b", torch::nn::Linear(8, 3)}});
    fill(*plain);
    auto whole = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(plain->clone());
    auto converted = acc::convert_sync_batchnorm(plain);
    CHECK(converted->size() == plain->size());
    CHECK(converted->children()[1]->as<acc::SyncBatchNorm>() != nullptr);
    auto [model, optimizer] = accelerator.prepare(converted, acc::optim::Sgd{.lr = 0.1});
    torch::optim::SGD reference(whole->parameters(), 0.1);
    for (int64_t step = 0; step < 5; ++step) {
        auto const x = Mlp::input(step, 4 * ranks);
        auto window = accelerator.accumulate(model);
        accelerator.backward(converted->forward(x.narrow(0, 4 * rank, 4)).square().mean());
        optimizer.step();
        optimizer.zero_grad();
        reference.zero_grad();
        whole->forward(x).square().mean().backward();
        reference.step();
    }
    auto const same = [](std::vector<torch::Tensor> const& ours, std::vector<torch::Tensor> const& theirs) {
        REQUIRE(ours.size() == theirs.size());
        for (size_t i = 0; i < ours.size(); ++i) CHECK(torch::allclose(ours[i].to(torch::kDouble), theirs[i].to(torch::kDouble), 1e-5, 1e-6));
    };
    same(converted->parameters(), whole->parameters());
    same(converted->buffers(), whole->buffers());
    CHECK(converted->named_parameters().contains("norm.weight"));
    converted->eval(), whole->eval();
    CHECK(torch::allclose(converted->forward(Mlp::input(9, 3)), whole->forward(Mlp::input(9, 3)), 1e-5, 1e-6));
}

TEST_CASE("a teacher is prepared for evaluation: N ranks equal one", "[accelerator][prepare]") {
    learns_from_teacher<Replicated<>>();
    learns_from_teacher<Replicated<overlapped>>();
    learns_from_teacher<Replicated<sliced>>();
}

TEST_CASE("embedding: N ranks equal one", "[ddp]") { every_mode<Words>(); }
TEST_CASE("tied weights: N ranks equal one", "[ddp]") { every_mode<Tied>(); }
TEST_CASE("a module used twice: N ranks equal one", "[ready_hook]") { every_mode<Twice>(); }
TEST_CASE("evaluation in the middle of a window changes nothing", "[window]") { both_optimizers<Mlp, overlapped>(true); }

#if ACCELERATE_WITH_MPI
TEST_CASE("slices that not all ranks see are gathered: N ranks equal one", "[ddp][buffer]") {
    using acc::comm::mpi_options;
    auto const options = GENERATE(mpi_options{.memory = acc::comm::SharedMemory::None}, mpi_options{.ranks_per_node = 1}, mpi_options{.ranks_per_node = 2});
    acc::optim::Sgd const recipe{.lr = 0.1, .momentum = 0.9};
    auto const one = train<Alone, Mlp>(recipe);
    Replicated<sliced> whole({}, acc::comm::Mpi::world(options));
    compare(train<Mlp>(whole, recipe), one, 1e-6, 1e-5);
    Replicated<sliced_overlapped> overlapping({}, acc::comm::Mpi::world(options));
    compare(train<Mlp>(overlapping, recipe), one, 1e-6, 1e-5);
}

TEST_CASE("nodes with disks of their own keep checkpoints of their own", "[state_control][communicator]") {
    auto const world = acc::comm::Mpi::world();
    auto const each = std::max<int64_t>(world.size() / 2, 1);  // two nodes, where there are ranks for two
    auto const comm = acc::comm::Mpi::world({.ranks_per_node = each});
    CHECK(comm.node() == comm.rank() / each * each);
    auto const top = std::filesystem::temp_directory_path() / "accelerate_test_each_node";
    auto const disk = top / std::to_string(comm.node());  // which the other node does not look at
    if (world.rank() == 0) std::filesystem::remove_all(top);
    world.barrier();
    acc::accelerator_options const options{.project_dir = disk, .save_on_each_node = true};
    struct Loop {
        Replicated<> accelerator;
        Loop(acc::accelerator_options const& given, acc::comm::Mpi const& ranks) : accelerator(given, ranks) { fill(*net); }
        std::shared_ptr<Mlp> net = std::make_shared<Mlp>();
        decltype(accelerator.prepare(net, acc::optim::AdamW{})) prepared = accelerator.prepare(net, acc::optim::AdamW{.lr = 0.01});
        float step(int64_t i) {
            auto& [model, optimizer] = prepared;
            auto window = accelerator.accumulate(model);
            auto const loss = model(Mlp::input(i + accelerator.process_index(), 4)).square().mean();
            accelerator.backward(loss);
            optimizer.step();
            optimizer.zero_grad();
            return loss.template item<float>();
        }
    };
    Loop a(options, comm);
    a.step(0);
    a.accelerator.save_state();
    auto const second = a.step(1);
    a.accelerator.save_state({.asynchronous = true});
    auto const third = a.step(2);
    a.accelerator.wait_for_checkpoint();
    auto const checkpoints = disk / "checkpoints";
    CHECK(acc::inspect(checkpoints / "checkpoint_0").world == each);
    CHECK_NOTHROW(acc::verify(checkpoints / "checkpoint_1"));
    {
        Loop b(options, comm);
        CHECK(b.accelerator.resume());
        CHECK(b.step(2) == third);
    }
    // One node has lost its newest: all take the one before. What is saved then has a name that is new on every node.
    world.barrier();
    if (world.rank() == world.size() - 1) std::filesystem::remove_all(checkpoints / "checkpoint_1");
    world.barrier();
    Loop c(options, comm);
    CHECK(c.accelerator.resume());
    CHECK(c.step(1) == second);
    CHECK(c.accelerator.save_state() == checkpoints / (world.size() > 1 ? "checkpoint_2" : "checkpoint_1"));
    c.accelerator.save_model(std::get<0>(c.prepared), disk / "model");
    Mlp loaded;
    CHECK(acc::load_model(loaded, disk / "model").complete());
    CHECK(torch::equal(loaded.a->weight, c.net->a->weight));
    // What fails on one node fails on all.
    auto const taken = disk / "taken";
    if (world.rank() == world.size() - 1) std::filesystem::create_directories(taken);
    world.barrier();
    CHECK_THROWS_WITH(c.accelerator.save_state(taken), contains("E_EXISTS") && contains(comm.size() > each ? "on the node of rank" : ""));
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>> spread(options, comm);
    auto const model = spread.prepare(std::make_shared<Mlp>());
    if (comm.size() > each) CHECK_THROWS_WITH(spread.save_state(), contains("E_CONFIG") && contains("disk that all nodes see"));
    else CHECK_NOTHROW(spread.save_state());
    world.barrier();
    if (world.rank() == 0) std::filesystem::remove_all(top);
}
#endif

TEST_CASE("an unused branch is found, or named", "[unused]") {
    both_optimizers<Branch, acc::ddp{.find_unused_parameters = true, .overlap = acc::Overlap::Off}>();
    both_optimizers<Branch, acc::ddp{.first_bucket_kb = 1, .find_unused_parameters = true, .overlap = acc::Overlap::On}>();
    both_optimizers<Branch, acc::ddp{.static_graph = true, .overlap = acc::Overlap::Off}>();
    both_optimizers<Branch, acc::ddp{.static_graph = true, .overlap = acc::Overlap::On}>();
    if (Replicated<>().num_processes() == 1) return;
    try {
        train<Replicated<>, Branch>(acc::optim::Sgd{.lr = 0.1});
        FAIL("the unused branch was not noticed");
    } catch (acc::Error const& e) {
        CHECK(e.code() == acc::code::unused_parameters);
        CHECK(std::string(e.what()).find("never.weight") != std::string::npos);
    }
}

namespace {

/// Of two layers each micro-batch takes one, the ranks the same or not; `never`, the first to be registered and the first
/// to be ready, is taken by none: buckets of 1 KB are arranged anew behind the first backward.
struct Paths : torch::nn::Module {
    torch::nn::Linear never{register_module("never", torch::nn::Linear(8, 8))}, in{register_module("in", torch::nn::Linear(6, 8))}, first{register_module("first", torch::nn::Linear(8, 8))},
        second{register_module("second", torch::nn::Linear(8, 8))}, out{register_module("out", torch::nn::Linear(8, 3))};
    torch::Tensor forward(torch::Tensor const& x, int64_t path) {
        auto const h = torch::tanh(in(x));
        return out(torch::tanh(path == 0 ? first(h) : second(h)));
    }
    static int64_t path(int64_t micro_batch, int64_t rank) {
        constexpr std::array<int64_t, 8> paths{0, 0, 1, 1, 2, 2, 0, 1};
        auto const path = paths[static_cast<size_t>(micro_batch) % paths.size()];
        return path == 2 ? rank % 2 : path;
    }
    static constexpr int64_t micro_batches = 20;
};

/// A rank's rows of what micro-batch `m` is trained on.
std::pair<torch::Tensor, torch::Tensor> rows_of(int64_t m, int64_t rank, int64_t ranks) {
    auto const rows = global_batch / ranks, begin = rows * rank;
    return {Mlp::input(m, global_batch).slice(0, begin, begin + rows), uniform({global_batch, 3}, 400 + m).slice(0, begin, begin + rows)};
}

/// LibTorch's own loop: what no loss reaches has no gradient.
template <class Optimizer, class Options>
std::vector<torch::Tensor> paths_by_hand(Options const& options, int64_t k, int64_t ranks) {
    Paths net;
    fill(net);
    Optimizer optimizer(net.parameters(), options);
    for (int64_t m = 0; m < Paths::micro_batches; ++m) {
        for (int64_t r = 0; r < ranks; ++r) {
            auto const [x, y] = rows_of(m, r, ranks);
            (torch::mse_loss(net.forward(x, Paths::path(m, r)), y) / (k * ranks)).backward();
        }
        if ((m + 1) % k != 0) continue;
        torch::nn::utils::clip_grad_norm_(net.parameters(), 0.2);
        optimizer.step();
        optimizer.zero_grad();
    }
    return weights_of({&net});
}

/// The same by a prepared loop, each loss in one backward or, in shares, in several; in two parts where a folder is given: the second goes on
/// from a checkpoint behind micro-batch `stop`.
template <class Run, class MakeOptimizer>
std::vector<torch::Tensor> paths(MakeOptimizer const& make, int64_t k, std::vector<double> const& backwards, int64_t stop = 0, std::filesystem::path const& folder = {}) {
    std::vector<torch::Tensor> weights;
    auto const part = [&](int64_t begin, int64_t end) {
        auto net = std::make_shared<Paths>();
        Run accelerator({.gradient_accumulation_steps = k});
        fill(*net);
        auto [model, optimizer] = accelerator.prepare(net, make(*net));
        if (begin > 0) accelerator.load_state(folder);
        for (int64_t m = begin; m < end; ++m) {
            auto window = accelerator.accumulate(model);
            auto const [x, y] = rows_of(m, accelerator.process_index(), accelerator.num_processes());
            for (auto const share : backwards) accelerator.backward(share * torch::mse_loss(model(x, Paths::path(m, accelerator.process_index())), y));
            accelerator.clip_grad_norm(model, 0.2);
            optimizer.step();
            optimizer.zero_grad();
        }
        if (end < Paths::micro_batches) accelerator.save_state(folder);
        else weights = weights_of(accelerator, model);
    };
    if (stop > 0) part(0, stop);
    part(stop, Paths::micro_batches);
    return weights;
}

template <class Run, class TorchOptimizer, class Make, class Options>
void paths_are_those_by_hand(Make const& make, Options const& options) {
    for (int64_t k : {1, 2}) {
        auto const by_hand = paths_by_hand<TorchOptimizer>(options, k, Run().num_processes());
        close(paths<Run>(make, k, {1}), by_hand);
        close(paths<Run>(make, k, {0.75, 0.25}), by_hand);
    }
}

template <class Run>
void branches_not_taken() {
    using namespace torch::optim;
    auto const adamw = AdamWOptions(0.01).weight_decay(0.1);
    paths_are_those_by_hand<Run, AdamW>([](auto&) { return acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1}; }, adamw);
    paths_are_those_by_hand<Run, AdamW>([](auto&) { return acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1, .operations = acc::Operations::Torch}; }, adamw);
    paths_are_those_by_hand<Run, SGD>([](auto&) { return acc::optim::Sgd{.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01}; }, SGDOptions(0.1).momentum(0.9).weight_decay(0.01));
    paths_are_those_by_hand<Run, Adagrad>([](auto&) { return acc::optim::Adagrad{.lr = 0.1}; }, AdagradOptions(0.1));
}

constexpr acc::ddp finding{.find_unused_parameters = true, .overlap = acc::Overlap::Off};
using Spread = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>>;

template <class Run>
void branches_are_resumed(std::filesystem::path const& folder) {
    auto const recipe = [](auto&) { return acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1}; };
    auto const whole = paths<Run>(recipe, 2, {1});
    for (int64_t stop : {6, 7, 13}) {
        auto const resumed = paths<Run>(recipe, 2, {1}, stop, folder / std::to_string(stop));
        for (size_t i = 0; i < whole.size(); ++i) CHECK(torch::equal(resumed[i], whole[i]));
    }
}

}  // namespace

TEST_CASE("a branch that no loss of a window has reached stays as it is, as without a gradient in PyTorch", "[unused][batches][optimizer]") {
    branches_not_taken<Alone>();
    branches_not_taken<Spread>();
    branches_not_taken<Replicated<finding>>();
    branches_not_taken<Replicated<acc::ddp{.first_bucket_kb = 1, .find_unused_parameters = true, .overlap = acc::Overlap::On}>>();
    branches_not_taken<Replicated<acc::ddp{.find_unused_parameters = true, .gather_gradients = false, .overlap = acc::Overlap::Off}>>();
    auto const held = [](Paths& net) { return std::make_shared<torch::optim::AdamW>(net.parameters(), torch::optim::AdamWOptions(0.01).weight_decay(0.1)); };
    paths_are_those_by_hand<Replicated<finding>, torch::optim::AdamW>(held, torch::optim::AdamWOptions(0.01).weight_decay(0.1));
}

TEST_CASE("what a window has not reached yet, and how often a branch was passed over, is in a checkpoint", "[unused][saved_progress]") {
    FolderOfRanks const folder("branches");
    branches_are_resumed<Replicated<finding>>(folder / "whole");
    branches_are_resumed<Spread>(folder / "spread");
}

TEST_CASE("ranks with different models are told which parameter differs", "[replicate]") {
    Replicated<> accelerator;
    if (accelerator.num_processes() == 1) return;
    try {
        accelerator.prepare(torch::nn::Linear(4, accelerator.process_index() == 1 ? 3 : 2));
        FAIL("different shapes were accepted");
    } catch (acc::Error const& e) {
        CHECK(e.code() == acc::code::replica_mismatch);
        CHECK(std::string(e.what()).find("weight [3, 4]") != std::string::npos);
    }
}

TEST_CASE("two models in one window, each with its optimizer", "[window]") {
    auto run = [](auto&& accelerator) {
        auto first = std::make_shared<Mlp>();
        auto second = std::make_shared<Twice>();
        fill(*first), fill(*second);
        auto [a, b, opt_a, opt_b] = accelerator.prepare(first, second, acc::optim::Sgd{.lr = 0.1}, acc::optim::Sgd{.lr = 0.05});
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        std::vector<double> losses;
        for (int64_t step = 0; step < steps; ++step) {
            auto window = accelerator.accumulate(a, b);
            auto const x = Mlp::input(step, global_batch).slice(0, begin, begin + rows);
            auto const loss = (a(x) - b(x)).pow(2).mean() + a(x).abs().mean();
            accelerator.backward(loss);
            opt_a.step(), opt_b.step();
            opt_a.zero_grad(), opt_b.zero_grad();
            losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
        }
        return losses;
    };
    auto const ours = run(Replicated<overlapped>()), one = run(Alone());
    for (size_t i = 0; i < one.size(); ++i) CHECK(std::abs(ours[i] - one[i]) <= 2e-6 * std::abs(one[i]));
}

namespace {

/// A generator and a discriminator that are trained in turns: the discriminator's loss does not reach the generator, whose forward came first.
template <class Run>
std::vector<torch::Tensor> adversaries(Run&& accelerator, bool in_window) {
    auto maker = std::make_shared<torch::nn::LinearImpl>(6, 6);
    auto judge = std::make_shared<Mlp>();
    fill(*maker), fill(*judge);
    auto [generator, discriminator, of_generator, of_discriminator] = accelerator.prepare(maker, judge, acc::optim::Sgd{.lr = 0.1, .momentum = 0.5}, acc::optim::Sgd{.lr = 0.05});
    auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
    for (int64_t step = 0; step < 4; ++step) {
        auto const x = Mlp::input(step, global_batch).slice(0, begin, begin + rows);
        auto const turns = [&, &generator = generator, &discriminator = discriminator, &of_generator = of_generator, &of_discriminator = of_discriminator] {
            auto const made = generator(x);
            accelerator.backward(discriminator(made.detach()).pow(2).mean() - discriminator(x).mean());
            accelerator.clip_grad_norm(discriminator, 1.0);
            of_discriminator.step(), of_discriminator.zero_grad();
            accelerator.backward(discriminator(made).mean());
            of_generator.step(), of_generator.zero_grad(), of_discriminator.zero_grad();
        };
        if (!in_window) turns();
        else {
            auto window = accelerator.accumulate(generator, discriminator);
            turns();
        }
    }
    return weights_of({maker.get(), judge.get()});
}

}  // namespace

TEST_CASE("a generator and its discriminator train in turns, each where a loss reaches it", "[backward][unused]") {
    for (bool in_window : {false, true}) {
        auto const one = adversaries(Alone(), in_window);
        close(adversaries(Replicated<>(), in_window), one);
        close(adversaries(Replicated<overlapped>(), in_window), one);
        close(adversaries(Replicated<sliced>(), in_window), one);
    }
}

TEST_CASE("of two models in a window each has the gradients of the micro-batches that reached it", "[backward][unused]") {
    auto const trained = [](auto&& accelerator) {
        auto first = std::make_shared<Mlp>(), second = std::make_shared<Mlp>();
        fill(*first), fill(*second);
        auto [a, b, of_both] = accelerator.prepare(first, second, acc::optim::Sgd{.lr = 0.1});
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t step = 0; step < 6; ++step) {
            auto window = accelerator.accumulate(a, b);
            auto const x = Mlp::input(step, global_batch).slice(0, begin, begin + rows);
            accelerator.backward((step % 2 == 0 ? a(x) : b(x)).pow(2).mean());
            of_both.step(), of_both.zero_grad();
        }
        return weights_of({first.get(), second.get()});
    };
    acc::accelerator_options const two{.gradient_accumulation_steps = 2};
    auto const one = trained(Alone(two));
    close(trained(Replicated<finding>(two)), one);
    close(trained(Replicated<>(two)), one);
    close(trained(Replicated<overlapped>(two)), one);
    close(trained(Replicated<sliced>(two)), one);
}

TEST_CASE("a norm has the same dtype on every rank, also on one that keeps none of the gradients", "[clip][clipping]") {
    auto const check_norm = [](auto&& accelerator) {
        auto const net = std::make_shared<torch::nn::LinearImpl>(torch::nn::LinearOptions(1, 1).bias(false));
        net->to(torch::kDouble);
        auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.1});
        accelerator.backward(model(torch::full({1, 1}, 3.0, torch::kDouble)).sum());
        auto const norm = accelerator.clip_grad_norm(model, 1.0);
        CHECK(norm.scalar_type() == torch::kDouble);
        CHECK(norm.template item<double>() == Approx(3));
    };
    check_norm(Alone());
    check_norm(Replicated<>());
    check_norm(Replicated<sliced_overlapped>());
    check_norm(Spread());
}

namespace {

constexpr int64_t joint_windows = 4, joint_steps = 2;

/// Two losses of each micro-batch, sums over rows: the first reaches only `a`, the second both. A row weighs 1 in the first and 2 in the second.
auto joint_losses(auto&& a, auto&& b, torch::Tensor const& x) { return std::pair(a(x).pow(2).sum(), (a(x) * b(x)).abs().sum()); }

std::vector<torch::Tensor> joint_by_hand(bool weighted) {
    Mlp first, second;
    fill(first), fill(second);
    for (int64_t window = 0; window < joint_windows; ++window) {
        auto of_first = torch::zeros({}), of_second = torch::zeros({});
        for (int64_t m = window * joint_steps; m < (window + 1) * joint_steps; ++m) {
            auto const [one, two] = joint_losses([&](auto const& x) { return first.forward(x); }, [&](auto const& x) { return second.forward(x); }, Mlp::input(m, global_batch));
            of_first = of_first + (weighted ? (one + two) / 3 : one + two / 2) / (global_batch * joint_steps);
            of_second = of_second + two / (2 * global_batch * joint_steps);
        }
        auto const update = [](Mlp& net, torch::Tensor const& loss) {
            auto const gradients = torch::autograd::grad({loss}, net.parameters(), {}, true);
            torch::NoGradGuard const no_grad;
            for (size_t i = 0; i < gradients.size(); ++i) net.parameters()[i].sub_(gradients[i], 0.1);
        };
        update(first, of_first);
        update(second, of_second);
    }
    return weights_of({&first, &second});
}

template <class Run>
std::vector<torch::Tensor> joint(bool weighted) {
    Run accelerator({.gradient_accumulation_steps = joint_steps});
    auto first = std::make_shared<Mlp>(), second = std::make_shared<Mlp>();
    fill(*first), fill(*second);
    auto [a, b, of_a, of_b] = accelerator.prepare(first, second, acc::optim::Sgd{.lr = 0.1}, acc::optim::Sgd{.lr = 0.1});
    auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
    auto const backward = [&](torch::Tensor const& sum, int64_t weight) {
        if (weighted) accelerator.backward(acc::weighted(sum, static_cast<double>(weight)));
        else accelerator.backward(sum / weight);
    };
    for (int64_t m = 0; m < joint_windows * joint_steps; ++m) {
        auto window = accelerator.accumulate(a, b);
        auto const [one, two] = joint_losses(a, b, Mlp::input(m, global_batch).slice(0, begin, begin + rows));
        backward(one, rows);
        backward(two, 2 * rows);
        of_a.step(), of_a.zero_grad();
        of_b.step(), of_b.zero_grad();
    }
    return weights_of(accelerator, a, b);
}

}  // namespace

TEST_CASE("where a window of two models ends, a loss of one of them leaves the other to its own", "[backward][unused][window]") {
    for (bool weighted : {false, true}) {
        auto const by_hand = joint_by_hand(weighted);
        close(joint<Alone>(weighted), by_hand);
        close(joint<Replicated<>>(weighted), by_hand);
        close(joint<Replicated<overlapped>>(weighted), by_hand);
        close(joint<Replicated<sliced>>(weighted), by_hand);
        close(joint<Replicated<sliced_overlapped>>(weighted), by_hand);
        close(joint<Replicated<finding>>(weighted), by_hand);
        close(joint<Spread>(weighted), by_hand);
    }
}

namespace {

/// The weights of two models behind a step of each; the first has gradients of three losses, of which `no_sync` holds the middle one.
template <class Run>
std::vector<torch::Tensor> held_behind_complete() {
    Run accelerator;
    auto first = std::make_shared<Mlp>(), second = std::make_shared<Mlp>();
    fill(*first), fill(*second);
    auto [a, b, of_a, of_b] = accelerator.prepare(first, second, acc::optim::Sgd{.lr = 0.1}, acc::optim::Sgd{.lr = 0.1});
    auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
    auto const backward = [&](auto& model, int64_t number, double factor = 1) { accelerator.backward(model(Mlp::input(number, global_batch).slice(0, begin, begin + rows)).pow(2).mean() * factor); };
    auto const hold = [&, &a = a](double factor = 1) {
        auto const local = accelerator.no_sync(a);
        backward(a, 1, factor);
    };
    auto const refused = [&, &a = a, &of_a = of_a] {
        CHECK_THROWS_WITH(of_a.step(), contains("outside no_sync"));
        CHECK_THROWS_WITH(accelerator.clip_grad_norm(a, 1.0), contains("outside no_sync"));
    };
    backward(a, 0);
    hold(accelerator.is_main_process() ? INFINITY : 1);  // on one rank: no other one sees it before a reduction
    refused();
    backward(b, 3);
    of_b.step();
    CHECK_FALSE(of_b.step_was_skipped());
    of_a.zero_grad();
    {
        auto const window = accelerator.accumulate(a, b);
        backward(b, 3);
        CHECK_THROWS_WITH(of_a.step(), contains("with a loss that reaches this model"));  // what it had is cleared
    }
    backward(a, 0);
    hold();
    refused();
    backward(a, 2);
    of_a.step();
    return weights_of(accelerator, a, b);
}

}  // namespace

TEST_CASE("what no_sync adds to complete gradients waits for a reducing backward, and nobody steps before", "[backward][accumulation][window][step_guard]") {
    Mlp first, second;
    fill(first), fill(second);
    auto const update = [](Mlp& net, std::initializer_list<int64_t> numbers) {
        torch::optim::SGD optimizer(net.parameters(), 0.1);
        for (auto const number : numbers) net.forward(Mlp::input(number, global_batch)).pow(2).mean().backward();
        optimizer.step();
    };
    update(first, {0, 1, 2}), update(second, {3});
    auto const by_hand = weights_of({&first, &second});
    close(held_behind_complete<Alone>(), by_hand);
    close(held_behind_complete<Replicated<>>(), by_hand);
    close(held_behind_complete<Replicated<overlapped>>(), by_hand);
    close(held_behind_complete<Replicated<sliced>>(), by_hand);
    close(held_behind_complete<Replicated<finding>>(), by_hand);
    close(held_behind_complete<Spread>(), by_hand);
}

namespace {

constexpr int64_t turns = 6;

/// Of two models the losses of a window reach one or both.
torch::Tensor loss_of_turn(int64_t turn, auto&& a, auto&& b, torch::Tensor const& x) {
    constexpr std::array<std::pair<bool, bool>, turns> reached{{{true, false}, {false, true}, {false, true}, {true, true}, {true, false}, {true, true}}};
    auto const [by_a, by_b] = reached[static_cast<size_t>(turn)];
    torch::Tensor loss;
    if (by_a) loss = a(x).pow(2).mean();
    if (by_b) loss = by_a ? loss + b(x).abs().mean() : b(x).abs().mean();
    return loss;
}

/// The weights, and behind them the norms that clipping gives, after windows of `k` micro-batches.
template <class Optimizer, class Options>
std::vector<torch::Tensor> turns_by_hand(Options const& options, int64_t k) {
    Mlp first, second;
    fill(first), fill(second);
    auto parameters = first.parameters();
    for (auto const& p : second.parameters()) parameters.push_back(p);
    Optimizer optimizer(parameters, options);
    std::vector<torch::Tensor> norms;
    for (int64_t m = 0; m < turns * k; ++m) {
        (loss_of_turn(m / k, [&](auto const& x) { return first.forward(x); }, [&](auto const& x) { return second.forward(x); }, Mlp::input(m, global_batch)) / k).backward();
        if ((m + 1) % k != 0) continue;
        norms.push_back(torch::tensor(torch::nn::utils::clip_grad_norm_(parameters, 0.1)));
        optimizer.step();
        optimizer.zero_grad();
    }
    auto all = weights_of({&first, &second});
    for (auto const& norm : norms) all.push_back(norm.to(torch::kFloat));
    return all;
}

/// The same by a prepared loop, in two parts where a folder is given: the second goes on from a checkpoint behind micro-batch `stop`.
template <class Run, class Make>
std::vector<torch::Tensor> in_turns(Make const& make, int64_t k, int64_t stop = 0, std::filesystem::path const& folder = {}) {
    std::vector<torch::Tensor> all, norms;
    auto const part = [&](int64_t from, int64_t to) {
        Run accelerator({.gradient_accumulation_steps = k});
        auto first = std::make_shared<Mlp>(), second = std::make_shared<Mlp>();
        fill(*first), fill(*second);
        auto [a, b, of_both] = accelerator.prepare(first, second, make(*first, *second));
        if (from > 0) accelerator.load_state(folder);
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t m = from; m < to; ++m) {
            auto window = accelerator.accumulate(a, b);
            accelerator.backward(loss_of_turn(m / k, a, b, Mlp::input(m, global_batch).slice(0, begin, begin + rows)));
            auto const norm = accelerator.clip_grad_norm(std::tie(a, b), 0.1);
            if (accelerator.sync_gradients()) norms.push_back(norm.to(torch::kFloat));
            of_both.step(), of_both.zero_grad();
        }
        if (to < turns * k) return accelerator.save_state(folder);
        CHECK_THROWS_WITH(of_both.step(), contains("with a loss that reaches this model"));
        CHECK_THROWS_WITH(accelerator.clip_grad_norm(std::tie(a, b), 0.1), contains("with a loss that reaches this model"));
        all = weights_of(accelerator, a, b);
    };
    if (stop > 0) part(0, stop);
    part(stop, turns * k);
    all.insert(all.end(), norms.begin(), norms.end());
    return all;
}

}  // namespace

TEST_CASE("an optimizer of two models steps, and clips as one, those that a loss has reached", "[flat][optimizer][torch_adapter][clipping]") {
    using namespace torch::optim;
    auto const decayed = AdamWOptions(0.01).weight_decay(0.1);
    auto const recipe = [](auto&, auto&) { return acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1}; };
    auto const in_pythons_order = [](auto&, auto&) { return acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1, .operations = acc::Operations::Torch}; };
    auto const with_momentum = [](auto&, auto&) { return acc::optim::Sgd{.lr = 0.5, .momentum = 0.9}; };
    auto const held = [&](Mlp& first, Mlp& second) {
        auto parameters = first.parameters();
        for (auto const& p : second.parameters()) parameters.push_back(p);
        return std::make_shared<AdamW>(parameters, decayed);
    };
    for (int64_t k : {1, 2}) {
        auto const adamw = turns_by_hand<AdamW>(decayed, k), sgd = turns_by_hand<SGD>(SGDOptions(0.5).momentum(0.9), k);
        close(in_turns<Alone>(in_pythons_order, k), adamw);
        close(in_turns<Alone>(with_momentum, k), sgd);
        close(in_turns<Replicated<>>(recipe, k), adamw);
        close(in_turns<Replicated<overlapped>>(in_pythons_order, k), adamw);
        close(in_turns<Replicated<sliced>>(with_momentum, k), sgd);
        close(in_turns<Spread>(with_momentum, k), sgd);
        close(in_turns<Spread>(recipe, k), adamw);
        close(in_turns<Replicated<>>(held, k), adamw);
    }
    FolderOfRanks folder("turns");
    auto const same = [&]<class R>(R*, char const* name) {
        same_when_resumed({3, 4, 7}, folder / name, [&](int64_t stop, auto const& at) { return in_turns<R>(recipe, 2, stop, at); });
    };
    same(static_cast<Replicated<>*>(nullptr), "whole");
    same(static_cast<Replicated<sliced>*>(nullptr), "sliced");
    same(static_cast<Spread*>(nullptr), "spread");
}

namespace {

torch::optim::LBFGSOptions const searching = torch::optim::LBFGSOptions(0.5).max_iter(6).line_search_fn("strong_wolfe");

torch::Tensor regression(auto&& model, torch::Tensor const& x) { return (model(x) - x.sum(1, true).sin()).square().mean(); }

/// In fp64: a search makes much of a rounding.
std::shared_ptr<Mlp> wide() {
    auto net = std::make_shared<Mlp>();
    fill(*net);
    net->to(torch::kDouble);
    return net;
}
torch::Tensor wide_input() { return Mlp::input(0, global_batch).to(torch::kDouble); }

/// Three steps of an optimizer that evaluates the loss itself, as `make` gives it for a module's parameters; in two parts where a folder is
/// given: the second goes on from a checkpoint behind the first step.
template <class Run, class Make>
std::vector<torch::Tensor> evaluated(Make const& make, std::filesystem::path const& folder = {}) {
    std::vector<torch::Tensor> all, losses;
    auto const part = [&](int64_t from, int64_t to) {
        Run accelerator;
        auto net = wide();
        auto [model, optimizer] = accelerator.prepare(net, make(*net));
        if (from > 0) accelerator.load_state(folder);
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t step = from; step < to; ++step) {
            auto window = accelerator.accumulate(model);
            auto const loss = optimizer.step([&, &model = model, &optimizer = optimizer] {
                optimizer.zero_grad();
                auto const mine = regression(model, wide_input().slice(0, begin, begin + rows));
                accelerator.backward(mine);
                return mine;
            });
            losses.push_back(accelerator.reduce(loss, "mean"));
        }
        CHECK((optimizer.updates() == to - from && optimizer.steps() == to));
        if (to < 3) return static_cast<void>(accelerator.save_state(folder));
        all = weights_of(accelerator, model);
    };
    if (!folder.empty()) part(0, 1);
    part(folder.empty() ? 0 : 1, 3);
    all.insert(all.end(), losses.begin(), losses.end());
    return all;
}

template <class Make>
std::vector<torch::Tensor> evaluated_by_hand(Make const& make) {
    auto const net = wide();
    auto const optimizer = make(*net);
    std::vector<torch::Tensor> losses;
    for (int64_t step = 0; step < 3; ++step)
        losses.push_back(optimizer->step([&] {
            optimizer->zero_grad();
            auto const loss = regression([&](auto const& x) { return net->forward(x); }, wide_input());
            loss.backward();
            return loss;
        }).detach());
    auto all = weights_of({net.get()});
    all.insert(all.end(), losses.begin(), losses.end());
    return all;
}

}  // namespace

TEST_CASE("an optimizer that evaluates the loss itself goes the same way on all ranks", "[torch_adapter][optimizer]") {
    auto const lbfgs = [](Mlp& net) { return std::make_shared<torch::optim::LBFGS>(net.parameters(), searching); };
    auto const adamw = [](Mlp& net) { return std::make_shared<torch::optim::AdamW>(net.parameters(), torch::optim::AdamWOptions(0.01)); };
    auto const recipe = [](Mlp&) { return acc::optim::AdamW{.lr = 0.01}; };
    auto const by_hand = evaluated_by_hand(lbfgs);
    CHECK(by_hand.back().item<double>() < 0.5 * by_hand[by_hand.size() - 3].item<double>());
    close(evaluated<Alone>(lbfgs), by_hand);
    close(evaluated<Replicated<>>(lbfgs), by_hand);
    close(evaluated<Replicated<overlapped>>(lbfgs), by_hand);
    close(evaluated<Replicated<>>(adamw), evaluated_by_hand(adamw));
    close(evaluated<Replicated<>>(recipe), evaluated_by_hand(adamw));
    close(evaluated<Spread>(recipe), evaluated_by_hand(adamw));
    FolderOfRanks folder("search");
    same_when_resumed({1}, folder / "saved", [&](int64_t, auto const& at) { return evaluated<Replicated<>>(lbfgs, at); });

    Replicated<> accelerator;
    auto net = wide();
    auto [model, optimizer] = accelerator.prepare(net, lbfgs(*net));
    int64_t evaluations = 0, poisoned = 3;
    auto const step = [&, &model = model, &optimizer = optimizer] {
        optimizer.step([&] {
            optimizer.zero_grad();
            auto const loss = regression(model, wide_input()) * (++evaluations == poisoned ? std::nan("") : 1.0);
            accelerator.backward(loss);
            return loss;
        });
    };
    auto const before = weights_of({net.get()});
    step();
    CHECK((optimizer.step_was_skipped() && accelerator.optimizer_step_was_skipped() && optimizer.updates() == 0 && evaluations == poisoned));
    auto const after = weights_of({net.get()});
    for (size_t i = 0; i < before.size(); ++i) CHECK(torch::equal(before[i], after[i]));
    step();
    CHECK((!optimizer.step_was_skipped() && optimizer.updates() == 1));
    CHECK_FALSE(torch::equal(before[0], net->a->weight));
    CHECK_THROWS_WITH(optimizer.step([&, &model = model] { return regression(model, wide_input()); }), contains("call accelerator.backward first") || contains("begin the next"));
}

namespace {

constexpr int64_t shared_windows = 6, poisoned_window = 2;

bool is_bias(std::string const& name) { return name.ends_with("bias"); }

std::vector<torch::Tensor> biases(Mlp const& net) { return {net.a->bias, net.b->bias}; }
std::vector<torch::Tensor> matrices(Mlp const& net) { return {net.a->weight, net.b->weight}; }

/// The weights, and behind them the norms, when the biases have one optimizer and the matrices another; a window that is not finite is left out.
std::vector<torch::Tensor> shared_by_hand(int64_t k) {
    Mlp net;
    fill(net);
    torch::optim::SGD of_biases(biases(net), torch::optim::SGDOptions(0.5).momentum(0.9));
    torch::optim::AdamW of_matrices(matrices(net), torch::optim::AdamWOptions(0.01).weight_decay(0.1));
    std::vector<torch::Tensor> norms;
    for (int64_t m = 0; m < shared_windows * k; ++m) {
        if (m / k == poisoned_window) continue;
        (regression([&](auto const& x) { return net.forward(x); }, Mlp::input(m, global_batch)) / k).backward();
        if ((m + 1) % k != 0) continue;
        norms.push_back(torch::tensor(torch::nn::utils::clip_grad_norm_(net.parameters(), 0.1)).to(torch::kFloat));
        of_biases.step(), of_matrices.step();
        net.zero_grad();
    }
    auto all = weights_of({&net});
    all.insert(all.end(), norms.begin(), norms.end());
    return all;
}

/// The same by a prepared loop, in two parts where a folder is given. `make(net)` gives both optimizers.
template <class Run, class Make>
std::vector<torch::Tensor> shared_by(Make const& make, int64_t k, int64_t stop = 0, std::filesystem::path const& folder = {}) {
    std::vector<torch::Tensor> all, norms;
    auto const part = [&](int64_t from, int64_t to) {
        Run accelerator({.gradient_accumulation_steps = k});
        auto net = std::make_shared<Mlp>();
        fill(*net);
        auto [first, second] = make(*net);
        auto [model, of_biases, of_matrices] = accelerator.prepare(net, first, second);
        if (from > 0) accelerator.load_state(folder);
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t m = from; m < to; ++m) {
            auto window = accelerator.accumulate(model);
            auto const loss = regression(model, Mlp::input(m, global_batch).slice(0, begin, begin + rows));
            accelerator.backward(m / k == poisoned_window ? loss * std::nan("") : loss);
            auto const norm = accelerator.clip_grad_norm(model, 0.1);
            if (accelerator.sync_gradients() && m / k != poisoned_window) norms.push_back(norm.to(torch::kFloat));
            of_biases.step(), of_matrices.step();
            if (accelerator.sync_gradients()) CHECK((of_biases.step_was_skipped() == (m / k == poisoned_window) && of_matrices.step_was_skipped() == of_biases.step_was_skipped()));
            of_biases.zero_grad(), of_matrices.zero_grad();
        }
        if (to < shared_windows * k) return accelerator.save_state(folder);
        CHECK((of_biases.steps() == shared_windows - 1 && of_matrices.steps() == shared_windows - 1));
        all = weights_of(accelerator, model);
    };
    if (stop > 0) part(0, stop);
    part(stop, shared_windows * k);
    all.insert(all.end(), norms.begin(), norms.end());
    return all;
}

}  // namespace

TEST_CASE("several optimizers share one model", "[flat][optimizer][torch_adapter][recipes]") {
    auto const recipes = [](Mlp&) {
        return std::pair(acc::optim::Sgd{.lr = 0.5, .momentum = 0.9, .parameters = is_bias},
                         acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1, .parameters = [](std::string const& name) { return !is_bias(name); }});
    };
    auto const in_pythons_order = [&](Mlp& net) {
        auto both = recipes(net);
        both.first.operations = both.second.operations = acc::Operations::Torch;
        return both;
    };
    auto const held = [&](Mlp& net) {
        return std::pair(recipes(net).first, std::make_shared<torch::optim::AdamW>(matrices(net), torch::optim::AdamWOptions(0.01).weight_decay(0.1)));
    };
    auto const both_held = [&](Mlp& net) {
        return std::pair(std::make_shared<torch::optim::SGD>(biases(net), torch::optim::SGDOptions(0.5).momentum(0.9)), held(net).second);
    };
    for (int64_t k : {1, 2}) {
        auto const by_hand = shared_by_hand(k);
        close(shared_by<Alone>(recipes, k), by_hand);
        close(shared_by<Alone>(in_pythons_order, k), by_hand);
        close(shared_by<Alone>(both_held, k), by_hand);
        close(shared_by<Replicated<>>(recipes, k), by_hand);
        close(shared_by<Replicated<overlapped>>(held, k), by_hand);
        close(shared_by<Replicated<sliced>>(recipes, k), by_hand);
        close(shared_by<Replicated<sliced_overlapped>>(recipes, k), by_hand);
        close(shared_by<Spread>(recipes, k), by_hand);
    }
    FolderOfRanks folder("shared");
    auto const same = [&]<class R>(R*, char const* name) {
        same_when_resumed({3, 8}, folder / name, [&](int64_t stop, auto const& at) { return shared_by<R>(recipes, 2, stop, at); });
    };
    same(static_cast<Replicated<>*>(nullptr), "whole");
    same(static_cast<Replicated<sliced>*>(nullptr), "sliced");
    same(static_cast<Spread*>(nullptr), "spread");
}

TEST_CASE("what several optimizers of one model may not do", "[optimizer][recipes][flat]") {
    Replicated<> accelerator;
    auto const net = [] {
        auto made = std::make_shared<Mlp>();
        fill(*made);
        return made;
    };
    CHECK_THROWS_WITH(accelerator.prepare(net(), acc::optim::Sgd{}, acc::optim::AdamW{.parameters = is_bias}), contains("2 of the optimizers have parameter a.bias"));
    CHECK_THROWS_WITH(accelerator.prepare(net(), acc::optim::Sgd{.parameters = [](std::string const&) { return false; }}), contains("match no parameter") && contains("a.weight"));

    auto [model, of_biases, of_matrix] = accelerator.prepare(net(), acc::optim::Sgd{.lr = 0.5, .parameters = is_bias},
                                                             acc::optim::Adam{.lr = 0.5, .parameters = [](std::string const& name) { return name == "a.weight"; }});
    auto const untouched = model->b->weight.detach().clone();
    auto const backward = [&, &model = model] { accelerator.backward(regression(model, Mlp::input(0, global_batch))); };
    backward();
    of_biases.step();
    CHECK_THROWS_WITH(of_biases.step(), contains("begin the next"));
    of_matrix.step();
    CHECK_THROWS_WITH(of_matrix.step(), contains("begin the next"));
    CHECK_THROWS_WITH(accelerator.clip_grad_norm(model, 1.0), contains("begin the next"));
    CHECK(torch::equal(model->b->weight, untouched));
    CHECK((of_biases.steps() == 1 && of_matrix.steps() == 1));
    if (accelerator.num_processes() == 1) CHECK(of_matrix.state_bytes() == 2 * 6 * 32 * 4);  // nothing is kept of what it does not have
    of_biases.zero_grad();
    backward();
    of_matrix.step(), of_biases.step();  // in either order
    of_biases.zero_grad();
    CHECK_THROWS_WITH(of_matrix.step(), contains("call accelerator.backward first"));

    // A loss scale is taken out, and looked after, once.
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp16<>, acc::sharding::None, acc::loader::Stateful<>> scaled({.grad_scaler = {.init_scale = 1024}});
    auto [half, biases_of_half, rest_of_half] = scaled.prepare(net(), acc::optim::Sgd{.lr = 0.5, .parameters = is_bias},
                                                               acc::optim::Sgd{.lr = 0.25, .parameters = [](std::string const& name) { return !is_bias(name); }});
    for (double const factor : {std::numeric_limits<double>::infinity(), 1.0}) {
        auto const before = weights_of({&*half});
        auto window = scaled.accumulate(half);
        auto const loss = regression(half, Mlp::input(0, global_batch));
        scaled.backward(loss * factor);
        biases_of_half.step(), rest_of_half.step();
        CHECK(scaled.scaler().get_scale() == 512);
        CHECK((biases_of_half.step_was_skipped() == (factor != 1) && rest_of_half.step_was_skipped() == (factor != 1)));
        auto const after = weights_of({&*half});
        auto const parameters = half->parameters();
        for (size_t i = 0; i < 4; ++i) {
            auto const expected = factor != 1 ? before[i] : before[i] - (i % 2 == 1 ? 0.5 : 0.25) * parameters[i].grad();
            CHECK(torch::allclose(after[i], expected, 1e-6, 1e-7));
        }
        biases_of_half.zero_grad(), rest_of_half.zero_grad();
    }
}

TEST_CASE("a model may go from one optimizer to another", "[optimizer][torch_adapter][clipping]") {
    auto const trained = [](auto&& accelerator, auto const& make) {
        auto net = std::make_shared<Mlp>();
        fill(*net);
        auto [model, first] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.5, .momentum = 0.9});
        auto second = accelerator.prepare_optimizer(make(*net), model);
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        auto const train = [&, &model = model](auto& optimizer) {
            for (int64_t step = 0; step < 3; ++step)
                optimizer.step([&] {
                    optimizer.zero_grad();
                    auto const loss = regression(model, Mlp::input(0, global_batch).slice(0, begin, begin + rows));
                    accelerator.backward(loss);
                    accelerator.clip_grad_norm(model, 0.05);
                    return loss;
                });
        };
        train(first), train(second), train(first);
        return weights_of({net.get()});
    };
    auto const by_hand = [](auto const& make) {
        Mlp net;
        fill(net);
        torch::optim::SGD first(net.parameters(), torch::optim::SGDOptions(0.5).momentum(0.9));
        auto const second = make(net);
        auto const train = [&](torch::optim::Optimizer& optimizer) {
            for (int64_t step = 0; step < 3; ++step)
                optimizer.step([&] {
                    optimizer.zero_grad();
                    auto const loss = regression([&](auto const& x) { return net.forward(x); }, Mlp::input(0, global_batch));
                    loss.backward();
                    torch::nn::utils::clip_grad_norm_(net.parameters(), 0.05);
                    return loss;
                });
        };
        train(first), train(*second), train(first);
        return weights_of({&net});
    };
    auto const sgd = [](Mlp& net) { return std::make_shared<torch::optim::SGD>(net.parameters(), torch::optim::SGDOptions(0.1)); };
    auto const rule = [](Mlp&) { return acc::optim::Sgd{.lr = 0.1, .operations = acc::Operations::Torch}; };
    close(trained(Alone(), sgd), by_hand(sgd));
    close(trained(Replicated<>(), sgd), by_hand(sgd));
    close(trained(Replicated<>(), rule), by_hand(sgd));
    close(trained(Replicated<sliced>(), rule), by_hand(sgd));
}

TEST_CASE("a second backward before the step adds to gradients that have been reduced", "[ddp][backward]") {
    auto const trained = [](auto&& accelerator, bool apart, bool one_graph) {
        auto net = std::make_shared<Mlp>();
        fill(*net);
        auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.1, .momentum = 0.5});
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t step = 0; step < 6; ++step) {
            auto window = accelerator.accumulate(model);
            auto const x = Mlp::input(step, global_batch).slice(0, begin, begin + rows);
            auto const y = model(x);
            auto const real = y.pow(2).mean(), made = (one_graph ? y : model(-2 * x)).abs().mean();
            if (apart) accelerator.backward(real, {.retain_graph = one_graph}), accelerator.backward(made);
            else accelerator.backward(real + made);
            accelerator.clip_grad_norm(model, 0.3);
            optimizer.step();
            optimizer.zero_grad();
        }
        return weights_of({net.get()});
    };
    for (int64_t steps_a_window : {1, 2}) {
        acc::accelerator_options const options{.gradient_accumulation_steps = steps_a_window};
        for (bool one_graph : {false, true}) {
            auto const one = trained(Alone(options), false, one_graph);
            close(trained(Replicated<>(options), true, one_graph), one);
            close(trained(Replicated<overlapped>(options), true, one_graph), one);
            close(trained(Replicated<sliced>(options), true, one_graph), one);
            close(trained(Replicated<sliced_overlapped>(options), true, one_graph), one);
        }
    }
}

TEST_CASE("gradients begin anew behind a step, whether or not somebody clears them", "[ddp]") {
    auto const trained = [](auto&& accelerator, bool clears) {
        auto net = std::make_shared<Mlp>();
        fill(*net);
        auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.1});
        auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t step = 0; step < 6; ++step) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(model(Mlp::input(step, global_batch).slice(0, begin, begin + rows)).pow(2).mean());
            optimizer.step();
            if (clears) optimizer.zero_grad();
        }
        return weights_of({net.get()});
    };
    for (int64_t steps_a_window : {1, 2}) {
        acc::accelerator_options const options{.gradient_accumulation_steps = steps_a_window};
        auto const one = trained(Alone(options), true);
        close(trained(Alone(options), false), one);
        close(trained(Replicated<>(options), false), one);
        close(trained(Replicated<sliced>(options), false), one);
        close(trained(Replicated<sliced_overlapped>(options), false), one);
    }
    Replicated<sliced> keeping({.keep_gradients = true});
    if (keeping.num_processes() > 1) CHECK_THROWS_WITH(trained(keeping, false), contains("E_CALL_ORDER") && contains("zero_grad"));
}

TEST_CASE("exactly one reduction of every gradient for each optimizer step", "[ddp]") {
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<overlapped>, acc::loader::Stateful<>> accelerator({.gradient_accumulation_steps = 4});
    auto net = std::make_shared<Mlp>();
    auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.1});
    if (accelerator.num_processes() == 1) return;
    int64_t reduced = 0;
    for (int64_t step = 0; step < 8; ++step) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(Mlp::input(step, 4)).pow(2).mean());
        if (accelerator.sync_gradients())
            for (auto const& bucket : model.state().timeline()) reduced += bucket.bytes;
        else CHECK(model.state().stage() == acc::sharding::Stage::Accumulating);
        optimizer.step();
        optimizer.zero_grad();
    }
    int64_t bytes = 0;
    for (auto const& flat : model.state().flats()) bytes += static_cast<int64_t>(flat.gradients.nbytes());
    CHECK(reduced == 2 * bytes);
}

TEST_CASE("the norm is added up while gradients are reduced", "[ddp][buffer]") {
    auto const measured = []<class Run>(Run& accelerator) {
        auto net = std::make_shared<Mlp>();
        fill(*net);
        auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.1});
        Alone alone;
        auto one = alone.prepare([] {
            auto same = std::make_shared<Mlp>();
            fill(*same);
            return same;
        }());
        auto const n = accelerator.num_processes();
        for (int64_t step = 0; step < 3; ++step) {
            auto const x = Mlp::input(step, 2 * n);
            for (auto const& p : one->parameters()) p.mutable_grad() = at::Tensor();
            alone.backward(one(x).pow(2).mean());
            double exact = 0;
            for (auto const& p : one->parameters()) exact += p.grad().to(at::kDouble).square().sum().template item<double>();
            auto window = accelerator.accumulate(model);
            accelerator.backward(model(x.slice(0, 2 * accelerator.process_index(), 2 * accelerator.process_index() + 2)).pow(2).mean());
            auto const known = model.state().known_squares();
            CHECK(known.has_value() == (n > 1));
            if (known) CHECK(*known == Approx(exact).epsilon(1e-5));
            CHECK(accelerator.clip_grad_norm(model, 1e9).template item<double>() == Approx(std::sqrt(exact)).epsilon(1e-5));
            // A user's hand is noticed; a NaN on one rank is not taken for a norm.
            model->a->bias.mutable_grad().mul_(2);
            CHECK_FALSE(model.state().known_squares());
            optimizer.zero_grad();
            if (n == 1) continue;
            accelerator.trigger_sync_in_backward(model);
            accelerator.backward(model(x.slice(0, 0, 2)).pow(2).mean() * (accelerator.is_main_process() ? NAN : 1.0));
            CHECK_FALSE(model.state().known_squares());
            optimizer.step();
            CHECK(optimizer.step_was_skipped());
            optimizer.zero_grad();
        }
    };
    Replicated<> gathered;
    measured(gathered);
    Replicated<overlapped> in_buckets;
    measured(in_buckets);
    Replicated<sliced> in_slices;
    measured(in_slices);
}

TEST_CASE("no_sync keeps gradients local until the next reducing backward", "[ddp]") {
    Replicated<overlapped> accelerator;
    auto net = std::make_shared<Mlp>();
    fill(*net);
    auto model = accelerator.prepare(net);
    auto const rank = accelerator.process_index(), n = accelerator.num_processes();
    auto loss = [&](int64_t step) { return model(Mlp::input(step, 4 * n).slice(0, 4 * rank, 4 * rank + 4)).pow(2).mean(); };
    {
        auto local = accelerator.no_sync(model);
        accelerator.backward(loss(0));
    }
    auto const mine = model->a->bias.grad().clone();
    if (n > 1) CHECK_FALSE(torch::equal(accelerator.reduce(mine, "mean"), mine));
    accelerator.backward(loss(1));
    auto const all = model->a->bias.grad().clone();
    CHECK(torch::allclose(accelerator.reduce(all, "mean"), all, 1e-6, 1e-8));
}
