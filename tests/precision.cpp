// In which precision things are computed, and that it ends where it should.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, which has a CHECK of its own

#include <accelerate/comm/threads.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/module/intercept.hpp>
#include <accelerate/module/linear.hpp>
#include <accelerate/module/op_precision.hpp>
#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/autocast_policy.hpp>
#include <accelerate/precision/bf16.hpp>
#include <accelerate/precision/cast_parameters.hpp>
#include <accelerate/precision/cpu_units.hpp>
#include <accelerate/precision/fp16.hpp>
#include <accelerate/precision/fp32.hpp>
#include <accelerate/precision/fp8.hpp>
#include <accelerate/precision/tf32.hpp>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <latch>
#include <limits>
#include <random>
#include <thread>

namespace acc = accelerate;
namespace nn = torch::nn;

namespace {

using Cpu = acc::device::BasicCpu<acc::comm::Self>;
using Bf16 = acc::precision::Bf16<acc::bf16{.gemm = acc::Gemm::Native}>;  // whatever the CPU has
using Scope = Bf16::scope<Cpu>;
using Pause = Bf16::pause<Cpu>;
using Linear = acc::Linear<acc::Strategy<acc::place::Resident, Bf16>>;

struct State {
    bool enabled = at::autocast::is_autocast_enabled(at::kCPU);
    at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kCPU);
    bool cache = at::autocast::is_autocast_cache_enabled();
    bool operator==(State const&) const = default;
};

/// Counts the calls of one operation, wherever they are made, on tensors of one shape if that is given.
struct Calls : acc::module::Interceptor {
    Calls(std::string n, at::IntArrayRef s) : Interceptor(&look), name(std::move(n)), shape(s.vec()) {}
    std::string name;
    std::vector<int64_t> shape;
    int found = 0;

private:
    static void look(Interceptor& self, c10::OperatorHandle const& op, c10::DispatchKeySet keys, torch::jit::Stack& stack) {
        auto& calls = static_cast<Calls&>(self);
        if (op.schema().name() == calls.name)
            calls.found += calls.shape.empty() || (stack.end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size()))->toTensor().sizes() == at::IntArrayRef(calls.shape);
        op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, acc::module::intercept_key), &stack);
    }
};

template <class F>
int calls(std::string const& name, at::IntArrayRef shape, F&& f) {
    Calls counter(name, shape);
    acc::module::Interception const intercepted(counter);
    f();
    return counter.found;
}
template <class F>
int casts(at::IntArrayRef shape, F&& f) {
    return calls("aten::_to_copy", shape, f);
}

at::Tensor through_bf16(at::Tensor const& t) { return t.to(at::kBFloat16).to(at::kDouble); }

}  // namespace

TEST_CASE("precisions say what they are", "[policy][autocast_policy][fp32][bf16][tf32]") {
    STATIC_REQUIRE(acc::precision_policy<acc::precision::Fp32>);
    STATIC_REQUIRE(acc::precision_policy<acc::precision::Tf32>);
    STATIC_REQUIRE(acc::precision_policy<acc::precision::Bf16<>>);
    STATIC_REQUIRE(acc::precision_policy<acc::precision::Bf16<acc::bf16{.cache_enabled = false}>, Cpu>);
    STATIC_REQUIRE_FALSE(acc::precision_policy<int>);
    STATIC_REQUIRE_FALSE(acc::precision_policy<Cpu>);
    CHECK(acc::precision::Fp32::name == std::string("no"));
    CHECK(acc::precision::Tf32::name == std::string("tf32"));
    CHECK(Bf16::name == std::string("bf16"));
    STATIC_REQUIRE(acc::precision::Fp32::compute == at::kFloat);
    STATIC_REQUIRE(Bf16::parameter == at::kFloat);
    STATIC_REQUIRE(Bf16::compute == at::kBFloat16);
    STATIC_REQUIRE(Bf16::reduction == at::kFloat);
    STATIC_REQUIRE(Bf16::master == at::kFloat);
    STATIC_REQUIRE(std::is_empty_v<acc::precision::Fp32::scope<Cpu>>);
    STATIC_REQUIRE(std::is_empty_v<acc::precision::Fp32::pause<Cpu>>);
    STATIC_REQUIRE(std::is_empty_v<acc::precision::Tf32::scope<Cpu>>);
    STATIC_REQUIRE_FALSE(std::is_empty_v<Scope>);
}

TEST_CASE("the CPU is a device", "[policy][cpu]") {
    STATIC_REQUIRE(acc::device_policy<Cpu>);
    STATIC_REQUIRE(acc::device_policy<acc::device::Cpu>);
    STATIC_REQUIRE_FALSE(acc::device_policy<Bf16>);
    STATIC_REQUIRE(std::same_as<Cpu::communicator, acc::comm::Self>);
    CHECK(Cpu::current() == at::Device(at::kCPU));
    CHECK(Cpu::name == std::string("cpu"));
    Cpu::synchronize();
}

TEST_CASE("autocast ends as it was found", "[autocast]") {
    State const before;
    CHECK_FALSE(before.enabled);
    SECTION("nested") {
        Scope outer;
        State const inside;
        CHECK(inside == State{true, at::kBFloat16, true});
        {
            acc::precision::Autocast const half(at::kCPU, at::kHalf, true, false);
            CHECK(State() == State{true, at::kHalf, false});
            {
                Scope island(false);
                CHECK_FALSE(State().enabled);
            }
            CHECK(State() == State{true, at::kHalf, false});
        }
        CHECK(State() == inside);
    }
    SECTION("by an exception") {
        CHECK_THROWS_AS(
            [] {
                Scope scope;
                Pause pause;
                torch::matmul(torch::ones({2, 3}), torch::ones({2, 3}));
            }(),
            c10::Error);
    }
    SECTION("in any order") {
        std::optional<Scope> first, second, third;
        first.emplace();
        second.emplace(false);
        third.emplace();
        first.reset();
        CHECK(State().enabled);
        third.reset();
        CHECK_FALSE(State().enabled);
        CHECK(State().dtype == at::kBFloat16);
        first.emplace();
        second.reset();
        CHECK(State().enabled);
        first.reset();
    }
    SECTION("for one thread") {
        Scope scope;
        std::thread([] { CHECK_FALSE(State().enabled); }).join();
    }
    CHECK(State() == before);
}

TEST_CASE("each operation has the precision that it needs", "[autocast][bf16]") {
    auto const x = torch::rand({4, 8}), w = torch::rand({5, 8}, torch::requires_grad());
    Scope scope;
    auto const y = at::linear(x, w);
    CHECK(y.scalar_type() == at::kBFloat16);  // not copied back
    auto const expected = torch::matmul(through_bf16(x), through_bf16(w).t());
    CHECK(torch::allclose(y.to(at::kDouble), expected, 8e-3, 0));
    CHECK(y.relu().scalar_type() == at::kBFloat16);
    auto const loss = torch::mse_loss(y, torch::zeros({4, 5}));
    CHECK(loss.scalar_type() == at::kFloat);
    CHECK(loss.item<double>() == Approx(y.detach().to(at::kDouble).pow(2).mean().item<double>()).epsilon(1e-6));

    Pause pause;
    CHECK(at::linear(x, w).scalar_type() == at::kFloat);
    loss.backward();
    CHECK(w.grad().scalar_type() == at::kFloat);
    CHECK(torch::allclose(w.grad(), torch::matmul((y.detach().to(at::kFloat) / 10).t(), x), 2e-2, 0));
}

