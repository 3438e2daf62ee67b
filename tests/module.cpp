// How models are written (units, layers, chains), and how they are built: recorded on shapes, then replayed.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, which has a CHECK of its own
#include "support/errors.hpp"

#include <accelerate/comm/self.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/module/boxed.hpp>
#include <accelerate/module/chain.hpp>
#include <accelerate/module/checkpointed.hpp>
#include <accelerate/module/construct.hpp>
#include <accelerate/module/init_empty_weights.hpp>
#include <accelerate/module/layers.hpp>
#include <accelerate/module/linear.hpp>
#include <accelerate/module/tie_weights.hpp>
#include <accelerate/module/unique_parameters.hpp>
#include <accelerate/module/unit.hpp>
#include <accelerate/precision/bf16.hpp>
#include <accelerate/precision/tf32.hpp>
#include <atomic>
#include <map>
#include <thread>

namespace acc = accelerate;
namespace nn = torch::nn;

namespace {

using Strings = std::vector<std::string>;

/// A placement that is not resident: counts forwards, as another one would gather and free.
template <class Block>
struct CountedImpl : Block {
    using Block::Block;
    template <class... In>
    decltype(auto) forward(In&&... in) {
        ++forwards;
        return Block::forward(std::forward<In>(in)...);
    }
    int forwards = 0;
};
struct Counted {
    template <class Block>
    using impl = CountedImpl<Block>;
};
using CountedPlain = acc::Strategy<Counted, acc::precision::Fp32>;
using PlainBf16 = acc::Strategy<acc::place::Resident, acc::precision::Bf16<>>;
using PlainTf32 = acc::Strategy<acc::place::Resident, acc::precision::Tf32>;

template <class S = acc::Plain>
struct Block : nn::Module {
    explicit Block(int64_t d) : up(this, "up", d, 4 * d), down(this, "down", 4 * d, d) {}
    torch::Tensor forward(torch::Tensor x) { return x + down(torch::gelu(up(x))); }
    acc::Linear<S> up, down;
};

struct BlockByRegister : nn::Module {
    explicit BlockByRegister(int64_t d)
        : up(register_module("up", acc::Linear<acc::Plain>(d, 4 * d))), down(register_module("down", acc::Linear<acc::Plain>(nn::LinearOptions(4 * d, d)))) {}
    torch::Tensor forward(torch::Tensor x) { return x + down(torch::gelu(up(x))); }
    acc::Linear<> up, down;
};

template <class S = acc::Plain>
struct Gpt : nn::Module {
    explicit Gpt(int64_t vocabulary = 11, int64_t width = 8, int64_t depth = 3)
        : wte(this, "wte", vocabulary, width), h(this, "h", depth, width), head(this, "head", nn::LinearOptions(width, vocabulary).bias(false)) {
        pos = this->register_parameter("pos", torch::randn({1, 4, width}) * 0.1);
        torch::NoGradGuard no_grad;
        for (auto& p : this->named_parameters())
            if (p.key().find("up.weight") != std::string::npos) nn::init::xavier_normal_(p.value());
    }
    torch::Tensor forward(torch::Tensor const& x) { return head(h(wte(x) + pos)); }
    acc::Unit<S, nn::Embedding> wte;
    acc::Layers<S, Block<S>> h;
    acc::Linear<S> head;
    torch::Tensor pos;
};

Strings names(nn::Module const& module) {
    Strings found;
    for (auto const& p : module.named_parameters()) found.push_back(p.key());
    for (auto const& b : module.named_buffers()) found.push_back(b.key());
    return found;
}

template <class Model, class... Arguments>
auto build(int64_t seed, Arguments&&... arguments) {
    return acc::construct<acc::Unit<acc::Plain, Model>>(seed, std::forward<Arguments>(arguments)...);
}

void check_equal(nn::Module const& a, nn::Module const& b) {
    auto const pa = a.named_parameters(), pb = b.named_parameters();
    REQUIRE(pa.keys() == pb.keys());
    for (auto const& p : pa) {
        INFO(p.key());
        CHECK(p.value().equal(pb[p.key()]));
    }
    auto const ba = a.named_buffers(), bb = b.named_buffers();
    REQUIRE(ba.keys() == bb.keys());
    for (auto const& p : ba) {
        INFO(p.key());
        CHECK(p.value().equal(bb[p.key()]));
    }
}

bool on_cpu(nn::Module const& module) {
    bool all = true;
    for (auto const& p : module.parameters()) all &= p.is_cpu();
    for (auto const& b : module.buffers()) all &= b.is_cpu();
    return all;
}

at::Tensor global_state() {
    auto generator = at::detail::getDefaultCPUGenerator();
    std::lock_guard const lock(generator.mutex());
    return generator.get_state();
}

/// Bytes of CPU tensors on this thread while alive.
class Memory : public c10::MemoryReportingInfoBase {
public:
    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
        now_ += size;
        peak = std::max(peak, now_);
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t peak = 0;

private:
    int64_t now_ = 0;
};

template <class F>
int64_t peak_bytes(F&& f) {
    auto const memory = std::make_shared<Memory>();
    c10::DebugInfoGuard const guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    f();
    return memory->peak;
}

}  // namespace

// ---- strategies and what is held -----------------------------------------------------------------------------------------------

TEST_CASE("a resident unit is the block itself", "[unit][strategy][placement]") {
    STATIC_REQUIRE(acc::placement<acc::place::Resident>);
    STATIC_REQUIRE(acc::placement<Counted>);
    STATIC_REQUIRE_FALSE(acc::placement<int>);
    STATIC_REQUIRE(acc::strategy<acc::Plain>);
    STATIC_REQUIRE_FALSE(acc::strategy<acc::place::Resident>);
    STATIC_REQUIRE(std::same_as<acc::Unit<acc::Plain, nn::Linear>::impl_type, nn::LinearImpl>);
    STATIC_REQUIRE(std::same_as<acc::Unit<acc::Plain, nn::LinearImpl>::impl_type, nn::LinearImpl>);
    STATIC_REQUIRE(std::same_as<acc::Unit<acc::Plain, Block<>>::impl_type, Block<>>);
    STATIC_REQUIRE(std::same_as<acc::Unit<CountedPlain, Block<>>::impl_type, CountedImpl<Block<>>>);

    acc::Unit<acc::Plain, nn::Linear> unit(3, 4);
    CHECK(unit->name() == "torch::nn::LinearImpl");
    CHECK(std::dynamic_pointer_cast<nn::LinearImpl>(unit->clone())->weight.equal(unit->weight));
    nn::Sequential sequential(unit, nn::ReLU());
    CHECK(sequential->forward(torch::ones({2, 3})).sizes() == at::IntArrayRef({2, 4}));
}

