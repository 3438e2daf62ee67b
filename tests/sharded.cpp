// Models whose units are spread over the ranks equal one process. Run under mpirun -n 1, 2, 4; the one process is part of each rank.
#include "support/catch.hpp"
#include "support/folder_of_ranks.hpp"
#include "support/units.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <accelerate/sharding/fsdp.hpp>
#include <array>
#include <atomic>
#include <fstream>
#include <limits>
#include <unistd.h>

namespace acc = accelerate;

namespace {

using units::Block, units::Fork, units::Nested;

template <class Device, class Sharding>
using Loop = acc::Accelerator<Device, acc::precision::Fp32, Sharding, acc::loader::Stateful<>>;
using Alone = Loop<acc::device::BasicCpu<acc::comm::Self>, acc::sharding::None>;
template <acc::fsdp O = acc::fsdp{}>
using Spread = Loop<acc::device::Cpu, acc::sharding::Fsdp<O>>;
using Threads = acc::device::BasicCpu<acc::comm::Threads>;

torch::Tensor uniform(std::initializer_list<int64_t> shape, int64_t seed) {
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
    return torch::empty(shape).uniform_(-1, 1, generator);
}

/// An embedding tied to the head, a loose parameter, a frozen part of a unit and a frozen unit, a unit used twice, a unit with two
/// results, a unit inside a unit, and initialisation in a constructor.
template <class S = acc::Plain>
struct Model : torch::nn::Module {
    static constexpr int64_t vocabulary = 11, width = 6, context = 5;
    explicit Model(int64_t depth)
        : words(this, "words", vocabulary, width), position(register_parameter("position", torch::randn({context, width}) * 0.1)), blocks(this, "blocks", depth, width),
          fork(this, "fork", width), twice(this, "twice", width, width), frozen(this, "frozen", width, width), nested(this, "nested", width),
          head(register_module("head", torch::nn::Linear(torch::nn::LinearOptions(width, vocabulary).bias(false)))) {
        acc::tie_weights(*head, "weight", head->weight, words->weight);
        torch::NoGradGuard no_grad;
        for (auto& p : blocks->parameters())
            if (p.dim() > 1) torch::nn::init::xavier_uniform_(p);
        for (auto& p : frozen->parameters()) p.requires_grad_(false);
        fork->a->weight.requires_grad_(false);
    }
    torch::Tensor forward(torch::Tensor tokens) {
        auto x = blocks(words(tokens) + position);
        auto [left, right] = fork(x);
        x = twice(left) + frozen(twice(right));
        return head(nested(x));
    }
    acc::Unit<S, torch::nn::Embedding> words;
    torch::Tensor position;
    acc::Layers<S, Block<S>> blocks;
    acc::Unit<S, Fork<S>> fork;
    acc::Unit<S, torch::nn::Linear> twice, frozen;
    acc::Unit<S, Nested<S>> nested;
    torch::nn::Linear head;
};

struct Result {
    std::vector<double> losses, norms;
    acc::TensorMap before, after;
};

constexpr int64_t global_batch = 8;

/// Each rank takes its rows of the same global batch; windows of `accumulation` micro-batches.
template <class Run, class Make, class Recipe>
Result train(Run& accelerator, Make const& make, Recipe const& recipe, int64_t steps = 20) {
    auto [model, optimizer] = accelerator.prepare(make(accelerator), recipe);
    Result result;
    result.before = accelerator.get_state_dict(model);
    auto const n = accelerator.num_processes(), rows = global_batch / n, first = rows * accelerator.process_index();
    for (int64_t step = 0; step < steps; ++step) {
        auto window = accelerator.accumulate(model);
        auto const draw = uniform({global_batch, Model<>::context + 1}, 100 + step).slice(0, first, first + rows);
        auto const tokens = ((draw + 1) * 5.49).to(torch::kLong);
        auto const logits = model(tokens.slice(1, 0, Model<>::context));
        auto const loss = torch::nn::functional::cross_entropy(logits.flatten(0, 1), tokens.slice(1, 1).flatten());
        accelerator.backward(loss);
        auto const norm = accelerator.clip_grad_norm(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
        result.losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
        result.norms.push_back(norm.template item<double>());
    }
    result.after = accelerator.get_state_dict(model);
    return result;
}

void same(acc::TensorMap const& ours, acc::TensorMap const& one, double tolerance) {
    REQUIRE(ours.size() == one.size());
    for (auto const& [name, w] : one) {
        INFO(name);
        CHECK((ours.at(name) - w).abs().max().item<double>() <= tolerance);
    }
}

void compare(Result const& ours, Result const& one) {
    same(ours.before, one.before, 0);
    REQUIRE(ours.losses.size() == one.losses.size());
    for (size_t i = 0; i < one.losses.size(); ++i) {
        CHECK(std::abs(ours.losses[i] - one.losses[i]) <= 1e-6 * one.losses[i]);
        CHECK(std::abs(ours.norms[i] - one.norms[i]) <= 1e-5 * one.norms[i]);
    }
    same(ours.after, one.after, 2e-5);
    CHECK(one.losses.back() < one.losses.front());
}

auto const by_make = [](auto& accelerator) { return accelerator.template make<Model>(int64_t{3}); };
acc::optim::Sgd const sgd{.lr = 0.1, .momentum = 0.9};

}  // namespace

TEST_CASE("a sharded model trains as one process does, from the same weights", "[fsdp][sharded][sharded_unit][unit_tree]") {
    Alone one;
    auto const expected = train(one, by_make, sgd);
    Spread<> spread;
    compare(train(spread, by_make, sgd), expected);
    Spread<acc::fsdp{.reshard_after_forward = false}> kept;
    compare(train(kept, by_make, sgd), expected);
    // ... and another sharding begins with these weights too.
    Loop<acc::device::Cpu, acc::sharding::Ddp<>> replicated;
    auto net = replicated.prepare(by_make(replicated));
    same(replicated.get_state_dict(net), expected.before, 0);
}

TEST_CASE("accumulation, and AdamW over stretches", "[fsdp]") {
    acc::optim::AdamW const adamw{.lr = 1e-2, .weight_decay = 0.1, .no_decay_on_norms_and_biases = true};
    Alone one({.gradient_accumulation_steps = 2});
    Spread<> spread({.gradient_accumulation_steps = 2});
    auto const expected = train(one, by_make, adamw), ours = train(spread, by_make, adamw);
    same(ours.before, expected.before, 0);
    for (size_t i = 0; i < expected.losses.size(); ++i) CHECK(std::abs(ours.losses[i] - expected.losses[i]) <= 5e-6 * expected.losses[i]);
    // Frozen parameters stay as they were to the last bit: no decay reaches them.
    for (auto const* name : {"frozen.weight", "frozen.bias", "fork.a.weight"}) CHECK(torch::equal(ours.after.at(name), ours.before.at(name)));
}

TEST_CASE("a sharded model in bf16 learns as one in fp32 does, and as much of it is kept as is shared", "[fsdp][sharded_unit][supported]") {
    using Low = acc::precision::Bf16<acc::bf16{.parameters = at::kBFloat16}>;
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Low, acc::sharding::None, acc::loader::Stateful<>> one;
    acc::Accelerator<acc::device::Cpu, Low, acc::sharding::Fsdp<>, acc::loader::Stateful<>> spread;
    Alone wide;
    auto const exact = train(wide, by_make, sgd, 10), expected = train(one, by_make, sgd, 10), ours = train(spread, by_make, sgd, 10);
    same(ours.before, expected.before, 0);
    for (auto const& [name, w] : ours.before) CHECK(torch::equal(w, exact.before.at(name).to(at::kBFloat16)));
    for (size_t i = 0; i < exact.losses.size(); ++i) {
        CHECK(std::abs(ours.losses[i] - exact.losses[i]) <= 0.02 * exact.losses[i]);
        CHECK(std::abs(ours.norms[i] - exact.norms[i]) <= 0.05 * exact.norms[i]);
    }
    for (auto const* name : {"frozen.weight", "frozen.bias", "fork.a.weight"}) CHECK(torch::equal(ours.after.at(name), ours.before.at(name)));

    auto [model, optimizer] = spread.prepare(by_make(spread), acc::optim::AdamW{.lr = 1e-6, .weight_decay = 0});
    for (auto const* unit : model.state().engine().units)
        if (unit->shard().defined()) CHECK((unit->shard().scalar_type() == at::kBFloat16 && unit->gradient().scalar_type() == at::kBFloat16));
    auto const before = spread.get_state_dict(model).at("twice.weight");
    auto window = spread.accumulate(model);
    spread.backward(model(torch::arange(2 * Model<>::context).view({2, -1}) % Model<>::vocabulary).square().mean());
    optimizer.step();
    CHECK(torch::equal(spread.get_state_dict(model).at("twice.weight"), before));  // far below bf16's distances, but the masters have moved
    int64_t masters = 0;
    for (auto const& [name, t] : optimizer.state_dict().tensors)
        if (name.starts_with("master.")) {
            ++masters;
            CHECK((t.scalar_type() == at::kFloat && !torch::equal(t, t.to(at::kBFloat16).to(at::kFloat))));
        }
    CHECK(masters > 0);
}

TEST_CASE("a sharded teacher that is prepared for evaluation keeps no gradients and gives what one process's gives", "[fsdp][sharded_unit]") {
    auto const learn = [](auto& accelerator) {
        auto const teacher = accelerator.prepare_model(by_make(accelerator), {.evaluation_mode = true});
        auto const student = accelerator.prepare_model(by_make(accelerator));
        auto optimizer = accelerator.prepare_optimizer(sgd, student);
        auto const before = accelerator.get_state_dict(teacher);
        auto const n = accelerator.num_processes(), rows = global_batch / n, first = rows * accelerator.process_index();
        Result result;
        for (int64_t step = 0; step < 6; ++step) {
            auto const tokens = ((uniform({global_batch, Model<>::context}, step) + 1) * 5.49).to(torch::kLong).slice(0, first, first + rows);
            auto window = accelerator.accumulate(student);
            auto const loss = torch::mse_loss(student(tokens), 1 - teacher(tokens));
            accelerator.backward(loss);
            optimizer.step();
            optimizer.zero_grad();
            result.losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
        }
        same(accelerator.get_state_dict(teacher), before, 0);
        for (auto const& p : teacher->parameters()) CHECK((!p.requires_grad() && !p.grad().defined()));
        result.after = accelerator.get_state_dict(student);
        return result;
    };
    Alone alone;
    Spread<> spread;
    auto const one = learn(alone), ours = learn(spread);
    for (size_t i = 0; i < one.losses.size(); ++i) CHECK(std::abs(ours.losses[i] - one.losses[i]) <= 1e-6 * one.losses[i]);
    same(ours.after, one.after, 2e-5);
    CHECK(one.losses.back() < one.losses.front());
}

TEST_CASE("a model that knows nothing of units is one unit", "[fsdp]") {
    auto const plain = [](auto&) {
        auto net = std::make_shared<Model<>>(2);
        torch::NoGradGuard no_grad;
        int64_t seed = 0;
        for (auto& [name, p] : acc::unique_parameters(*net)) p.copy_(uniform({p.numel()}, ++seed).view(p.sizes()) * 0.3);
        return net;
    };
    Alone one;
    Spread<> spread;
    compare(train(spread, plain, sgd, 10), train(one, plain, sgd, 10));
}

namespace {

struct NeverTrained : torch::nn::Module {
    explicit NeverTrained(at::ScalarType dtype) : scale(register_parameter("scale", torch::full({3}, 2).to(dtype), false)), weight(register_parameter("weight", torch::ones({3}))) {}
    torch::Tensor forward(torch::Tensor const& x) { return x * scale * weight; }
    torch::Tensor scale, weight;
};

}  // namespace

TEST_CASE("a parameter that has never required a gradient is sharded, and goes", "[ready_hook][sharded_unit]") {
    Spread<> accelerator;
    {
        auto [model, optimizer] = accelerator.prepare(std::make_shared<NeverTrained>(at::kFloat), acc::optim::Sgd{.lr = 0.25});
        accelerator.backward(model(torch::ones({3})).sum());
        optimizer.step();
        auto const state = accelerator.get_state_dict(model);
        CHECK((state.at("weight").eq(0.5).all().item<bool>() && state.at("scale").eq(2).all().item<bool>()));
    }
    CHECK_THROWS_WITH(accelerator.prepare(std::make_shared<NeverTrained>(at::kLong)), contains("E_CONFIG") && contains("units of their own"));
}

TEST_CASE("between its forward and its backward a unit holds nothing", "[sharded_unit]") {
    Spread<> accelerator;
    auto [model, optimizer] = accelerator.prepare(by_make(accelerator), sgd);
    auto const held = [&](torch::Tensor const& p) { return static_cast<int64_t>(p.storage().nbytes()); };
    auto const units = [&, &model = model] {  // clang 14 does not capture structured bindings by itself
        int64_t bytes = held(model->twice->weight) + held(model->fork->b->weight) + held(model->nested->scale) + held(model->nested->inside->up->weight);
        for (auto const& block : *model->blocks) bytes += held(block->up->weight);
        return bytes;
    };
    for (int64_t step = 0; step < 3; ++step) {
        CHECK(units() == 0);
        auto const tokens = torch::arange(2 * Model<>::context).view({2, -1}) % Model<>::vocabulary;
        auto const loss = model(tokens).pow(2).mean();
        CHECK(units() == 0);
        CHECK(held(model->position) > 0);  // the root stays
        accelerator.backward(loss);
        CHECK(units() == 0);
        CHECK(held(model->position) == 0);
        optimizer.step();
        optimizer.zero_grad();
    }
    // What this rank holds for good is its share, and no more than padding above it.
    int64_t whole = 0, mine = 0;
    for (auto const& [name, p] : acc::unique_parameters(*model)) whole += p.numel();
    for (auto const* unit : model.state().engine().units)
        if (unit->shard().defined()) mine += unit->shard().numel();
    auto const n = accelerator.num_processes();
    CHECK(mine <= whole / n + 16 * 40);
    CHECK(model.state().engine().prefetched * 2 > model.state().engine().gathers);
}

TEST_CASE("a parameter that is away is a sentence to who touches it", "[sharded_unit]") {
    Spread<> accelerator;
    auto [model, optimizer] = accelerator.prepare(by_make(accelerator), sgd);
    auto const& net = *model;
    auto const& weight = net.twice->weight;
    auto const away = [&](torch::Tensor const& t, std::string const& of_unit) {
        torch::NoGradGuard const no_grad;
        CHECK_THROWS_WITH(t.sum(), contains("E_CALL_ORDER") && contains(of_unit) && contains("get_state_dict"));
        CHECK_THROWS_WITH(t.add(1), contains(of_unit));
        CHECK_THROWS_WITH(t.fill_(1), contains(of_unit));
        CHECK_THROWS_WITH(t.view({-1}).clone(), contains(of_unit));
        CHECK((t.numel() > 0 && t.storage().nbytes() == 0 && t.requires_grad()));
    };
    auto const tokens = torch::arange(2 * Model<>::context).view({2, -1}) % Model<>::vocabulary;
    for (int64_t step = 0; step < 2; ++step) {
        away(weight, "unit \"twice\"");
        away(net.position, "the root unit");
        auto const loss = model(tokens).pow(2).mean();
        away(weight, "unit \"twice\"");
        CHECK(net.position.detach().sum().isfinite().item<bool>());  // the root is there until its backward has ended
        accelerator.backward(loss);
        away(weight, "unit \"twice\"");
        away(net.position, "the root unit");
        optimizer.step();
        optimizer.zero_grad();
    }
    CHECK(accelerator.get_state_dict(model).at("twice.weight").isfinite().all().item<bool>());
    away(weight, "unit \"twice\"");
    auto const whole = torch::ones(weight.sizes());
    static_cast<torch::Tensor>(weight).set_data(whole);  // would be lost when it is gathered
    for (int again = 0; again < 2; ++again) CHECK_THROWS_WITH(model(tokens), contains("E_CALL_ORDER") && contains("twice.weight") && contains("other memory"));
}

TEST_CASE("thread ranks shard as processes do", "[sharded_unit]") {
    Alone one;
    auto const expected = train(one, by_make, sgd, 10);
    for (int64_t n : {1, 2, 4}) {
        std::mutex mutex;
        acc::debug_launcher(n, [&](acc::comm::Threads communicator) {
            Loop<Threads, acc::sharding::Fsdp<>> accelerator({}, communicator);
            auto const ours = train(accelerator, by_make, sgd, 10);
            std::lock_guard const lock(mutex);  // assertions of Catch2 2 come from one thread at a time
            compare(ours, expected);
        });
    }
}

TEST_CASE("of two sharded models only those that a loss reaches take part in its backward", "[fsdp]") {
    auto const trained = [](auto&& accelerator) {
        auto const fresh = [](int64_t seed) {
            auto linear = std::make_shared<torch::nn::LinearImpl>(6, 6);
            torch::NoGradGuard const no_grad;
            linear->weight.copy_(uniform({6, 6}, seed)), linear->bias.zero_();
            return linear;
        };
        auto [maker, judge, of_maker, of_judge] = accelerator.prepare(fresh(1), fresh(2), acc::optim::Sgd{.lr = 0.1}, acc::optim::Sgd{.lr = 0.05});
        auto const rows = 8 / accelerator.num_processes(), begin = rows * accelerator.process_index();
        for (int64_t step = 0; step < 4; ++step) {
            auto const made = maker(uniform({8, 6}, 10 + step).slice(0, begin, begin + rows));
            accelerator.backward(judge(made.detach()).square().mean());
            of_judge.step(), of_judge.zero_grad();
            accelerator.backward(judge(made).mean());
            of_maker.step(), of_maker.zero_grad(), of_judge.zero_grad();
        }
        std::vector<torch::Tensor> weights;
        for (auto const& [name, t] : accelerator.get_state_dict(maker)) weights.push_back(t);
        for (auto const& [name, t] : accelerator.get_state_dict(judge)) weights.push_back(t);
        return weights;
    };
    auto const one = trained(Alone()), ours = trained(Spread<>());
    REQUIRE(ours.size() == one.size());
    for (size_t i = 0; i < one.size(); ++i) CHECK(torch::allclose(ours[i], one[i], 1e-5, 1e-6));
}

namespace {

/// A forward takes one of two units.
template <class S = acc::Plain>
struct Either : torch::nn::Module {
    Either() : first(this, "first", 6, 6), second(this, "second", 6, 6), head(this, "head", 6, 3) {}
    torch::Tensor forward(torch::Tensor x, bool takes_first) { return head(torch::tanh(takes_first ? first(x) : second(x))); }
    acc::Unit<S, torch::nn::Linear> first, second, head;
};

}  // namespace

TEST_CASE("a unit that no loss of a window has reached stays as it is, as without a gradient in PyTorch", "[fsdp][unused]") {
    Spread<> accelerator;
    auto [model, optimizer] = accelerator.prepare(accelerator.template make<Either>(), acc::optim::AdamW{.lr = 0.01, .weight_decay = 0.1});
    Either<> one;
    torch::NoGradGuard no_grad;
    for (auto const& [name, w] : accelerator.get_state_dict(model)) one.named_parameters()[name].copy_(w);
    torch::optim::AdamW by_hand(one.parameters(), torch::optim::AdamWOptions(0.01).weight_decay(0.1));
    auto const rows = global_batch / accelerator.num_processes(), begin = rows * accelerator.process_index();
    for (int64_t step = 0; step < 9; ++step) {
        torch::AutoGradMode const grad_mode(true);
        bool const takes_first = step % 4 != 3;
        auto const x = uniform({global_batch, 6}, 700 + step);
        accelerator.backward(model(x.slice(0, begin, begin + rows), takes_first).square().mean());
        optimizer.step(), optimizer.zero_grad();
        one.forward(x, takes_first).square().mean().backward();
        by_hand.step(), by_hand.zero_grad();
    }
    for (auto const& [name, w] : accelerator.get_state_dict(model)) CHECK(torch::allclose(w, one.named_parameters()[name], 1e-5, 1e-6));
}

namespace {
/// Calls its first unit alone: the one behind it is gathered ahead for nothing.
template <class S = acc::Plain>
struct Skips : torch::nn::Module {
    explicit Skips(int64_t large) : small(this, "small", 4, 4), behind(this, "behind", large, 4) {}
    torch::Tensor forward(torch::Tensor x) { return small(x); }
    acc::Unit<S, torch::nn::Linear> small, behind;
};
}  // namespace

TEST_CASE("a unit that is gathered ahead and not called does not get in the way of what follows", "[fsdp][sharded_unit]") {
    Spread<> spread;
    auto const n = static_cast<double>(spread.num_processes());
    auto [model, optimizer] = spread.prepare(spread.make<Skips>(int64_t{1} << 19), acc::optim::Sgd{.lr = 0.5});
    auto const before = spread.get_state_dict(model);
    auto const x = torch::full({1, 4}, static_cast<double>(spread.process_index() + 1));
    for (int64_t step = 0; step < 5; ++step) {
        auto window = spread.accumulate(model);
        spread.backward(acc::weighted(model(x).sum(), 2));
        {
            torch::NoGradGuard no_grad;
            static_cast<void>(model(x));
        }
        auto const largest = spread.clip_grad_norm(model, 1e9, std::numeric_limits<double>::infinity());
        CHECK(std::abs(largest.item<double>() - std::max((n + 1) / 4, 0.5)) < 1e-6);  // d/dweight: the sum of 1..n; d/dbias: n; over 2 n
        optimizer.step();
        optimizer.zero_grad();
    }
    auto const after = spread.get_state_dict(model);
    CHECK(torch::allclose(after.at("small.weight"), before.at("small.weight") - 5 * 0.5 * (n + 1) / 4, 0, 1e-5));
    CHECK(torch::allclose(after.at("small.bias"), before.at("small.bias") - 5 * 0.5 / 2, 0, 1e-5));
    CHECK(torch::equal(after.at("behind.weight"), before.at("behind.weight")));
}

namespace {
/// A generator and a discriminator train in turns, each in windows of its own, of `k` micro-batches; what the generator's loss leaves in the
/// discriminator is cleared. Against LibTorch's loop over all ranks' batches.
template <class Run>
void adversaries_in_windows_of_their_own(int64_t k) {
    constexpr int64_t micro_batches = 4, rows = 2;
    Run accelerator({.gradient_accumulation_steps = k});
    auto const [n, rank] = std::pair(accelerator.num_processes(), accelerator.process_index());
    auto const batch = [&](int64_t m, int64_t r) { return uniform({rows, 4}, 1000 * m + r); };
    auto [maker, judge, of_maker, of_judge] =
        accelerator.prepare(accelerator.template make<Skips>(int64_t{4}), accelerator.template make<Skips>(int64_t{4}), acc::optim::Sgd{.lr = 0.1}, acc::optim::Sgd{.lr = 0.05});
    auto const by_hand = std::array{std::make_shared<Skips<>>(4), std::make_shared<Skips<>>(4)};
    {
        torch::NoGradGuard no_grad;
        for (auto const& [name, w] : accelerator.get_state_dict(maker)) by_hand[0]->named_parameters()[name].copy_(w);
        for (auto const& [name, w] : accelerator.get_state_dict(judge)) by_hand[1]->named_parameters()[name].copy_(w);
    }
    for (int64_t m = 0; m < micro_batches; ++m) {
        {
            auto window = accelerator.accumulate(judge);
            accelerator.backward(judge(maker(batch(m, rank)).detach()).square().mean());
            of_judge.step(), of_judge.zero_grad();
        }
        auto window = accelerator.accumulate(maker);
        accelerator.backward(judge(maker(batch(m, rank))).mean());
        if (judge.state().window_closed()) CHECK_THROWS_WITH(of_judge.step(), contains("E_CALL_ORDER"));  // its own backward comes first
        of_maker.step(), of_maker.zero_grad(), of_judge.zero_grad();
    }
    torch::optim::SGD sgd_of_maker(by_hand[0]->parameters(), 0.1), sgd_of_judge(by_hand[1]->parameters(), 0.05);
    for (int64_t m = 0; m < micro_batches; ++m) {
        bool const closes = (m + 1) % k == 0;
        for (int64_t r = 0; r < n; ++r) (by_hand[1]->forward(by_hand[0]->forward(batch(m, r)).detach()).square().mean() / (n * k)).backward();
        if (closes) sgd_of_judge.step(), sgd_of_judge.zero_grad();
        for (int64_t r = 0; r < n; ++r) (by_hand[1]->forward(by_hand[0]->forward(batch(m, r))).mean() / (n * k)).backward();
        if (closes) sgd_of_maker.step(), sgd_of_maker.zero_grad(), sgd_of_judge.zero_grad();
    }
    for (auto const& [name, w] : accelerator.get_state_dict(maker)) CHECK(torch::allclose(w, by_hand[0]->named_parameters()[name], 1e-5, 1e-6));
    for (auto const& [name, w] : accelerator.get_state_dict(judge)) CHECK(torch::allclose(w, by_hand[1]->named_parameters()[name], 1e-5, 1e-6));
}
}  // namespace

TEST_CASE("what a loss leaves in a model of another window is cleared, or waits for that model's next backward", "[fsdp][backward][window]") {
    for (int64_t k : {1, 2}) {
        adversaries_in_windows_of_their_own<Alone>(k);
        adversaries_in_windows_of_their_own<Spread<>>(k);
        adversaries_in_windows_of_their_own<Loop<acc::device::Cpu, acc::sharding::Ddp<acc::ddp{.find_unused_parameters = true}>>>(k);
    }
}

TEST_CASE("a rank that does not gather with the others is an error to them, not the end of the process", "[fsdp][sharded_unit]") {
    std::atomic<int64_t> heard = 0;
    auto const dir = std::filesystem::temp_directory_path() / acc::concat("accelerate_lonely_", ::getpid());
    CHECK_THROWS_WITH(acc::debug_launcher(2,
                                          [&](acc::comm::Threads communicator) {
                                              Loop<Threads, acc::sharding::Fsdp<>> accelerator({}, communicator);
                                              auto model = accelerator.prepare(by_make(accelerator));
                                              if (communicator.rank() == 1) throw std::runtime_error("has left");
                                              try {
                                                  accelerator.save_model(model, dir);
                                              } catch (acc::Error const& e) {
                                                  heard += e.code() == acc::code::peer_lost;
                                              }
                                          }),
                      contains("has left"));
    CHECK(heard == 1);
    CHECK_FALSE(std::filesystem::exists(dir / "model.safetensors"));
    std::filesystem::remove_all(dir);
}

TEST_CASE("what a sharded model cannot do is said in one sentence", "[sharded]") {
    Spread<> accelerator;
    auto net = accelerator.make<Model>(int64_t{1});
    auto const tokens = torch::zeros({1, Model<>::context}, torch::kLong);
    CHECK_THROWS_WITH(net(tokens), contains("E_CALL_ORDER") && contains("prepare"));
    CHECK_THROWS_WITH(net->clone(), contains("E_CONFIG") && contains("sharded"));
    auto model = accelerator.prepare(net);
    CHECK_THROWS_WITH(acc::load_into(*model, {}, false), contains("E_CONFIG") && contains("spread over the ranks"));
}

TEST_CASE("the norm is known when the gradients are reduced, as long as nobody writes into them", "[fsdp][sharded_unit][flat_model]") {
    Spread<> accelerator({.gradient_accumulation_steps = 2});
    Alone one({.gradient_accumulation_steps = 2});
    auto [model, optimizer] = accelerator.prepare(by_make(accelerator), acc::optim::Sgd{.lr = 0.1});
    auto [same, alone] = one.prepare(by_make(one), acc::optim::Sgd{.lr = 0.1});
    auto const tokens = torch::arange(2 * Model<>::context).remainder(Model<>::vocabulary).view({2, Model<>::context});
    for (int step = 0; step < 2; ++step) {
        for (int micro_batch = 0; micro_batch < 2; ++micro_batch) {
            auto window = accelerator.accumulate(model);
            auto other = one.accumulate(same);
            accelerator.backward(model(tokens).square().mean());
            one.backward(same(tokens).square().mean());
            CHECK(model.state().known_squares().has_value() == (micro_batch == 1));
        }
        double exact = 0;
        for (auto const& [name, p] : acc::unique_parameters(*same))  // a tied weight counts once
            if (p.grad().defined()) exact += p.grad().to(at::kDouble).square().sum().template item<double>();
        CHECK(*model.state().known_squares() == Approx(exact).epsilon(1e-5));
        CHECK(accelerator.clip_grad_norm(model, 1e9).template item<double>() == Approx(std::sqrt(exact)).epsilon(1e-5));
        if (step == 1) {
            accelerator.clip_grad_value(model, 1e-3);  // writes into them
            CHECK_FALSE(model.state().known_squares());
        }
        optimizer.step(), optimizer.zero_grad(), alone.step(), alone.zero_grad();
    }
}

TEST_CASE("save_model writes the whole of a sharded model", "[fsdp]") {
    Spread<> accelerator;
    auto model = accelerator.prepare(by_make(accelerator));
    FolderOfRanks const shared("sharded");
    auto const& folder = shared.path;
    accelerator.save_model(model, folder);
    Model<> whole(3);
    CHECK(acc::load_model(whole, folder).complete());
    auto const expected = accelerator.get_state_dict(model);
    same(acc::model_tensors(whole), expected, 0);
    // In several files, and again where writing fails: every rank has the error, and the model is as it was.
    accelerator.save_model(model, folder, {.max_shard_size = 500});
    Model<> again(3);
    CHECK(acc::load_model(again, folder).complete());
    same(acc::model_tensors(again), expected, 0);
    CHECK_THROWS_WITH(accelerator.save_model(model, folder / "model.safetensors.index.json"), contains("E_IO"));
    CHECK_THROWS_WITH(accelerator.save_model(model, folder, {.metadata = {{"name", "\xff"}}}), contains("E_ST_NOT_UTF8"));
    same(accelerator.get_state_dict(model), expected, 0);
}

TEST_CASE("a sharded model is never whole while its tensors are visited", "[fsdp]") {
    Spread<> accelerator;
    auto model = accelerator.prepare(by_make(accelerator));
    auto const expected = accelerator.get_state_dict(model);
    auto tensors = acc::model_tensors(*model);
    std::vector<torch::Tensor> visited;
    for (auto const& item : tensors) visited.push_back(item.second);
    std::reverse(visited.begin(), visited.end());  // in whatever order
    auto const& engine = model.state().engine();
    auto const there = [&] { return std::ranges::count_if(engine.units, [](auto const* unit) { return !unit->slots().empty() && unit->slots().front().parameter.storage().nbytes() > 0; }); };
    CHECK(there() == 0);
    size_t seen = 0;
    auto const before = engine.gathers;
    model.state().for_each_whole(visited, [&](size_t i) {
        CHECK(i == seen++);
        CHECK(there() == 1);  // and one under way
        CHECK(visited[i].equal((expected.end() - 1 - static_cast<std::ptrdiff_t>(i))->second));
    });
    CHECK(seen == tensors.size());
    CHECK(there() == 0);
    // Once each, but what has another unit inside twice: the root has most of them, `nested` one with one in it.
    auto const units = std::ranges::count_if(engine.units, [](auto const* unit) { return !unit->slots().empty(); });
    CHECK(engine.gathers - before >= units);
    CHECK(engine.gathers - before <= 2 * units);
}

namespace {

/// Bytes that this process has read from files so far.
int64_t bytes_read() {
    std::ifstream in("/proc/self/io");
    std::string word;
    int64_t n = 0;
    in >> word >> n;
    return word == "rchar:" ? n : -1;
}

}  // namespace

TEST_CASE("a model made from files has their values, and each rank reads what it keeps", "[from][fsdp]") {
    Spread<> accelerator;
    FolderOfRanks const shared("from");
    auto const& folder = shared.path;
    Alone one({.seed = 99});
    auto whole = one.make<Model>(int64_t{3});
    if (accelerator.is_main_process()) acc::save_model(*whole, folder, {.max_shard_size = 2000});
    accelerator.wait_for_everyone();
    int64_t headers = 0, data = 0, buffers = 0;
    {
        acc::state::WeightsReader const files(folder);
        CHECK(files.files().size() > 3);
        headers = static_cast<int64_t>(std::filesystem::file_size(folder / "model.safetensors.index.json"));
        for (auto const& file : files.files()) {
            int64_t here = 0;
            for (auto const& info : file->tensors()) here += info.end - info.begin;
            headers += file->size() - here, data += here;
        }
        for (auto const& b : whole->named_buffers()) buffers += static_cast<int64_t>(b.value().nbytes());
    }
    auto const before = bytes_read();
    auto net = accelerator.make<Model>(acc::from(folder), int64_t{3});
    auto const mine = bytes_read() - before;
    auto const n = accelerator.num_processes();
    if (before >= 0) {
        auto const all = accelerator.reduce(torch::tensor(mine)).item<int64_t>();
        CHECK(all >= data + n * headers);
        CHECK(all <= data + n * (headers + buffers + 1000));  // and what reading the counter itself reads
    }
    auto model = accelerator.prepare(net);
    same(accelerator.get_state_dict(model), acc::model_tensors(*whole), 0);

    // What is wrong is the same error on every rank, also where only one sees it.
    accelerator.wait_for_everyone();
    CHECK_THROWS_WITH(accelerator.make<Model>(acc::from(folder), int64_t{4}), contains("E_CK_KEYS") && contains("blocks.3"));
    auto const elsewhere = accelerator.is_main_process() ? folder : folder / "absent";
    if (n > 1) CHECK_THROWS_WITH(accelerator.make<Model>(acc::from(elsewhere), int64_t{3}), contains("E_IO") && contains("rank 1"));
}