TEST_CASE("a weight is cast once in a scope", "[bf16][autocast][low_precision_linear][linear]") {
    Linear linear(6, 3);
    nn::Linear theirs(6, 3);
    auto const x = torch::rand({4, 6});
    auto const twice = [&](auto& layer) {
        layer(x);
        layer(x);
    };
    auto const scoped = [&](auto& layer) {
        Scope scope;
        twice(layer);
    };
    SECTION("LibTorch's linear casts it at every use") {
        CHECK(casts({3, 6}, [&] { scoped(linear); }) == 1);
        CHECK(casts({6, 3}, [&] { scoped(theirs); }) == 2);
        CHECK(casts({3, 6}, [&] { scoped(linear), scoped(linear); }) == 2);
    }
    SECTION("unless asked not to keep it") {
        CHECK(casts({3, 6}, [&] {
                  acc::precision::Bf16<acc::bf16{.cache_enabled = false}>::scope<Cpu> scope;
                  twice(linear);
              }) == 2);
    }
    SECTION("through a pause and an inner scope") {
        CHECK(casts({3, 6}, [&] {
                  Scope scope;
                  linear(x);
                  { Pause pause; }
                  { Scope inner; }
                  linear(x);
              }) == 1);
    }
    SECTION("until it changes") {
        Scope scope;
        auto const before = linear(x);
        {
            torch::NoGradGuard no_grad;
            linear->weight.mul_(2);
            linear->bias.mul_(2);
        }
        Bf16::parameters_changed();
        CHECK(torch::allclose(linear(x), before * 2));
    }
    SECTION("an evaluation in the scope takes nothing from the training after it") {
        Scope scope;
        {
            torch::NoGradGuard no_grad;
            linear(x);
        }
        linear(x).sum().backward();
        CHECK(linear->weight.grad().abs().sum().item<double>() > 0);
        CHECK(linear->bias.grad().sum().item<double>() == Approx(12));
    }
    SECTION("and micro-batches of one scope add up") {
        Scope scope;
        for (int i = 0; i < 2; ++i) {
            auto const y = linear(x).sum();
            Pause pause;
            y.backward();
        }
        CHECK(torch::allclose(linear->weight.grad(), (2 * x.to(at::kBFloat16).sum(0).to(at::kFloat)).expand({3, 6}), 1e-2));
    }
}

namespace {

/// A layer that keeps its weight does over a window what one does that casts at each use, and casts once.
template <class Policy>
void keeps_its_weight() {
    INFO(Policy::name);
    using Layer = acc::Linear<acc::Strategy<acc::place::Resident, Policy>>;
    Layer layer(32, 16), fresh(32, 16);
    if constexpr (requires { layer->runs_in_fp8; }) layer->runs_in_fp8 = fresh->runs_in_fp8 = true;
    {
        torch::NoGradGuard const no_grad;
        fresh->weight.copy_(layer->weight);
        fresh->bias.copy_(layer->bias);
    }
    layer->kept->keep();
    auto const x = torch::randn({3, 5, 32});
    auto const forward = [&](auto& l, int64_t i) {
        typename Policy::template scope<Cpu> const scope;
        return l(x[i]);
    };
    auto const same = [&] { return torch::equal(layer->weight.grad(), fresh->weight.grad()) && torch::equal(layer->bias.grad(), fresh->bias.grad()); };
    std::vector<int> found;
    auto const window = [&] {
        found.clear();
        for (int64_t i = 0; i < 3; ++i) {
            torch::Tensor y;
            found.push_back(calls(std::is_same_v<Policy, acc::precision::Fp8<>> ? "aten::aminmax" : "aten::_to_copy", std::is_same_v<Policy, acc::precision::Fp8<>> ? at::IntArrayRef() : at::IntArrayRef({16, 32}), [&] { y = forward(layer, i); }));
            y.sum().backward();
            forward(fresh, i).sum().backward();
        }
    };
    window();
    CHECK(same());
    CHECK(found[1] < found[0]);  // all that is left is the activation
    CHECK(found[2] == found[1]);
    {
        torch::NoGradGuard const no_grad;
        layer->weight.mul_(-2);  // noticed
        fresh->weight.mul_(-2);
    }
    window();
    CHECK(same());
    CHECK(found[1] < found[0]);
    for (auto* l : {&layer, &fresh}) (*l)->weight.template mutable_data_ptr<float>()[7] = 40;  // as an optimizer writes
    layer->kept->forget();
    window();
    CHECK(same());
    layer->kept->forget();
    {
        torch::NoGradGuard const no_grad;  // an evaluation leaves nothing to the training after it
        forward(layer, 0);
    }
    window();
    CHECK(same());
    auto const copy = std::dynamic_pointer_cast<typename Layer::impl_type>(layer->clone());
    CHECK((!copy->kept->keeps() && copy->kept != layer->kept));
}

}  // namespace

TEST_CASE("a layer keeps its weight as it multiplies it, while that stays", "[weight_cache][low_precision_linear][fp8_linear][gemm]") {
    keeps_its_weight<acc::precision::Bf16<acc::bf16{.gemm = acc::Gemm::Native}>>();
    keeps_its_weight<acc::precision::Bf16<acc::bf16{.gemm = acc::Gemm::Widened}>>();
    keeps_its_weight<acc::precision::Fp8<>>();
    Linear layer(6, 3);
    layer->kept->keep();
    CHECK(casts({3, 6}, [&] {
              for (int i = 0; i < 2; ++i) {
                  Bf16::scope<Cpu> scope;
                  layer(torch::ones({4, 6}));
              }
          }) == 1);
    CHECK(casts({3, 6}, [&] {
              acc::precision::Bf16<acc::bf16{.cache_enabled = false}>::scope<Cpu> scope;
              for (int i = 0; i < 2; ++i) layer(torch::ones({4, 6}));
          }) == 2);
}