TEST_CASE("names have no extra level, whatever the placement and the way of registering", "[unit][holder]") {
    Gpt<> resident;
    Gpt<CountedPlain> counted;
    Strings const expected{"pos",         "wte.weight",    "h.0.up.weight", "h.0.up.bias",   "h.0.down.weight", "h.0.down.bias", "h.1.up.weight", "h.1.up.bias",
                           "h.1.down.weight", "h.1.down.bias", "h.2.up.weight", "h.2.up.bias", "h.2.down.weight", "h.2.down.bias", "head.weight"};
    CHECK(names(resident) == expected);
    CHECK(names(counted) == expected);
    CHECK(names(BlockByRegister(2)) == names(Block<>(2)));

    {
        torch::NoGradGuard no_grad;
        auto const from = resident.named_parameters();
        for (auto& p : counted.named_parameters()) p.value().copy_(from[p.key()]);
    }
    auto const tokens = torch::arange(8).view({2, 4});
    CHECK(counted.forward(tokens).equal(resident.forward(tokens)));
    CHECK(counted.wte->forwards == 1);
    CHECK(counted.h[2]->forwards == 1);
    CHECK(counted.wte->as<nn::Embedding>() != nullptr);
}

namespace {

struct Several : nn::Module {
    explicit Several(std::unique_ptr<int> n) : number(std::move(n)) {}
    template <class X>
    std::tuple<X, std::vector<X>> forward(X const& x, double factor = 2) {
        return {x * factor, {x, x + *number}};
    }
    std::unique_ptr<int> number;
};
struct Nothing : nn::Module {
    torch::Tensor forward(torch::Tensor const& x) { return x; }
};
struct Greedy : nn::Module {
    template <class T>
    explicit Greedy(T const&) {}
};

}  // namespace

TEST_CASE("a holder takes what its module takes", "[holder]") {
    SECTION("template forwards with defaults, tuples, arguments that only move") {
        acc::Unit<acc::Plain, Several> unit(std::make_unique<int>(3));
        auto const [y, rest] = unit(torch::ones({2}));
        CHECK(y.sum().item<double>() == 4);
        CHECK(rest[1].sum().item<double>() == 8);
        CHECK(std::get<0>(unit(torch::ones({2}), 5.0)).sum().item<double>() == 10);
    }
    SECTION("nothing, as LibTorch's holders") {
        nn::Sequential parent;
        acc::Unit<acc::Plain, Nothing> unit, registered(parent.get(), "nothing"), empty(nullptr);
        CHECK(unit);
        CHECK(registered);
        CHECK_FALSE(empty);
        CHECK(parent->named_children().contains("nothing"));
        CHECK_FALSE(acc::Linear<>());
    }
    SECTION("a holder is copied, not passed on to a greedy constructor") {
        acc::Unit<acc::Plain, Greedy> unit(3);
        auto copy(unit);
        auto const& constant = unit;
        acc::Unit<acc::Plain, Greedy> other(constant);
        CHECK(copy.ptr() == unit.ptr());
        CHECK(other.ptr() == unit.ptr());
    }
}

// ---- layers and chains ---------------------------------------------------------------------------------------------------------

namespace {

/// In LibTorch's own way of modules that can be cloned.
struct CloneableBlockImpl : nn::Cloneable<CloneableBlockImpl> {
    explicit CloneableBlockImpl(int64_t d) : width(d) { reset(); }
    void reset() override { linear = register_module("linear", acc::Linear<PlainBf16>(width, width)); }
    torch::Tensor forward(torch::Tensor const& x, torch::Tensor const& mask = {}) {
        auto const y = x + linear(x);
        return mask.defined() ? y * mask : y;
    }
    int64_t width;
    acc::Linear<PlainBf16> linear{nullptr};
};
struct CloneableModel : nn::Cloneable<CloneableModel> {
    CloneableModel() { reset(); }
    void reset() override { layers = register_module("layers", acc::Layers<acc::Plain, CloneableBlockImpl>(3, 4)); }
    torch::Tensor forward(torch::Tensor const& x) { return layers(x); }
    acc::Layers<acc::Plain, CloneableBlockImpl> layers{nullptr};
};

}  // namespace

TEST_CASE("layers are blocks in a row", "[layers]") {
    SECTION("all alike, or each by its number") {
        acc::Layers<acc::Plain, nn::Linear> alike(3, nn::LinearOptions(4, 4).bias(false));
        CHECK(names(*alike) == Strings{"0.weight", "1.weight", "2.weight"});
        acc::Layers<acc::Plain, nn::Linear> each(3, [](auto make, int64_t i) { return make(i + 1, i + 2); });
        CHECK(each->forward(torch::ones({5, 1})).sizes() == at::IntArrayRef({5, 4}));
        CHECK(each.size() == 3);
        CHECK(each[2]->weight.sizes() == at::IntArrayRef({4, 3}));
        int64_t visited = 0;
        for (auto const& unit : each) visited += unit->weight.numel();
        CHECK(visited == 2 + 6 + 12);
    }
    SECTION("equal to the loop by hand") {
        acc::Layers<acc::Plain, Block<>> layers(4, 6);
        auto const x = torch::randn({2, 6});
        auto y = x;
        for (auto const& unit : layers) y = unit(y);
        CHECK(layers(x).equal(y));
    }
    SECTION("what is shared goes to each") {
        acc::Layers<acc::Plain, CloneableBlockImpl> layers(2, 3);
        CHECK(layers(torch::ones({3}), torch::zeros({3})).equal(torch::zeros({3})));
    }
    SECTION("none is the identity, fewer is an error") {
        auto const x = torch::randn({2});
        CHECK(acc::Layers<acc::Plain, Block<>>(0, 4)(x).equal(x));
        CHECK(error_of([] { acc::Layers<acc::Plain, Block<>>(-1, 4); }).find("E_CONFIG: Layers: -1 blocks") == 0);
    }
    SECTION("clones own their blocks, alone and inside a model") {
        CloneableModel model;
        auto const copy = std::dynamic_pointer_cast<CloneableModel>(model.clone());
        check_equal(model, *copy);
        auto const x = torch::randn({2, 4});
        CHECK(copy->forward(x).equal(model.forward(x)));
        torch::NoGradGuard no_grad;
        for (auto& p : copy->parameters()) p.zero_();
        CHECK(copy->forward(x).equal(x));
        CHECK_FALSE(model.forward(x).equal(x));
    }
}