TEST_CASE("operations follow the user's lists", "[op_precision][autocast_ops]") {
    acc::module::OpPrecision lists({.lower_precision = {"aten::exp"}, .fp32 = {"aten::linear", "aten::cat"}}, at::kCPU);
    auto const x = torch::randn({4, 6}, at::requires_grad());
    Linear linear(6, 3);
    {
        acc::module::ListedScope<Scope> const scope(&lists);
        auto const e = x.exp();
        CHECK(e.scalar_type() == at::kBFloat16);
        CHECK(torch::equal(e, x.to(at::kBFloat16).exp()));
        CHECK(at::matmul(x, x.t()).scalar_type() == at::kBFloat16);  // as LibTorch's list says
        CHECK(at::cat({e, e}).scalar_type() == at::kFloat);
        auto const y = linear(x);
        CHECK(y.scalar_type() == at::kFloat);
        CHECK(torch::allclose(y, torch::matmul(x.detach().to(at::kDouble), linear->weight.detach().t().to(at::kDouble)).to(at::kFloat) + linear->bias, 1e-6, 1e-6));
        {
            Pause const pause;
            (y.sum() + e.sum().to(at::kFloat)).backward();
            CHECK(x.exp().scalar_type() == at::kFloat);
        }
        acc::module::ListedScope<Scope> const island(&lists, false);
        CHECK(x.exp().scalar_type() == at::kFloat);
    }
    CHECK(torch::equal(linear->weight.grad(), x.detach().sum(0).expand({3, 6})));
    CHECK(x.grad().scalar_type() == at::kFloat);
    CHECK(torch::allclose(x.grad(), linear->weight.detach().sum(0) + x.detach().to(at::kBFloat16).exp().to(at::kFloat), 1e-2, 1e-2));
    CHECK(x.exp().scalar_type() == at::kFloat);
    STATIC_REQUIRE(std::is_empty_v<acc::module::ListedScope<acc::precision::NoScope>>);
    using acc::module::OpPrecision;
    CHECK_THROWS_WITH(OpPrecision({.fp32 = {"softmax"}}, at::kCPU), contains("E_CONFIG") && contains("\"softmax\"") && contains("aten::softmax"));
    CHECK_THROWS_WITH(OpPrecision({.lower_precision = {"aten::exp"}, .fp32 = {"aten::exp"}}, at::kCPU), contains("E_CONFIG") && contains("twice"));
}

TEST_CASE("TF32 is allowed where somebody allows it", "[tf32]") {
    auto& context = at::globalContext();
    auto const before = context.allowTF32CuBLAS();
    using acc::precision::AllowTf32;
    {
        AllowTf32 outer;
        CHECK(context.allowTF32CuBLAS());
        {
            AllowTf32 island(false);
            CHECK_FALSE(context.allowTF32CuBLAS());
            AllowTf32 inner;
            CHECK_FALSE(context.allowTF32CuBLAS());
        }
        CHECK(context.allowTF32CuBLAS());
    }
    CHECK(context.allowTF32CuBLAS() == before);

    // Ranks that are threads, whose scopes overlap.
    std::optional<AllowTf32> mine(std::in_place);
    std::latch opened(1), ended(1);
    std::thread other([&] {
        AllowTf32 theirs;
        opened.count_down();
        ended.wait();
    });
    opened.wait();
    mine.reset();
    CHECK(context.allowTF32CuBLAS());
    ended.count_down();
    other.join();
    CHECK(context.allowTF32CuBLAS() == before);
}

TEST_CASE("fp16 has a scaler, by type", "[fp16][grad_scaler][policy]") {
    using acc::precision::Fp16;
    STATIC_REQUIRE(acc::precision_policy<Fp16<>>);
    STATIC_REQUIRE(Fp16<>::compute == at::kHalf);
    STATIC_REQUIRE(Fp16<>::parameter == at::kFloat);
    CHECK(Fp16<>::name == std::string("fp16"));
    STATIC_REQUIRE(std::same_as<acc::precision::scaler_of<Fp16<>>, acc::precision::DynamicScaler>);
    STATIC_REQUIRE(std::same_as<acc::precision::scaler_of<Fp16<acc::fp16{.loss_scale = acc::LossScale::Constant}>>, acc::precision::ConstantScaler>);
    STATIC_REQUIRE(std::same_as<acc::precision::scaler_of<Bf16>, acc::precision::NoScaler>);
    Fp16<>::scope<Cpu> scope;
    CHECK(State() == State{true, at::kHalf, true});
    CHECK(at::linear(torch::ones({2, 3}), torch::ones({4, 3})).scalar_type() == at::kHalf);
}

/// PyTorch's own update of a scale, which its GradScaler calls.
struct TorchScale {
    at::Tensor scale, tracker = torch::zeros({1}, at::kInt);
    double growth, backoff;
    int64_t interval;

    float update(bool found_inf) {
        at::_amp_update_scale_(scale, tracker, torch::full({1}, found_inf ? 1.0f : 0.0f), growth, backoff, interval);
        return scale.item<float>();
    }
};

TEST_CASE("the dynamic scaler is PyTorch's, step for step", "[grad_scaler]") {
    std::mt19937_64 random(7);
    int64_t overflows = 0, patterns = 0, differences = 0;
    while (patterns < 10000) {
        // A pattern: 1 to 40 steps under random options, overflows rare or frequent.
        double const growth = std::array{2.0, 1.5, 4.0}[random() % 3], backoff = std::array{0.5, 0.25, 0.7}[random() % 3];
        auto const interval = static_cast<int64_t>(1 + random() % 9);
        acc::precision::DynamicScaler ours({.init_scale = 1 << 24, .growth_factor = growth, .backoff_factor = backoff, .growth_interval = interval});
        TorchScale theirs{torch::full({1}, static_cast<float>(1 << 24)), torch::zeros({1}, at::kInt), growth, backoff, interval};
        auto const one_in = 2 + random() % 20;
        for (uint64_t step = 0, steps = 1 + random() % 40; step < steps; ++step) {
            bool const overflow = random() % one_in == 0;
            overflows += overflow;
            ours.update(overflow);
            differences += ours.get_scale() != theirs.update(overflow);
        }
        ++patterns;
    }
    CHECK(differences == 0);
    CHECK(overflows >= 500);
    WARN(patterns << " patterns, " << overflows << " overflows, " << differences << " differences");
}

TEST_CASE("the scale neither overflows nor vanishes at once", "[grad_scaler]") {
    acc::precision::DynamicScaler scaler({.init_scale = 3e38, .growth_interval = 1});
    scaler.update(false);
    CHECK(scaler.get_scale() == 3e38f);
    acc::precision::DynamicScaler patient({.init_scale = 1024, .growth_interval = 3, .hysteresis = 2});
    patient.update(true);
    CHECK(patient.get_scale() == 1024);  // one overflow is forgiven
    patient.update(true);
    patient.update(true);
    CHECK(patient.get_scale() == 256);   // until it grows again
    for (int i = 0; i < 3; ++i) patient.update(false);
    patient.update(true);
    CHECK(patient.get_scale() == 512);
    acc::precision::ConstantScaler constant({.init_scale = 8});
    constant.update(true);
    CHECK(constant.get_scale() == 8);
}

TEST_CASE("a scaler goes on where it was saved", "[grad_scaler]") {
    acc::grad_scaler_options const options{.init_scale = 64, .growth_interval = 3, .hysteresis = 2};
    acc::precision::DynamicScaler through(options);
    for (bool found : {false, false, true, false, false}) through.update(found);
    acc::precision::DynamicScaler resumed{acc::grad_scaler_options{}};
    resumed.load_state_dict(through.state_dict());
    for (bool found : {false, true, true, false, false, false, true, false}) {
        through.update(found);
        resumed.update(found);
        CHECK(resumed.get_scale() == through.get_scale());
    }
    CHECK(resumed.state_dict().values == through.state_dict().values);
    auto const python = through.state_dict().values;  // torch.amp.GradScaler.state_dict() has these keys
    for (auto const* key : {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}) CHECK(python.contains(key));
    auto const before = resumed.state_dict().values;
    CHECK_THROWS_AS(resumed.load_state_dict(acc::StateDict{}), acc::Error);
    CHECK(resumed.state_dict().values == before);
}

TEST_CASE("scaler options that cannot work are refused by name", "[grad_scaler]") {
    auto const refused = [](acc::grad_scaler_options const& options, std::string const& name) {
        try {
            acc::precision::DynamicScaler const scaler(options);
        } catch (acc::Error const& e) {
            return e.code() == acc::code::config && std::string(e.what()).find(name) != std::string::npos;
        }
        return false;
    };
    CHECK(refused({.init_scale = 0}, "init_scale"));
    CHECK(refused({.init_scale = std::nan("")}, "init_scale"));
    CHECK(refused({.init_scale = 1e39}, "init_scale"));
    CHECK(refused({.growth_factor = 1}, "growth_factor"));
    CHECK(refused({.backoff_factor = 1}, "backoff_factor"));
    CHECK(refused({.backoff_factor = std::nan("")}, "backoff_factor"));
    CHECK(refused({.growth_interval = 0}, "growth_interval"));
    CHECK(refused({.hysteresis = 0}, "hysteresis"));
}

namespace {

/// The product of rounded operands in fp64, rounded: what both ways of multiplying are to give, up to the order of fp32 additions.
torch::Tensor rounded_product(torch::Tensor const& x, nn::LinearImpl const& layer, at::ScalarType compute) {
    auto const r = [&](torch::Tensor const& t) { return t.detach().to(compute).to(at::kDouble); };
    return torch::matmul(r(x), r(layer.weight).t()) + r(layer.bias);
}

template <class Precision>
void widens() {
    using Widened = acc::Linear<acc::Strategy<acc::place::Resident, Precision>>;
    constexpr auto compute = Precision::compute;
    double const ulp = compute == at::kHalf ? 1.0 / 1024 : 1.0 / 128;
    torch::manual_seed(6);
    Widened layer(40, 24);
    nn::Linear plain(40, 24);
    {
        torch::NoGradGuard const no_grad;
        plain->weight.copy_(layer->weight);
        plain->bias.copy_(layer->bias);
    }
    auto const x = torch::randn({7, 40}, torch::requires_grad());
    auto const slope = torch::randn({7, 24});
    torch::Tensor y;
    {
        typename Precision::template scope<Cpu> scope;
        y = layer(x);
        CHECK(y.scalar_type() == compute);
        CHECK(at::autocast::is_autocast_enabled(at::kCPU));  // still
    }
    auto const exact = rounded_product(x, *layer, compute);
    CHECK(torch::allclose(y.to(at::kDouble), exact, ulp, 1e-6));
    // Nearly every number is the rounded exact one to the last bit; a product of operands that were not rounded would miss half of them.
    auto const hits = [&](torch::Tensor const& of) { return (of.to(compute).to(at::kDouble) == exact.to(compute).to(at::kDouble)).to(at::kDouble).mean().template item<double>(); };
    CHECK(hits(y) > 0.97);
    CHECK(hits(plain(x.detach())) < 0.9);

    // Gradients, by the same rounding: g is y's gradient in the low precision.
    (y.to(at::kFloat) * slope).sum().backward();
    auto const r = [&](torch::Tensor const& t) { return t.detach().to(compute).to(at::kDouble); };
    CHECK(torch::allclose(x.grad().to(at::kDouble), torch::matmul(r(slope), r(layer->weight)), ulp, 1e-4));
    CHECK(torch::allclose(layer->weight.grad().to(at::kDouble), torch::matmul(r(slope).t(), r(x)), ulp, 1e-4));
    CHECK(torch::equal(layer->weight.grad(), layer->weight.grad().to(compute).to(at::kFloat)));  // rounded, as a native product's is
    CHECK(layer->weight.grad().scalar_type() == at::kFloat);

    {
        typename Precision::template scope<Cpu> scope;
        typename Precision::template scope<Cpu> island(false);
        CHECK(torch::equal(layer(x.detach()), plain(x.detach())));
    }
    CHECK(torch::equal(layer(x.detach()), plain(x.detach())));  // outside any scope
    {
        auto const copy = std::dynamic_pointer_cast<typename Widened::impl_type>(layer->clone());
        copy->to(at::kDouble), plain->to(at::kDouble);
        auto const in_fp64 = x.detach().to(at::kDouble);
        typename Precision::template scope<Cpu> scope;
        CHECK(torch::equal(copy->forward(in_fp64), plain(in_fp64)));  // which autocast leaves alone
    }
    CHECK(std::dynamic_pointer_cast<typename Widened::impl_type>(layer->clone())->weight.equal(layer->weight));
}

}  // namespace

TEST_CASE("a widened product rounds its operands and its result", "[gemm][low_precision_linear]") {
    widens<acc::precision::Bf16<acc::bf16{.gemm = acc::Gemm::Widened}>>();
    widens<acc::precision::Fp16<acc::fp16{.gemm = acc::Gemm::Widened}>>();
}

TEST_CASE("a product is widened where the CPU has no units for it", "[gemm][cpu_units]") {
    auto const equal = []<class Precision, class Same>(Precision, Same, at::ScalarType dtype) {
        acc::Linear<acc::Strategy<acc::place::Resident, Precision>> chosen(64, 48);
        acc::Linear<acc::Strategy<acc::place::Resident, Same>> same(64, 48);
        {
            torch::NoGradGuard const no_grad;
            same->weight.copy_(chosen->weight);
            same->bias.copy_(chosen->bias);
        }
        auto const x = torch::randn({5, 64});
        typename Precision::template scope<Cpu> scope;
        auto const y = chosen(x);
        CHECK(y.scalar_type() == dtype);
        CHECK(torch::equal(y, same(x)));
    };
    using acc::Gemm;
    using namespace acc::precision;
    if (cpu_has_units(at::kBFloat16)) equal(acc::precision::Bf16<>(), acc::precision::Bf16<acc::bf16{.gemm = Gemm::Native}>(), at::kBFloat16);
    else equal(acc::precision::Bf16<>(), acc::precision::Bf16<acc::bf16{.gemm = Gemm::Widened}>(), at::kBFloat16);
    if (cpu_has_units(at::kHalf)) equal(acc::precision::Fp16<>(), acc::precision::Fp16<acc::fp16{.gemm = Gemm::Native}>(), at::kHalf);
    else equal(acc::precision::Fp16<>(), acc::precision::Fp16<acc::fp16{.gemm = Gemm::Widened}>(), at::kHalf);
    CHECK(cpu_has_units(at::kFloat));
    std::ifstream cpuinfo("/proc/cpuinfo");  // as the system says
    std::string const text(std::istreambuf_iterator<char>(cpuinfo), {});
    if (text.find("flags") != std::string::npos) {
        CHECK(cpu_has_units(at::kBFloat16) == (text.find(" avx512_bf16") != std::string::npos));
        CHECK(cpu_has_units(at::kHalf) == (text.find(" avx512_fp16") != std::string::npos));
    }
}