namespace {

struct Embed : nn::Module {
    explicit Embed(int64_t width) : words(this, "words", 11, width), places(this, "places", 6, width) {}
    torch::Tensor forward(torch::Tensor const& tokens, torch::Tensor const& positions) { return words(tokens) + places(positions); }
    acc::Unit<acc::Plain, nn::Embedding> words, places;
};
struct Split : nn::Module {
    std::tuple<torch::Tensor, int64_t> forward(torch::Tensor const& x) { return {x, x.size(-1)}; }
};
struct Join : nn::Module {
    torch::Tensor forward(std::tuple<torch::Tensor, int64_t> const& x) { return std::get<0>(x) / static_cast<double>(std::get<1>(x)); }
};

template <class S = acc::Plain>
struct Row : acc::Chain<S, acc::Unit<S, Embed>, acc::Layers<S, Block<S>>, nn::LayerNorm, acc::Linear<S>> {
    explicit Row(int64_t depth, int64_t width)
        : Row::Chain{{"wte", acc::Unit<S, Embed>(width)}, {"h", acc::Layers<S, Block<S>>(depth, width)}, {"norm", nn::LayerNorm(nn::LayerNormOptions({width}))}, {"head", acc::Linear<S>(width, 11)}} {}
};
struct Parentheses : acc::Chain<acc::Plain, acc::Unit<acc::Plain, Split>, acc::Unit<acc::Plain, Join>> {
    Parentheses() : Parentheses::Chain({"split", acc::Unit<acc::Plain, Split>()}, {"join", acc::Unit<acc::Plain, Join>()}) {}
};
struct Hole : acc::Chain<acc::Plain, acc::Linear<>> {
    Hole() : Hole::Chain{{"head", acc::Linear<>(nullptr)}} {}
};

}  // namespace

TEST_CASE("a chain is the fold of its parts", "[chain]") {
    auto const model = build<Row<>>(5, 2, 8);
    CHECK(names(*model) == Strings{"wte.words.weight", "wte.places.weight", "h.0.up.weight", "h.0.up.bias", "h.0.down.weight", "h.0.down.bias", "h.1.up.weight", "h.1.up.bias", "h.1.down.weight", "h.1.down.bias",
                                   "norm.weight", "norm.bias", "head.weight", "head.bias"});
    auto const tokens = torch::arange(6).view({1, 6}), positions = torch::arange(6);
    auto y = model->part<0>()(tokens, positions);
    for (auto const& unit : model->part<1>()) y = unit(y);
    auto norm = model->part<2>();
    CHECK(model(tokens, positions).equal(model->part<3>()(norm(y))));
    STATIC_REQUIRE(Row<>::size() == 4);

    Parentheses between;
    CHECK(between.forward(torch::full({4}, 8.0)).equal(torch::full({4}, 2.0)));
    CHECK(error_of([] { Hole(); }).find("E_CONFIG: Chain: part \"head\" is an empty holder") == 0);
}

// ---- arithmetic leaves ---------------------------------------------------------------------------------------------------------

TEST_CASE("a linear layer is LibTorch's unless the precision has its own", "[linear]") {
    STATIC_REQUIRE(std::same_as<acc::Linear<>::impl_type, nn::LinearImpl>);
    STATIC_REQUIRE(std::same_as<acc::Linear<PlainTf32>::impl_type, nn::LinearImpl>);
    STATIC_REQUIRE(std::derived_from<acc::Linear<PlainBf16>::impl_type, nn::LinearImpl>);
    nn::Sequential parent;
    acc::Linear<PlainBf16> both(3, 4), options(nn::LinearOptions(3, 4).bias(false)), named(parent.get(), "named", 3, 4), full(parent.get(), "full", nn::LinearOptions(3, 4).bias(false));
    CHECK(both->bias.defined());
    CHECK_FALSE(options->bias.defined());
    CHECK_FALSE(full->bias.defined());
    CHECK(names(*parent) == Strings{"named.weight", "named.bias", "full.weight"});
    CHECK(parent->named_children()["named"]->as<nn::LinearImpl>() == named.get());

    std::ostringstream printed;
    printed << *named;
    CHECK(printed.str() == "torch::nn::Linear(in_features=3, out_features=4, bias=true)");

    auto const x = torch::randn({2, 5, 3});
    CHECK(both(x).equal(at::linear(x, both->weight, both->bias)));
    auto const copy = std::dynamic_pointer_cast<acc::Linear<PlainBf16>::impl_type>(both->clone());
    REQUIRE(copy);
    CHECK(copy->forward(x).equal(both(x)));
    CHECK_FALSE(copy->weight.is_same(both->weight));
    CHECK(copy->weight.is_same(copy->named_parameters()["weight"]));
}

// ---- construction --------------------------------------------------------------------------------------------------------------