TEST_CASE("a model in bf16 has bf16 parameters, buffers and gradients, and the handles that it had", "[cast_parameters][bf16]") {
    torch::nn::Sequential model(torch::nn::Linear(3, 4), torch::nn::BatchNorm1d(4));
    auto const handle = model->parameters()[0];
    auto const values = handle.detach().clone();
    model->parameters()[0].mutable_grad() = torch::full({4, 3}, 0.5f);
    acc::precision::cast_parameters(*model, at::kBFloat16);
    for (auto const& p : model->parameters()) CHECK(p.scalar_type() == at::kBFloat16);
    CHECK(handle.scalar_type() == at::kBFloat16);
    CHECK(torch::equal(handle.detach(), values.to(at::kBFloat16)));
    CHECK((handle.grad().scalar_type() == at::kBFloat16 && handle.grad()[0][0].item<float>() == 0.5f));
    auto const buffers = model->named_buffers();
    CHECK(buffers["1.running_mean"].scalar_type() == at::kBFloat16);
    CHECK(buffers["1.num_batches_tracked"].scalar_type() == at::kLong);
    using Pure = acc::precision::Bf16<acc::bf16{.parameters = at::kBFloat16}>;
    STATIC_REQUIRE((Pure::parameter == at::kBFloat16 && Pure::reduction == at::kBFloat16 && Pure::master == at::kFloat));
    STATIC_REQUIRE(acc::precision_policy<Pure>);
}

// ---- fp8 -------------------------------------------------------------------------------------------------------------------------

namespace {

/// The nearest number with `bits` of mantissa and at least exponent `lowest` (below it the grid is even), ties to even; within +-most.
double nearest(double x, int bits, int lowest, double most) {
    if (std::isnan(x) || x == 0) return x;
    x = std::clamp(x, -most, most);
    int exponent = 0;
    std::frexp(x, &exponent);
    double const step = std::ldexp(1.0, std::max(exponent - 1, lowest) - bits);
    return std::clamp(std::nearbyint(x / step) * step, -most, most);
}
double nearest_fp8(double x, at::ScalarType format) { return format == at::kFloat8_e5m2 ? nearest(x, 2, -14, 57344) : nearest(x, 3, -6, 448); }

/// What a recipe's fp8 makes of a matrix, number by number: amax over what shares a scale, the scale in fp32, as hardware has it.
template <class Recipe>
torch::Tensor by_hand(torch::Tensor const& a, at::ScalarType format, acc::precision::Operand operand, int margin = 0, float delayed_amax = 0) {
    auto const n = a.size(0), m = a.size(1);
    auto const in = a.to(at::kFloat).contiguous();
    auto out = torch::empty({n, m}, at::kDouble);
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < m; ++j) {
            int64_t i0 = 0, i1 = n, j0 = 0, j1 = m;
            if (acc::precision::scales_of<Recipe> != acc::precision::Fp8Scales::Matrix) i0 = i, i1 = i + 1;
            if (std::is_same_v<Recipe, acc::recipe::Blockwise>) {
                j0 = j / 128 * 128, j1 = std::min(m, j0 + 128);
                if (operand == acc::precision::Operand::Weight) i0 = i / 128 * 128, i1 = std::min(n, i0 + 128);
            }
            auto const amax = delayed_amax > 0 ? delayed_amax : in.slice(0, i0, i1).slice(1, j0, j1).abs().max().item<float>();
            auto const scale = amax > 0 ? (1.0f / amax) * static_cast<float>(std::ldexp(format == at::kFloat8_e5m2 ? 57344 : 448, -margin)) : 1.0f;
            out[i][j] = nearest_fp8(static_cast<double>(in[i][j].item<float>() * scale), format) / static_cast<double>(scale);
        }
    return out;
}

template <class Recipe, acc::Gemm G = acc::Gemm::Auto>
void follows_its_recipe() {
    INFO(Recipe::name);
    using acc::precision::Operand;
    using Policy = acc::precision::Fp8<Recipe, acc::fp8{.gemm = G}>;
    using Layer = acc::Linear<acc::Strategy<acc::place::Resident, Policy>>;
    torch::manual_seed(8);
    Layer layer(144, 32);  // one block and a part of one
    layer->runs_in_fp8 = true;
    auto const x = (torch::randn({2, 3, 144}) * torch::logspace(-2, 2, 144)).requires_grad_();
    auto const slope = torch::randn({2, 3, 32}).to(at::kBFloat16).to(at::kFloat);
    torch::Tensor y;
    auto const products = calls("aten::_scaled_mm", {}, [&] {
        {
            typename Policy::template scope<Cpu> scope;
            y = layer(x);
        }
        REQUIRE(y.scalar_type() == at::kBFloat16);
        REQUIRE(y.sizes() == at::IntArrayRef({2, 3, 32}));
        (y.to(at::kFloat) * slope).sum().backward();
    });
    CHECK(products == (G == acc::Gemm::Native && acc::precision::scales_of<Recipe> == acc::precision::Fp8Scales::Matrix ? 3 : 0));

    auto const rows = x.detach().view({6, 144}), w = layer->weight.detach(), g = slope.view({6, 32});
    auto const e4m3 = at::kFloat8_e4m3fn, e5m2 = at::kFloat8_e5m2;
    auto const hits = [](torch::Tensor const& got, torch::Tensor const& exact) {
        return (got.to(at::kBFloat16).to(at::kFloat) == exact.to(at::kBFloat16).to(at::kFloat)).to(at::kFloat).mean().template item<float>();
    };
    auto const exact_y = torch::matmul(by_hand<Recipe>(rows, e4m3, Operand::Activation), by_hand<Recipe>(w, e4m3, Operand::Weight).t()) + layer->bias.detach().to(at::kDouble);
    auto const exact_x = torch::matmul(by_hand<Recipe>(g, e5m2, Operand::Gradient), by_hand<Recipe>(w.t(), e4m3, Operand::Weight).t());
    auto const exact_w = torch::matmul(by_hand<Recipe>(g.t(), e5m2, Operand::Gradient), by_hand<Recipe>(rows.t(), e4m3, Operand::Activation).t());
    CHECK(hits(y.view({6, 32}), exact_y) > 0.97f);
    CHECK(hits(x.grad().view({6, 144}), exact_x) > 0.97f);
    if constexpr (requires { Recipe::weight_gradient(x); }) {  // rounded once more
        auto const rounded_w = by_hand<Recipe>(exact_w, e4m3, Operand::Gradient);
        auto const agrees = [&](torch::Tensor const& w8) { return ((w8 - rounded_w).abs() <= 1e-4 * rounded_w.abs() + 1e-6).to(at::kFloat).mean().template item<float>(); };
        CHECK(agrees(layer->weight.grad().to(at::kDouble)) > 0.97f);
        CHECK(agrees(exact_w) < 0.5f);
    } else {
        CHECK(torch::allclose(layer->weight.grad().to(at::kDouble), exact_w, 1e-4, 1e-4));
    }
    CHECK(torch::allclose(layer->bias.grad(), g.sum(0), 1e-5, 1e-5));
    // One that does not quantise misses.
    CHECK(hits(torch::matmul(rows, w.t()) + layer->bias.detach(), exact_y) < 0.5f);
    CHECK(hits(torch::matmul(g, w), exact_x) < 0.5f);
}

}  // namespace

TEST_CASE("fp8 rounds every bf16 number to the nearest, and stops at the largest", "[fp8_recipe]") {
    auto const all = torch::arange(65536, at::kInt).to(at::kShort).view(at::kBFloat16).to(at::kFloat);
    for (auto format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
        auto const ours = acc::precision::saturated(all, format);
        auto const most = acc::precision::largest(format);
        CHECK(torch::equal(ours.view(at::kByte), all.clamp(-most, most).to(format).view(at::kByte)));
        auto const wide = ours.to(at::kFloat);
        int64_t wrong = 0;
        for (int64_t i = 0; i < 65536; ++i) {
            auto const x = all.const_data_ptr<float>()[i], found = wide.const_data_ptr<float>()[i];
            auto const expected = nearest_fp8(static_cast<double>(x), format);
            wrong += std::isnan(x) ? !std::isnan(found) : static_cast<double>(found) != expected;
        }
        CHECK(wrong == 0);
    }
}

TEST_CASE("magnitudes of matrices and of rows", "[magnitude]") {
    for (auto const dtype : {at::kFloat, at::kBFloat16}) {
        INFO(dtype);
        auto const a = torch::randn({7, 33}).to(dtype);
        auto const expected = std::get<0>(a.to(at::kDouble).abs().max(1, true));
        auto const rows = acc::precision::row_magnitudes(a), all = acc::precision::magnitude(a);
        CHECK((rows.scalar_type() == at::kFloat && rows.sizes() == at::IntArrayRef({7, 1}) && all.scalar_type() == at::kFloat && all.dim() == 0));
        CHECK(torch::equal(rows.to(at::kDouble), expected));
        CHECK(all.item<double>() == expected.max().item<double>());
        CHECK(torch::equal(acc::precision::row_magnitudes(a.t()).to(at::kDouble), std::get<0>(a.t().to(at::kDouble).abs().max(1, true))));
        auto const spoiled = a.clone();
        spoiled[2][5] = std::numeric_limits<double>::quiet_NaN();
        CHECK(std::isnan(acc::precision::magnitude(spoiled).item<double>()));
        CHECK(acc::precision::row_magnitudes(spoiled).isnan().sum().item<int64_t>() == 1);
        spoiled[2][5] = -std::numeric_limits<double>::infinity();
        CHECK(acc::precision::magnitude(spoiled).item<double>() == std::numeric_limits<double>::infinity());
    }
}

TEST_CASE("a matrix becomes fp8 both ways, padded", "[fp8_cast]") {
    auto const bytes = [](torch::Tensor const& t) { return t.contiguous().view(at::kByte); };
    for (auto const dtype : {at::kFloat, at::kBFloat16})
        for (auto const format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2})
            for (bool const by_rows : {false, true}) {
                auto const a = torch::randn({19, 40}).to(dtype);
                auto const amax = [&](torch::Tensor const& m) { return by_rows ? acc::precision::row_magnitudes(m) : acc::precision::magnitude(m); };
                auto const rows = acc::precision::fp8_scale(amax(a), format), columns = 3 * acc::precision::fp8_scale(amax(a.t()), format);  // what is beyond the range saturates
                auto const found = acc::precision::to_fp8(a, format, rows, columns);
                auto const expected = [&](torch::Tensor const& m, torch::Tensor const& scale, int64_t pad) {
                    auto const most = acc::precision::largest(format);
                    return torch::constant_pad_nd((m.to(at::kFloat) * scale).clamp(-most, most), {0, pad}).to(format);
                };
                CHECK((found.in_rows.numbers.sizes() == at::IntArrayRef({19, 48}) && found.in_columns.numbers.sizes() == at::IntArrayRef({40, 32})));
                CHECK(torch::equal(bytes(found.in_rows.numbers), bytes(expected(a, rows, 8))));
                CHECK(torch::equal(bytes(found.in_columns.numbers), bytes(expected(a.t(), columns, 13))));
                CHECK_FALSE(acc::precision::to_fp8(a, format, rows, {}).in_columns.numbers.defined());
                CHECK_FALSE(acc::precision::to_fp8(a, format, {}, columns).in_rows.numbers.defined());
            }
}

TEST_CASE("an fp8 layer differs from fp32 as its recipe says", "[fp8_gemm][fp8_linear][fp8_recipe][fp8]") {
    follows_its_recipe<acc::recipe::Tensorwise>();
    follows_its_recipe<acc::recipe::Rowwise>();
    follows_its_recipe<acc::recipe::Blockwise>();
    follows_its_recipe<acc::recipe::Delayed<>>();  // without a history it goes by the numbers at hand
    follows_its_recipe<acc::recipe::LowBitOptimizer<1, acc::recipe::Rowwise>>();
    SECTION("by LibTorch's product") {  // what GPUs use; the rows of a weight's gradient are padded to 16
        follows_its_recipe<acc::recipe::Tensorwise, acc::Gemm::Native>();
        follows_its_recipe<acc::recipe::Rowwise, acc::Gemm::Native>();  // a CPU has none
    }
}

TEST_CASE("fp8: padding changes nothing, zeros stay zero, what is not finite is noticed, margin leaves room", "[fp8_recipe][fp8_linear]") {
    using acc::precision::Operand;
    auto const check_padding = [](auto recipe) {
        using Recipe = decltype(recipe);
        auto const a = torch::randn({5, 200});
        auto const through = acc::precision::through_fp8<Recipe>(a, at::kFloat8_e4m3fn, Operand::Activation);
        auto const padded = acc::precision::through_fp8<Recipe>(at::pad(a, {0, 8, 0, 11}), at::kFloat8_e4m3fn, Operand::Activation);
        CHECK(torch::equal(padded.slice(0, 0, 5).slice(1, 0, 200), through));
        CHECK(padded.slice(0, 5).abs().max().template item<float>() == 0);
        CHECK(torch::equal(acc::precision::through_fp8<Recipe>(torch::zeros({4, 6}), at::kFloat8_e4m3fn, Operand::Weight), torch::zeros({4, 6})));
        for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
            auto spoiled = a.clone();
            spoiled[2][3] = bad;
            CHECK_FALSE(acc::precision::through_fp8<Recipe>(spoiled, at::kFloat8_e4m3fn, Operand::Activation)[2][3].isfinite().template item<bool>());
        }
        CHECK(torch::equal(by_hand<Recipe>(a, at::kFloat8_e4m3fn, Operand::Activation, 2).to(at::kFloat), acc::precision::through_fp8<Recipe>(a, at::kFloat8_e4m3fn, Operand::Activation, 2)));
    };
    check_padding(acc::recipe::Tensorwise());
    check_padding(acc::recipe::Rowwise());
    check_padding(acc::recipe::Blockwise());
}