TEST_CASE("weights have the distributions that the constructors ask for", "[construct]") {
    SECTION("linear: uniform within 1/sqrt(in)") {
        auto const linear = build<nn::LinearImpl>(1, 1024, 512);
        auto const w = linear->weight.detach().to(torch::kDouble);
        double const bound = 1 / 32.0;
        CHECK(w.abs().max().item<double>() <= bound);
        CHECK(w.abs().max().item<double>() > 0.999 * bound);
        CHECK(std::abs(w.mean().item<double>()) < 4 * bound / std::sqrt(3.0 * 1024 * 512));
        CHECK(w.var().item<double>() == Approx(bound * bound / 3).epsilon(0.01));
        CHECK(linear->bias.abs().max().item<double>() <= bound);
        CHECK(linear->bias.detach().var().item<double>() == Approx(bound * bound / 3).epsilon(0.2));
    }
    SECTION("embedding: standard normal") {
        auto const w = build<nn::EmbeddingImpl>(2, 1000, 256)->weight.detach().to(torch::kDouble);
        CHECK(std::abs(w.mean().item<double>()) < 4 / std::sqrt(256000.0));
        CHECK(w.var().item<double>() == Approx(1).epsilon(0.015));
        CHECK(w.pow(4).mean().item<double>() == Approx(3).epsilon(0.04));
    }
    SECTION("what a root does to its parts: xavier normal over kaiming; out-of-place recipes") {
        auto const model = build<Gpt<>>(3, 11, 128, 2);
        auto const& up = model->h[0]->up->weight;
        CHECK(up.detach().std().item<double>() == Approx(std::sqrt(2.0 / (128 + 512))).epsilon(0.02));
        CHECK(up.detach().abs().max().item<double>() > 1 / std::sqrt(128.0));
        CHECK(model->h[0]->down->weight.detach().abs().max().item<double>() <= 1 / std::sqrt(512.0));
        CHECK(model->pos.detach().std().item<double>() == Approx(0.1).epsilon(0.15));
    }
    SECTION("no two tensors alike") {
        auto const model = build<Gpt<>>(3, 64, 64, 2);
        auto const a = model->h[0]->up->weight.detach().flatten(), b = model->h[1]->up->weight.detach().flatten();
        auto const correlation = (a.dot(b) / (a.norm() * b.norm())).item<double>();
        CHECK(std::abs(correlation) < 4 / std::sqrt(static_cast<double>(a.numel())));
    }
}

TEST_CASE("weights are a function of seed and model", "[construct][replay]") {
    auto const first = build<Gpt<>>(3);
    check_equal(*first, *build<Gpt<>>(3));
    CHECK_FALSE(build<Gpt<>>(4)->head->weight.equal(first->head->weight));

    SECTION("under every strategy") {
        check_equal(*first, *acc::construct<acc::Unit<CountedPlain, Gpt<CountedPlain>>>(3));
        check_equal(*first, *acc::construct<acc::Unit<PlainBf16, Gpt<PlainBf16>>>(3));
    }
    SECTION("the n-th draw of a constructor is the first of a generator seeded by (seed, n)") {
        struct Draws : nn::Module {
            torch::Tensor a = register_parameter("a", torch::randn({40})), b = register_buffer("b", torch::rand({3, 3})), c = register_buffer("c", torch::randint(0, 100, {20})),
                          d = register_parameter("d", torch::empty({5}).uniform_(-2, 2));
        };
        auto const model = build<Draws>(77);
        auto const generator = [](uint64_t n) { return at::detail::createCPUGenerator(acc::mix(77, n)); };
        CHECK(model->a.equal(torch::empty({40}).normal_(0, 1, generator(0))));
        CHECK(model->b.equal(torch::empty({3, 3}).uniform_(0, 1, generator(1))));
        CHECK(model->c.equal(torch::randint(0, 100, {20}, generator(2))));
        CHECK(model->d.equal(torch::empty({5}).uniform_(-2, 2, generator(3))));
    }
    SECTION("whatever is computed beside it") {
        struct Cut : nn::Module {
            explicit Cut(bool drop) {
                if (drop) first = nullptr, unregister_module("first");
            }
            nn::Linear first{register_module("first", nn::Linear(30, 30))}, second{register_module("second", nn::Linear(30, 30))};
        };
        auto const whole = build<Cut>(9, false), part = build<Cut>(9, true);
        CHECK(part->second->weight.equal(whole->second->weight));
        CHECK(part->second->bias.equal(whole->second->bias));
    }
    SECTION("on ranks that are threads, while others draw from the global generator") {
        std::atomic<bool> stop = false;
        std::thread noise([&] {
            while (!stop) torch::rand({100});
        });
        std::vector<acc::Unit<acc::Plain, Gpt<>>> models(4, acc::Unit<acc::Plain, Gpt<>>(nullptr));
        std::vector<std::thread> ranks;
        for (size_t r = 0; r < 4; ++r)
            ranks.emplace_back([&models, r] {
                for (int i = 0; i < 5; ++i) models[r] = build<Gpt<>>(3);
            });
        for (auto& r : ranks) r.join();
        stop = true;
        noise.join();
        for (auto const& m : models) check_equal(*first, *m);
    }
    SECTION("and the global generator is not touched") {
        torch::manual_seed(5);
        auto const before = global_state();
        build<Gpt<>>(8);
        CHECK(global_state().equal(before));
    }
}

namespace {

struct Kinds : nn::Module {
    Kinds() {
        acc::tie_weights(*head, "weight", head->weight, words->weight);
        frozen->weight.requires_grad_(false);
        steps = register_buffer("steps", torch::arange(6));
        mask = register_buffer("mask", torch::ones({4, 4}).tril());
        view = register_buffer("view", mask[1]);
        plain = torch::full({3}, 7);  // not registered
        plains = {torch::zeros({2}), torch::eye(3) * 2};
        to64->to(torch::kFloat64);
        torch::NoGradGuard no_grad;
        nn::init::orthogonal_(square->weight);
        square->weight.index_put_({torch::arange(2)}, 9.0);
        square->weight.mul_(torch::full({1}, 2.0));
        data = register_buffer("data", square->bias.data());
        square->bias.set_data(torch::linspace(0, 1, 5));
    }
    nn::Embedding words{register_module("words", nn::Embedding(nn::EmbeddingOptions(7, 4).padding_idx(2)))};
    nn::Linear head{register_module("head", nn::Linear(nn::LinearOptions(4, 7).bias(false)))}, frozen{register_module("frozen", nn::Linear(2, 2))}, to64{register_module("to64", nn::Linear(2, 2))},
        square{register_module("square", nn::Linear(5, 5))};
    nn::BatchNorm2d norm{register_module("norm", nn::BatchNorm2d(3))};
    nn::LSTM lstm{register_module("lstm", nn::LSTM(3, 4))};
    nn::TransformerEncoder encoder{register_module("encoder", nn::TransformerEncoder(nn::TransformerEncoderOptions(nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(16).dropout(0), 2)))};
    torch::Tensor steps, mask, view, plain, data;
    std::vector<torch::Tensor> plains;
};

}  // namespace

TEST_CASE("whatever a constructor makes comes out right", "[construct][materialize][tape]") {
    auto m = build<Kinds>(11);
    CHECK(on_cpu(*m));
    check_equal(*m, *build<Kinds>(11));
    for (auto const& p : m->named_parameters()) {
        INFO(p.key());
        CHECK(p.value().is_leaf());
        CHECK(p.value().requires_grad() == (p.key() != "frozen.weight"));
        CHECK(p.value().isfinite().all().item<bool>());
    }
    SECTION("ties and handles") {
        CHECK(m->head->weight.is_same(m->words->weight));
        CHECK(m->named_parameters()["head.weight"].is_same(m->words->weight));
        CHECK(m->words->weight[2].equal(torch::zeros({4})));
        CHECK(m->words->weight[1].abs().sum().item<double>() > 0);
        CHECK(m->square->weight.is_same(m->named_parameters()["square.weight"]));
    }
    SECTION("buffers, views, members that are not registered") {
        CHECK(m->steps.equal(torch::arange(6)));
        CHECK(m->mask.equal(torch::ones({4, 4}).tril()));
        m->mask[1].fill_(5);
        CHECK(m->view.equal(torch::full({4}, 5.0)));
        CHECK(m->plain.equal(torch::full({3}, 7)));
        CHECK(m->plains[0].equal(torch::zeros({2})));
        CHECK(m->plains[1].equal(torch::eye(3) * 2));
        CHECK(m->norm->running_var.equal(torch::ones({3})));
        CHECK(m->norm->num_batches_tracked.scalar_type() == torch::kLong);
        CHECK(m->norm->num_batches_tracked.item<int64_t>() == 0);
    }
    SECTION("recipes in place, by index, through set_data and to()") {
        CHECK(m->to64->weight.scalar_type() == torch::kFloat64);
        auto const w = m->square->weight.detach();
        CHECK(w.slice(0, 0, 2).equal(torch::full({2, 5}, 18.0)));
        auto const rest = w.slice(0, 2) / 2;
        CHECK(torch::allclose(torch::matmul(rest, rest.t()), torch::eye(3), 1e-5, 1e-5));
        CHECK(m->square->bias.equal(torch::linspace(0, 1, 5)));
        CHECK(m->data.abs().max().item<double>() <= 1 / std::sqrt(5.0));
        CHECK(m->data.abs().sum().item<double>() > 0);
    }
    SECTION("LibTorch's own modules run and learn") {
        auto const [out, state] = m->lstm(torch::ones({2, 1, 3}));
        auto const y = m->encoder(torch::ones({2, 1, 8})).sum() + out.sum() + m->norm(torch::randn({2, 3, 2, 2})).sum() + m->head(m->words(torch::tensor({1, 3}))).sum();
        y.backward();
        CHECK(m->lstm->named_parameters()["weight_ih_l0"].grad().abs().sum().item<double>() > 0);
        CHECK(m->words->weight.grad().is_same(m->head->weight.grad()));
        CHECK(m->words->weight.grad().abs().sum().item<double>() > 0);
        // The encoder's layers are clones of one.
        auto const p = m->encoder->named_parameters();
        CHECK(p["layers.0.linear1.weight"].equal(p["layers.1.linear1.weight"]));
    }
    SECTION("as the same constructor without recording") {
        Kinds direct;
        auto const shape = [](nn::Module const& module) {
            std::vector<std::tuple<std::string, std::vector<int64_t>, std::vector<int64_t>, at::ScalarType, bool>> found;
            for (auto const& p : module.named_parameters()) found.emplace_back(p.key(), p.value().sizes().vec(), p.value().strides().vec(), p.value().scalar_type(), p.value().requires_grad());
            for (auto const& b : module.named_buffers()) found.emplace_back(b.key(), b.value().sizes().vec(), b.value().strides().vec(), b.value().scalar_type(), b.value().requires_grad());
            return found;
        };
        CHECK((shape(*m) == shape(direct)));
    }
}

namespace {

struct NeedsValues : nn::Module {
    NeedsValues() {
        auto const r = torch::linspace(0, 0.3, 4);
        for (int64_t i = 0; i < 4; ++i) rates.push_back(r[i].item<double>());
        permutation = register_buffer("permutation", torch::randperm(30));
        literals = register_buffer("literals", torch::tensor({{1.5, 2.5}, {3.5, 4.5}}));
        drawn = register_buffer("drawn", torch::rand({10}));
        sum = drawn.sum().item<double>();
        large = register_buffer("large", torch::nonzero(drawn > 0.5).squeeze(1));
        larger = torch::rand({1}).item<double>() > 0.5 ? 3 : 2;
        sparse = register_parameter("sparse", torch::empty({10, 6}));
        torch::NoGradGuard no_grad;
        nn::init::sparse_(sparse, 0.5);
        picked = register_buffer("picked", torch::arange(30).index({permutation}));
        same = drawn.equal(drawn.clone());
    }
    std::vector<double> rates;
    torch::Tensor permutation, literals, drawn, large, sparse, picked;
    double sum = 0;
    int64_t larger = 0;
    bool same = false;
};

}  // namespace

TEST_CASE("a constructor that asks for values gets them", "[record][intercept]") {
    auto const before = global_state();
    auto const m = build<NeedsValues>(21);
    CHECK(global_state().equal(before));
    CHECK(on_cpu(*m));
    CHECK(m->rates[3] == Approx(0.3));
    CHECK(m->literals.equal(torch::tensor({{1.5, 2.5}, {3.5, 4.5}})));
    CHECK(std::get<0>(m->permutation.sort()).equal(torch::arange(30)));
    CHECK_FALSE(m->permutation.equal(torch::arange(30)));
    CHECK(m->picked.equal(m->permutation));
    CHECK(m->sum == m->drawn.sum().item<double>());
    CHECK(m->large.equal(torch::nonzero(m->drawn > 0.5).squeeze(1)));
    CHECK((m->sparse == 0).sum(0).equal(torch::full({6}, 5)));
    CHECK(m->same);
    auto const again = build<NeedsValues>(21);
    check_equal(*m, *again);
    CHECK(m->larger == again->larger);
}