TEST_CASE("an amax history gives the magnitudes of the steps before", "[amax_history]") {
    using History = acc::precision::AmaxHistory;
    auto const follow = [](int64_t length, acc::delayed options) {
        INFO("length " << length << ", interval " << options.interval << ", max " << (options.amax_compute_algo == acc::AmaxCompute::Max));
        History history(length, options);
        std::vector<double> past;  // one a step
        double in_use = 0;
        int64_t wrong = 0;
        for (int64_t step = 0; step < 12; ++step) {
            double most = 0;
            for (float magnitude : {3.0f, 40.0f, step % 5 == 3 ? 0.0f : 7.0f * static_cast<float>(step + 1), std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
                if (step % 5 == 3 && std::isfinite(magnitude)) magnitude = 0;  // a step without: the scale stays
                auto const found = history.amax(torch::tensor({{-magnitude, 0.0f}, {magnitude / 2, 0.0f}}), History::Gradients).item<double>();
                if (!std::isfinite(magnitude)) wrong += std::isfinite(found);
                else wrong += found != (in_use > 0 ? in_use : static_cast<double>(magnitude)), most = std::max(most, static_cast<double>(magnitude));
            }
            // What was saved goes on in another one as here.
            if (step == 7) {
                acc::StateDict state;
                history.save(state, "layer.");
                CHECK(state.tensors.at("layer.amax_history").sizes() == at::IntArrayRef({2, length}));
                History other(length, options);
                other.load(state, "layer.");
                auto const same_now = history.now(at::kCPU).clone();
                other.now(at::kCPU).copy_(same_now);
                history = other;
            }
            history.step();
            past.push_back(most);
            if ((step + 1) % options.interval != 0) continue;
            auto const from = past.end() - std::min<int64_t>(length, step + 1);
            auto const next = options.amax_compute_algo == acc::AmaxCompute::Max ? *std::max_element(from, past.end()) : past.back();
            if (next > 0) in_use = next;
        }
        CHECK(wrong == 0);
        History const copy(history);
        CHECK(History(copy).now(at::kCPU).data_ptr() != history.now(at::kCPU).data_ptr());
    };
    for (int64_t length : {1, 3, 20})
        for (int64_t interval : {1, 2})
            for (auto algo : {acc::AmaxCompute::MostRecent, acc::AmaxCompute::Max}) follow(length, {algo, interval});
    History history(3, {});
    acc::StateDict state{{{"a.amax_history", torch::zeros({3})}, {"a.amax", torch::zeros({2})}}, {{"a.steps", 1}}};
    CHECK_THROWS_WITH(history.load(state, "a."), contains("E_DATA") && contains("a.amax_history"));
    CHECK_NOTHROW(history.load(state, "b."));  // not saved: starts anew
}

TEST_CASE("a delayed layer scales by the steps before, and its watch counts what that costs", "[fp8_linear][fp8_recipe][fp8_watch][fp8_report][fp8_history]") {
    using acc::precision::Operand;
    using Recipe = acc::recipe::Delayed<4>;
    using Policy = acc::precision::Fp8<Recipe, acc::fp8{.counters = true, .shadow = true}>;
    torch::manual_seed(12);
    struct Two : torch::nn::Module {
        acc::Linear<acc::Strategy<acc::place::Resident, Policy>> layer{this, "layer", 48, 32};
    } model;
    auto& layer = model.layer;
    layer->runs_in_fp8 = true;
    auto const e4m3 = at::kFloat8_e4m3fn, e5m2 = at::kFloat8_e5m2;
    auto const run = [&](torch::Tensor const& x, torch::Tensor const& slope) {
        typename Policy::template scope<Cpu> scope;
        auto const y = layer(x).to(at::kFloat);
        (y * slope).sum().backward();
        return y.detach();
    };
    auto const amax = [](torch::Tensor const& t) { return t.abs().max().item<float>(); };
    auto const x = torch::randn({8, 48}), slope = torch::randn({8, 32}).to(at::kBFloat16).to(at::kFloat);
    run(x, slope);
    acc::precision::Fp8Histories const update(model);
    update(at::kCPU, [&](torch::Tensor const& t) { t.mul_(2); });  // as if another rank had met twice as much
    acc::precision::reset_fp8_report(model);
    layer->zero_grad();

    auto const larger = x * 3, steeper = slope * 4, w = layer->weight.detach();  // more than the range has room for
    auto const y = run(larger.requires_grad_(), steeper);
    auto const rows = larger.detach();
    auto const in_use = 2 * amax(x), in_use_back = 2 * amax(slope);
    auto const x8 = by_hand<Recipe>(rows, e4m3, Operand::Activation, 0, in_use), g8 = by_hand<Recipe>(steeper, e5m2, Operand::Gradient, 0, in_use_back);
    auto const w8 = by_hand<Recipe>(w, e4m3, Operand::Weight);  // weights go by themselves
    auto const close = [](torch::Tensor const& got, torch::Tensor const& exact) { return torch::allclose(got.to(at::kDouble), exact, 1e-2, 1e-2 * exact.abs().max().item<double>()); };
    CHECK(close(y, torch::matmul(x8, w8.t()) + layer->bias.detach().to(at::kDouble)));
    CHECK(close(larger.grad(), torch::matmul(g8, w8)));
    CHECK((layer->weight.grad().to(at::kDouble) - torch::matmul(g8.t(), x8)).abs().max().item<double>() < 1e-6 * torch::matmul(g8.t(), x8).abs().max().item<double>());
    CHECK_FALSE(close(y, torch::matmul(rows, w.t()).to(at::kDouble) + layer->bias.detach().to(at::kDouble)));  // what saturated is missing

    auto const beyond = [](torch::Tensor const& t, float scale_amax, double largest, double limit) { return ((t / scale_amax * largest).abs() >= limit).sum().item<int64_t>(); };
    auto const report = acc::precision::fp8_report(model);
    REQUIRE(report.size() == 1);
    CHECK(report[0].name == "layer");
    CHECK(report[0].activation.numbers == 2 * 8 * 48);  // of the forward and of the weight's gradient
    CHECK(report[0].activation.saturated == 2 * beyond(rows, in_use, 448, 464));
    CHECK(report[0].activation.saturated > 0);
    CHECK(report[0].gradient.saturated == 2 * beyond(steeper, in_use_back, 57344, 61440));
    CHECK(report[0].weight.saturated == 0);
    CHECK(report[0].weight.underflowed == 2 * ((w8 == 0).logical_and(w != 0)).sum().item<int64_t>());
    auto const bf16 = at::matmul(rows.to(at::kBFloat16).to(at::kDouble), w.to(at::kBFloat16).to(at::kDouble).t()) + layer->bias.detach().to(at::kDouble);
    CHECK(report[0].shadow_error == Approx(((y.to(at::kDouble) - bf16).norm() / bf16.norm()).item<double>()).epsilon(0.02));
    CHECK(acc::precision::fp8_report_table(report).find("layer") != std::string::npos);

    auto const state = acc::precision::fp8_state_dict(model);
    CHECK(state.tensors.at("layer.amax")[0].item<float>() == in_use);
    auto later = state;
    later.values["version"] = 2;
    CHECK_THROWS_WITH(acc::precision::load_fp8_state_dict(model, later), contains("E_DATA") && contains("version"));
    acc::precision::load_fp8_state_dict(model, acc::StateDict{{}, {{"version", 1}}});  // loaded weights, no history: the old one is forgotten
    auto const fresh = run(rows, steeper);
    CHECK(close(fresh, torch::matmul(by_hand<Recipe>(rows, e4m3, Operand::Activation), w8.t()) + layer->bias.detach().to(at::kDouble)));
    acc::precision::load_fp8_state_dict(model, state);
    CHECK(torch::equal(run(rows, steeper), y));
}

namespace {

/// Two ranks that each keep a part of a weight, cut in the middle of a row, and send it in fp8, against a layer that has all of it.
template <class Recipe, acc::Gemm G>
void travels_in_fp8() {
    using Policy = acc::precision::Fp8<Recipe, acc::fp8{.margin = 1, .gemm = G}>;
    using Layer = acc::Linear<acc::Strategy<acc::place::Resident, Policy>>;
    torch::manual_seed(3);
    Layer whole(32, 48);
    whole->runs_in_fp8 = true;
    auto const weight = whole->weight.detach().clone(), bias = whole->bias.detach().clone(), x = torch::randn({16, 32});
    auto const learnt = [&](Layer& layer) {
        auto const in = x.clone().requires_grad_();
        torch::Tensor y;
        {
            typename Policy::template scope<Cpu> scope;
            y = layer(in);
        }
        y.to(at::kFloat).square().sum().backward();
        return std::vector<torch::Tensor>{y.detach(), in.grad(), layer->weight.grad(), layer->bias.grad()};
    };
    auto const expected = learnt(whole);
    std::atomic<int64_t> right = 0, bytes = 0;
    acc::comm::Threads::run(2, [&](acc::comm::Threads const& comm) {
        auto const flat = weight.view({-1});
        auto const cut = 5 * 32 + 7;
        auto const mine = comm.rank() == 0 ? flat.slice(0, 0, cut) : flat.slice(0, cut);
        Layer layer(32, 48);
        if (layer->weight_travels()) return;  // nobody has said that it runs in fp8
        layer->runs_in_fp8 = true;
        {
            torch::NoGradGuard const no_grad;
            layer->bias.copy_(bias);
            layer->weight.fill_(std::numeric_limits<float>::quiet_NaN());  // must not be read
        }
        if (!layer->weight_travels()) return;
        auto const amax = mine.abs().max();
        comm.all_reduce(amax, acc::comm::Reduction::Max);
        auto const scale = layer->weight_scale(amax);
        auto const sent = acc::precision::saturated(mine * scale, at::kFloat8_e4m3fn);
        bytes += static_cast<int64_t>(sent.nbytes());
        layer->take_weight({comm.all_gather(sent.view(at::kByte)).view(at::kFloat8_e4m3fn).view({48, 32}), scale});
        auto const found = learnt(layer);
        for (size_t i = 0; i < expected.size(); ++i) right += torch::equal(found[i], expected[i]);
        layer->kept->forget();
        right += learnt(layer)[0].isnan().all().template item<bool>();
        layer->eval();
        right += !layer->weight_travels();  // runs in bf16
    });
    CHECK(right == 2 * 6);
    CHECK(bytes == 32 * 48);
}

template <class Recipe, acc::fp8 O = acc::fp8{}>
bool travels() {
    acc::Linear<acc::Strategy<acc::place::Resident, acc::precision::Fp8<Recipe, O>>> layer(32, 48);
    layer->runs_in_fp8 = true;
    return layer->weight_travels();
}

}  // namespace

TEST_CASE("an fp8 layer takes a weight that was gathered in fp8", "[fp8_linear][weight_cache]") {
    travels_in_fp8<acc::recipe::Tensorwise, acc::Gemm::Widened>();
    travels_in_fp8<acc::recipe::Tensorwise, acc::Gemm::Native>();
    travels_in_fp8<acc::recipe::Delayed<4>, acc::Gemm::Widened>();
    CHECK_FALSE(travels<acc::recipe::Rowwise>());
    CHECK_FALSE(travels<acc::recipe::Blockwise>());
    CHECK(travels<acc::recipe::LowBitOptimizer<2>>());
    CHECK_FALSE(travels<acc::recipe::Tensorwise, acc::fp8{.override_dgrad = true}>());
    CHECK_FALSE(travels<acc::recipe::Tensorwise, acc::fp8{.shadow = true}>());
}

TEST_CASE("an fp8 layer runs in bf16 where it is told to", "[fp8_linear][fp8]") {
    using acc::recipe::Tensorwise;
    using Layer = acc::Linear<acc::Strategy<acc::place::Resident, acc::precision::Fp8<Tensorwise, acc::fp8{.gemm = acc::Gemm::Native}>>>;
    using AlsoInEval = acc::Linear<acc::Strategy<acc::place::Resident, acc::precision::Fp8<Tensorwise, acc::fp8{.use_autocast_during_eval = true, .gemm = acc::Gemm::Native}>>>;
    using Overridden = acc::Linear<acc::Strategy<acc::place::Resident, acc::precision::Fp8<Tensorwise, acc::fp8{.override_fprop = true, .gemm = acc::Gemm::Native}>>>;
    auto const x = torch::randn({16, 32});
    Layer layer(torch::nn::LinearOptions(32, 16).bias(false));
    AlsoInEval also(torch::nn::LinearOptions(32, 16).bias(false));
    Overridden overridden(torch::nn::LinearOptions(32, 16).bias(false));
    {
        torch::NoGradGuard const no_grad;
        also->weight.copy_(layer->weight);
        overridden->weight.copy_(layer->weight);
    }
    acc::precision::Fp8<>::scope<Cpu> scope;
    auto const bf16 = at::linear(x, layer->weight);
    CHECK(torch::equal(layer(x), bf16));  // nobody has prepared it
    layer->runs_in_fp8 = also->runs_in_fp8 = overridden->runs_in_fp8 = true;
    auto const fp8 = layer(x);
    CHECK_FALSE(torch::equal(fp8, bf16));
    CHECK((fp8 - bf16).abs().max().item<float>() < 0.2f * bf16.abs().max().item<float>());
    CHECK(torch::allclose(overridden(x).to(at::kFloat), bf16.to(at::kFloat), 1e-2, 1e-3));
    layer->eval();
    also->eval();
    CHECK(torch::equal(layer(x), bf16));
    CHECK(torch::equal(also(x), fp8));
    acc::precision::Fp8<>::scope<Cpu> island(false);
    CHECK(torch::equal(also(x), at::linear(x, also->weight)));
}