namespace {

struct FromVector : nn::Module {
    torch::Tensor mean = register_buffer("mean", torch::tensor(std::vector<float>{0.4f, 0.5f}));
};
struct ByPointer : nn::Module {
    ByPointer() { torch::zeros({2}).data_ptr<float>()[0] = 1; }
};
struct Mixes : nn::Module {
    explicit Mixes(torch::Tensor const& real) : sum(torch::ones({2}) + real) {}
    torch::Tensor sum;
};
struct Wrong : nn::Module {
    nn::MultiheadAttention attention{nn::MultiheadAttentionOptions(10, 3)};
};
struct Throws : nn::Module {
    Throws() { throw std::out_of_range("mine"); }
};
struct Pretrained : nn::Module {
    explicit Pretrained(torch::Tensor const& values, bool change = false) {
        torch::NoGradGuard no_grad;
        linear->weight.copy_(values);
        if (change) torch::Tensor(values).mul_(2);
    }
    nn::Linear linear{register_module("linear", nn::Linear(2, 2))};
};
struct FromMemory : nn::Module {
    FromMemory() {
        static float const numbers[] = {1, 2, 3};
        table = register_buffer("table", torch::from_blob(const_cast<float*>(numbers), {3}).clone());
        table.mul_(2);
        scaled = register_parameter("scaled", torch::empty({3}));
        torch::NoGradGuard no_grad;
        scaled.copy_(table);
    }
    torch::Tensor table, scaled;
};

}  // namespace

TEST_CASE("what cannot be recorded is said in one sentence", "[construct][record]") {
    for (auto const& text : {error_of([] { build<FromVector>(1); }), error_of([] { build<ByPointer>(1); }), error_of([] { build<Mixes>(1, torch::ones({2})); })}) {
        INFO(text);
        CHECK(text.find("E_CONSTRUCT: make: ") == 0);
        CHECK(text.find("build the model yourself and pass it to prepare") != std::string::npos);
        CHECK(text.find('\n') == std::string::npos);
    }
    SECTION("errors of the model stay what they were") {
        CHECK_THROWS_WITH(build<Wrong>(1), contains("embed_dim must be divisible by num_heads"));
        CHECK_THROWS_AS(build<Wrong>(1), c10::Error);
        CHECK_THROWS_AS(build<Throws>(1), std::out_of_range);
    }
    SECTION("and nothing stays behind") {
        CHECK(acc::module::interceptor() == nullptr);
        CHECK(torch::ones({2}).is_cpu());
        CHECK(on_cpu(*build<Gpt<>>(1)));
    }
    SECTION("real tensors are read, as long as they stay as they were") {
        auto const values = torch::rand({2, 2});
        CHECK(build<Pretrained>(1, values)->linear->weight.equal(values));
        CHECK(error_of([&] { build<Pretrained>(1, values, true); }).find("E_CONSTRUCT: make: a tensor of shape [2, 2] was changed") == 0);
        auto const m = build<FromMemory>(1);
        CHECK(m->table.equal(torch::tensor({2.0f, 4.0f, 6.0f})));
        CHECK(m->scaled.equal(m->table));
    }
}

TEST_CASE("a construction inside another is part of it", "[construct]") {
    struct Outer : nn::Module {
        acc::Unit<acc::Plain, Gpt<>> inner{acc::construct<acc::Unit<acc::Plain, Gpt<>>>(999)};
        nn::Linear linear{register_module("linear", nn::Linear(2, 2))};
        Outer() { register_module("inner", inner); }
    };
    auto const m = build<Outer>(5);
    CHECK(on_cpu(*m));
    check_equal(*m, *build<Outer>(5));
    CHECK_FALSE(m->inner->pos.equal(build<Outer>(6)->inner->pos));
}

TEST_CASE("empty models cost nothing", "[init_empty_weights]") {
    auto const before = global_state();
    auto const bytes = peak_bytes([] {
        acc::init_empty_weights const empty;
        nn::Linear linear(1 << 17, 1 << 17);
        nn::BatchNorm2d norm(3);
        Gpt<> model(1 << 20, 1 << 12, 2);
        auto const made = build<Gpt<>>(1);
        CHECK(linear->weight.is_meta());
        CHECK(linear->weight.requires_grad());
        CHECK(norm->num_batches_tracked.is_meta());
        CHECK(model.pos.is_meta());
        CHECK(made->pos.is_meta());
    });
    CHECK(bytes < 100);  // the 0.1 of a recipe is a real number
    CHECK(global_state().equal(before));
    CHECK(nn::Linear(2, 2)->weight.is_cpu());
}

TEST_CASE("construction needs the memory of what it keeps and of one intermediate", "[replay][materialize]") {
    struct Recipes : nn::Module {
        explicit Recipes(bool drop) {
            for (int i = 0; i < 8; ++i) register_parameter("p" + std::to_string(i), (torch::randn({1000, 100}) * 0.1).exp().t());
            if (drop) unregister_module("large");
        }
        nn::Linear large{register_module("large", nn::Linear(1000, 1000))};
    };
    constexpr int64_t tensor = 4 * 100000, large = 4 * 1001000;
    CHECK(peak_bytes([] { build<Recipes>(1, true)->large = nullptr; }) <= 8 * tensor + large + 2 * tensor + 10000);
    // A part that nobody holds is not computed.
    struct Cut : nn::Module {
        Cut() { nn::Linear(1000, 1000); }
        nn::Linear small{register_module("small", nn::Linear(10, 10))};
    };
    CHECK(peak_bytes([] { build<Cut>(1); }) < 10000);
}

TEST_CASE("arguments and results of operations are walked", "[boxed]") {
    auto const a = torch::ones({1}), b = torch::zeros({2});
    auto const count = [](c10::IValue const& v) {
        int n = 0;
        acc::module::each_tensor(v, [&](at::Tensor const&) { ++n; });
        return n;
    };
    c10::List<std::optional<at::Tensor>> optional;
    optional.push_back(a);
    optional.push_back(std::nullopt);
    CHECK(count(a) == 1);
    CHECK(count(at::Tensor()) == 0);
    CHECK(count(3) == 0);
    CHECK(count(std::vector{a, b}) == 2);
    CHECK(count(optional) == 1);
    auto const doubled = acc::module::map_tensors(std::vector{a, b}, [](at::Tensor const& t) { return t + 1; });
    CHECK(doubled.toTensorVector()[0].equal(a + 1));
    auto const mapped = acc::module::map_tensors(optional, [](at::Tensor const& t) { return t + 1; }).toOptionalTensorVector();
    CHECK(mapped[0]->equal(a + 1));
    CHECK_FALSE(mapped[1].has_value());
    CHECK(acc::module::map_tensors(7, [](at::Tensor const& t) { return t; }).toInt() == 7);
}

// ---- ties ----------------------------------------------------------------------------------------------------------------------

TEST_CASE("tied weights are one tensor", "[tie_weights][unique_parameters]") {
    nn::Sequential model;
    acc::Unit<acc::Plain, nn::Embedding> words(model.get(), "words", 7, 4);
    acc::Linear<> head(model.get(), "head", nn::LinearOptions(4, 7).bias(false)), other(model.get(), "other", 4, 4);
    CHECK(acc::unique_parameters(*model).size() == 4);
    acc::tie_weights(*head, "weight", head->weight, words->weight);
    CHECK(head->weight.is_same(words->weight));
    CHECK(model->named_parameters()["head.weight"].is_same(words->weight));
    CHECK(model->parameters().size() == 4);
    auto const unique = acc::unique_parameters(*model);
    REQUIRE(unique.size() == 3);
    CHECK(unique[0].first == "words.weight");
    CHECK(unique[1].first == "other.weight");

    head(words(torch::tensor({1}))).sum().backward();
    CHECK(head->weight.grad().is_same(words->weight.grad()));

    auto loose = torch::ones({4, 4});
    CHECK(error_of([&] { acc::tie_weights(*head, "bias", head->bias, words->weight); }).find("E_CONFIG: tie_weights: the module has no parameter \"bias\"") == 0);
    CHECK(error_of([&] { acc::tie_weights(*head, "weight", loose, words->weight); }).find("pass module->weight") != std::string::npos);
    CHECK(error_of([&] { acc::tie_weights(*head, "weight", head->weight, other->weight); }).find("of shape [7, 4], the source a Float of shape [4, 4]") != std::string::npos);
}

// ---- activation checkpointing ------------------------------------------------------------------------------------------------------

namespace {

struct DropoutBlock : nn::Module {
    explicit DropoutBlock(int64_t d = 6) : up(register_module("up", nn::Linear(d, 2 * d))), down(register_module("down", nn::Linear(2 * d, d))) {}
    torch::Tensor forward(torch::Tensor const& x) { return x + torch::dropout(down(torch::gelu(up(x))), 0.3, is_training()); }
    nn::Linear up, down;
};

std::vector<torch::Tensor> copies(std::vector<torch::Tensor> const& list) {
    std::vector<torch::Tensor> out;
    for (auto const& t : list) out.push_back(t.defined() ? t.detach().clone() : t);
    return out;
}
bool equal(std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](auto const& s, auto const& t) { return s.defined() == t.defined() && (!s.defined() || torch::equal(s, t)); });
}

/// Loss, gradients of the parameters and of the inputs, and the next random number: `loss()` with and without checkpointing.
template <class F>
std::vector<torch::Tensor> everything_of(std::vector<torch::Tensor> const& leaves, F&& loss) {
    for (auto const& t : leaves) t.mutable_grad().reset();
    torch::manual_seed(11);
    auto const l = loss();
    l.backward();
    auto found = copies({l});
    for (auto const& t : leaves) found.push_back(t.grad().defined() ? t.grad().clone() : torch::Tensor());
    found.push_back(torch::rand({}));
    return found;
}

}  // namespace

TEST_CASE("checkpointing changes no bit: dropout, tied weights, nesting, several arguments and results", "[checkpointed][forward_state]") {
    torch::manual_seed(1);
    nn::Embedding words(9, 6);
    auto first = std::make_shared<DropoutBlock>(), second = std::make_shared<DropoutBlock>();
    auto const tokens = torch::arange(8).view({2, 4});
    auto const free = torch::randn({2, 4, 6}, torch::requires_grad());
    std::vector<torch::Tensor> leaves{words->weight, free};
    for (auto const& block : {first, second})
        for (auto const& p : block->parameters()) leaves.push_back(p);
    int64_t hooks = 0;
    auto const handle = first->up->weight.register_hook([&](torch::Tensor const& g) {
        ++hooks;
        return g * 2;
    });

    struct Pair {
        torch::Tensor left, right;
        int64_t count = 0;
    };
    auto const with = [&](auto&& call) {
        return [&, call] {
            auto const x = words(tokens);
            auto const y = call([=](torch::Tensor const& t) { return first->forward(t); }, x);
            // Several arguments, one of them a number, and a struct back; the embedding's weight again: tied.
            auto const pair = call([=](torch::Tensor const& a, torch::Tensor const& b, double c) { return Pair{second->forward(a) * c, torch::matmul(b, words->weight.t()), 3}; }, y, free, 0.5);
            auto const nested = call([=](torch::Tensor const& a) { return acc::checkpointed([=](torch::Tensor const& b) { return first->forward(b).tanh(); }, second->forward(a)); }, pair.left);
            return (nested.square().sum() + pair.right.logsumexp(-1).sum()) * static_cast<double>(pair.count);
        };
    };
    auto const plain = everything_of(leaves, with([](auto f, auto const&... a) { return f(a...); }));
    auto const hooked = std::exchange(hooks, 0);
    auto const again = everything_of(leaves, with([](auto f, auto const&... a) { return acc::checkpointed(f, a...); }));
    CHECK(equal(plain, again));
    CHECK(hooks == hooked);  // a parameter's hook runs once a backward, here as there
    CHECK(plain[1].abs().max().item<float>() > 0);
    first->up->weight.remove_hook(handle);

    {
        torch::NoGradGuard const no_grad;
        CHECK_FALSE(acc::checkpointed([=](torch::Tensor const& t) { return first->forward(t); }, free).requires_grad());
    }
    auto const counts = acc::checkpointed([](torch::Tensor const& t) { return t + 1; }, torch::arange(3));
    CHECK((!counts.requires_grad() && counts.equal(torch::arange(1, 4))));
}

TEST_CASE("backward computes again as forward did: under its autocast", "[checkpointed][forward_state]") {
    using Scope = acc::precision::Bf16<>::scope<acc::device::BasicCpu<acc::comm::Self>>;
    auto block = std::make_shared<DropoutBlock>();
    auto const x = torch::randn({3, 6}, torch::requires_grad());
    std::vector<torch::Tensor> leaves{x};
    for (auto const& p : block->parameters()) leaves.push_back(p);
    std::vector<at::ScalarType> dtypes;
    auto const f = [&](torch::Tensor const& t) {
        auto const y = block->forward(at::linear(t, block->up->weight).narrow(-1, 0, 6));
        dtypes.push_back(y.scalar_type());
        return y;
    };
    auto const plain = everything_of(leaves, [&] {
        Scope const scope;
        return f(x).to(at::kFloat).square().sum();
    });
    auto const again = everything_of(leaves, [&] {
        auto const y = [&] {
            Scope const scope;
            return acc::checkpointed(f, x);
        }();
        return y.to(at::kFloat).square().sum();
    });
    CHECK(equal(plain, again));
    REQUIRE(dtypes.size() == 3);
    CHECK((dtypes[0] == dtypes[1] && dtypes[1] == dtypes[2]));
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
}

TEST_CASE("what cannot be computed again is refused", "[checkpointed]") {
    auto const x = torch::ones({3}, torch::requires_grad());
    auto const h = x * 2;
    CHECK(has(error_of([&] { acc::checkpointed([&](torch::Tensor const& t) { return t * h; }, x); }), {"E_CALL_ORDER: checkpointed", "MulBackward", "as an argument"}));
    auto const changed = x * 1;
    auto const y = acc::checkpointed([](torch::Tensor const& t) { return t.square(); }, changed).sum();
    {
        torch::NoGradGuard const no_grad;
        changed.add_(1);
    }
    CHECK(has(error_of([&] { y.backward(); }), "changed in place"));
    auto const twice = acc::checkpointed([](torch::Tensor const& t) { return t.square(); }, x).sum();
    twice.backward();
    CHECK(has(error_of([&] { twice.backward(); }), "second backward"));
    auto const kept = acc::checkpointed([](torch::Tensor const& t) { return t.square(); }, x).sum();
    x.mutable_grad().reset();
    kept.backward({}, true);
    kept.backward();
    CHECK(x.grad().equal(torch::full({3}, 4.0)));
}

TEST_CASE("the graph of a checkpointed call owns what it needs", "[checkpointed]") {
    auto const x = torch::ones({2, 6}, torch::requires_grad());
    std::weak_ptr<DropoutBlock> alive;
    torch::Tensor loss;
    {
        auto block = std::make_shared<DropoutBlock>();
        alive = block;
        loss = acc::checkpointed([block](torch::Tensor const& t) { return block->forward(t); }, x.clone()).sum();
    }
    CHECK_FALSE(alive.expired());
    loss.backward();
    CHECK(x.grad().defined());
    loss = torch::Tensor();
    CHECK(alive.expired());
}

namespace {

/// The block of a GPT.
struct GptBlock : nn::Module {
    explicit GptBlock(int64_t d)
        : norm1(register_module("norm1", nn::LayerNorm(nn::LayerNormOptions({d})))), qkv(register_module("qkv", nn::Linear(d, 3 * d))), proj(register_module("proj", nn::Linear(d, d))),
          norm2(register_module("norm2", nn::LayerNorm(nn::LayerNormOptions({d})))), up(register_module("up", nn::Linear(d, 4 * d))), down(register_module("down", nn::Linear(4 * d, d))) {}
    torch::Tensor forward(torch::Tensor x) {
        auto const b = x.size(0), t = x.size(1), d = x.size(2);
        auto const parts = qkv(norm1(x)).view({b, t, 3, 8, d / 8}).permute({2, 0, 3, 1, 4}).unbind(0);
        x = x + proj(at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, true).transpose(1, 2).reshape({b, t, d}));
        return x + down(torch::gelu(up(norm2(x))));
    }
    nn::LayerNorm norm1;
    nn::Linear qkv, proj;
    nn::LayerNorm norm2;
    nn::Linear up, down;
};

}  // namespace

TEST_CASE("24 checkpointed GPT blocks: gradients bit-equal, activations at most a sixth", "[checkpointed][layers]") {
    constexpr int64_t d = 256, context = 256, batch = 2, depth = 24;
    torch::manual_seed(2);
    acc::Layers<acc::Plain, GptBlock> blocks(depth, d);
    auto const x = torch::randn({batch, context, d});
    for (auto const& p : blocks->parameters()) p.mutable_grad() = torch::zeros_like(p).requires_grad_(false);
    auto const run = [&](int64_t every) {
        blocks->checkpoint_every(every);
        for (auto const& p : blocks->parameters()) p.mutable_grad().zero_();
        auto const bytes = peak_bytes([&] { blocks(x).square().mean().backward(); });
        std::vector<torch::Tensor> gradients;
        for (auto const& p : blocks->parameters()) gradients.push_back(p.grad().clone());
        return std::pair(bytes, gradients);
    };
    auto const [whole, expected] = run(0);
    auto const [each, found] = run(1);
    CHECK(equal(expected, found));
    CHECK(6 * each <= whole);
    auto const [third, some] = run(3);
    CHECK(equal(expected, some));
    CHECK((third < whole && third > each));
    WARN("activations: " << whole / 1000000 << " MB, every block checkpointed " << each / 1000000 << " MB (1/" << static_cast<double>(whole) / static_cast<double>(each) << "), every third " << third / 1000000 << " MB");
    CHECK(error_of([&] { blocks->checkpoint_every(-1); }).find("E_CONFIG") == 0);
}
