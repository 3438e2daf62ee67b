// Whole loops: in every precision and under every sharding, what a step does, refuses and recomputes. Ranks are threads.
#include "support/catch.hpp"

#include "support/folder.hpp"
#include "support/scale.hpp"
#include "support/stderr.hpp"

namespace acc = accelerate;

namespace {

/// Two layers whose arithmetic every precision has; small enough for fp16 on a CPU.
struct Small : torch::nn::Module {
    torch::nn::Linear a{register_module("a", torch::nn::Linear(3, 4))}, b{register_module("b", torch::nn::Linear(4, 2))};
    torch::Tensor forward(torch::Tensor const& x) { return b(torch::tanh(a(x))); }
};

/// The same for fp8, in which only the middle layer runs.
template <class S = acc::Plain>
struct SmallFp8 : torch::nn::Module {
    SmallFp8() : a(this, "a", 3, 16), b(this, "b", 16, 16), c(this, "c", 16, 2) {}
    torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(torch::tanh(a(x))))); }
    acc::Linear<S> a, b, c;
};

enum class Where { Loss, Activation, Gradient };

torch::Tensor loss_of(torch::Tensor const& y) { return y.to(at::kFloat).square().mean(); }

/// A backward of a window of one, with `value` put somewhere.
template <class Accelerator, class Model>
void spoiled_backward(Accelerator& accelerator, Model& model, torch::Tensor const& x, Where where, float value) {
    auto window = accelerator.accumulate(model);
    auto y = model(x);
    if (where == Where::Activation) y = y * value;
    if (where == Where::Gradient && y.requires_grad()) y.register_hook([value](torch::Tensor const& g) { return torch::full_like(g, value); });
    auto loss = loss_of(y);
    if (where == Where::Loss) loss = loss * value;
    accelerator.backward(loss);
}

/// Parameters and optimizer state of this rank, by name.
template <class Accelerator, class Model, class Optimizer>
acc::TensorMap everything(Accelerator& accelerator, Model const& model, Optimizer const& optimizer) {
    auto all = accelerator.get_state_dict(model);
    for (auto const& [name, t] : optimizer.state_dict().tensors) all.insert("optimizer." + name, t.clone());
    return all;
}

bool same(acc::TensorMap const& a, acc::TensorMap const& b) {
    if (a.size() != b.size()) return false;
    for (auto const& [name, t] : a)
        if (!torch::equal(t, b.at(name))) return false;
    return true;
}

/// Each of three values in each of three places, on the last rank only. Every rank must skip, keep every bit, and go on afterwards.
template <class Precision, class Sharding>
int64_t skipped_cases(int64_t ranks, bool clip) {
    std::atomic<int64_t> right = 0;
    acc::debug_launcher(ranks, [&](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, Precision, Sharding, acc::loader::Stateful<>> accelerator({.grad_scaler = {.init_scale = 256}}, comm);
        auto const small = [&] {
            if constexpr (Precision::compute == at::kFloat8_e4m3fn) return accelerator.template make<SmallFp8>();
            else return std::make_shared<Small>();
        };
        auto [model, optimizer, schedule] = accelerator.prepare(small(), acc::optim::AdamW{.lr = 0.01}, acc::schedule::Linear{.total = acc::OptimizerSteps{100}});
        auto const x = torch::ones({2, 3});
        auto const step = [&, &model = model, &optimizer = optimizer, &schedule = schedule] {
            if (clip) accelerator.clip_grad_norm(model, 0.1);
            optimizer.step();
            schedule.step();
            optimizer.zero_grad();
        };
        bool const last = accelerator.process_index() == ranks - 1;
        spoiled_backward(accelerator, model, x, Where::Loss, 1);
        step();
        for (auto where : {Where::Loss, Where::Activation, Where::Gradient})
            for (float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
                auto const before = everything(accelerator, model, optimizer);
                auto const lr = optimizer.lr();
                if (last) spoiled_backward(accelerator, model, x, where, value);
                else spoiled_backward(accelerator, model, x, Where::Loss, 1);
                step();
                bool ok = accelerator.optimizer_step_was_skipped() && optimizer.step_was_skipped() && optimizer.lr() == lr && same(before, everything(accelerator, model, optimizer));
                spoiled_backward(accelerator, model, x, Where::Loss, 1);
                step();
                ok = ok && !accelerator.optimizer_step_was_skipped() && optimizer.lr() < lr && !same(before, everything(accelerator, model, optimizer));
                right += ok;
            }
    });
    return right;
}

/// Clipped or not, on `ranks` ranks.
template <class Precision, class Sharding>
void skips(int64_t ranks) {
    INFO("precision " << Precision::name << ", sharding " << Sharding::name);
    for (bool clip : {false, true}) CHECK(skipped_cases<Precision, Sharding>(ranks, clip) == 9 * ranks);
}

using SelfFp16 = Run<acc::precision::Fp16<>>;

}  // namespace

TEST_CASE("a step whose gradients are not finite changes nothing, on any rank", "[step_guard][non_finite]") {
    using namespace acc::sharding;
    using namespace acc::precision;
    SECTION("every precision, each rank with a part of the gradients") {
        skips<Fp32, Fsdp<>>(3);
        skips<Tf32, Fsdp<>>(3);
        skips<Bf16<>, Fsdp<>>(3);
        skips<Fp16<>, Fsdp<>>(3);
        skips<Fp16<acc::fp16{.loss_scale = acc::LossScale::Constant}>, Fsdp<>>(3);
        skips<Fp8<>, Fsdp<>>(3);
        skips<Bf16<acc::bf16{.parameters = at::kBFloat16}>, Fsdp<>>(3);
        skips<Bf16<acc::bf16{.parameters = at::kBFloat16}>, Ddp<>>(2);
    }
    SECTION("every sharding, without a scaler and with one") {
        skips<Fp32, None>(1);
        skips<Fp32, Ddp<>>(2);
        skips<Fp32, Ddp<acc::ddp{.gather_gradients = false}>>(2);
        skips<Fp16<>, None>(1);
        skips<Fp16<>, Ddp<>>(2);
        skips<Fp16<>, Ddp<acc::ddp{.gather_gradients = false}>>(2);
    }
}

TEST_CASE("what becomes of a step that is not finite is the user's choice", "[non_finite][step_guard]") {
    auto const nan = std::numeric_limits<float>::quiet_NaN();
    auto const steps = [&]<class Accelerator>(Accelerator& accelerator, std::vector<float> const& factors) {
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
        for (float factor : factors) {
            accelerator.backward(model(torch::full({1}, factor)).sum());
            optimizer.step();
            optimizer.zero_grad();
        }
        return model->w.template item<double>();
    };
    {
        Run<> accelerator({.non_finite = acc::NonFinite::raise()});
        CHECK_THROWS_WITH(steps(accelerator, {1, nan}), contains("E_NONFINITE") && contains("\"w\"") && contains("optimizer.step"));
    }
    {
        Run<> accelerator({.non_finite = acc::NonFinite::abort_after(2)});
        CHECK(steps(accelerator, {nan, 1, nan, 1}) == -1.5);  // never two in a row
        CHECK_THROWS_WITH(steps(accelerator, {nan, nan, 1}), contains("E_NONFINITE") && contains("2 steps in a row"));
    }
    {
        Run<> accelerator({.non_finite = acc::NonFinite::ignore()});
        CHECK(std::isnan(steps(accelerator, {1, nan})));
    }
    {
        SelfFp16 accelerator({.non_finite = acc::NonFinite::raise(), .grad_scaler = {.init_scale = 4}});
        CHECK_THROWS_WITH(steps(accelerator, {nan, nan, nan, nan}), contains("loss scale 1, now 0.5"));  // the scaler could do no more
    }
    CHECK_THROWS_WITH(acc::NonFinite::abort_after(-2), contains("E_CONFIG") && contains("found -2"));
    CHECK_THROWS_WITH(SelfFp16({.non_finite = acc::NonFinite::ignore()}), contains("E_CONFIG"));
    CHECK_THROWS_WITH(SelfFp16({.grad_scaler = {.growth_factor = 0.5}}), contains("growth_factor"));
}

namespace {

/// What a loop over eight numbers has seen and learned, where gradients become NaN at the visits that `spoils(sample, visit)` names.
struct Learned {
    std::vector<int64_t> seen;
    double w = 0;
    int64_t epoch = 0, consumed = 0, steps = 0;
};

template <class Accelerator, class F>
Learned learned_from_eight(Accelerator& accelerator, bool accumulates, F&& spoils) {
    torch::manual_seed(5);
    std::vector<float> numbers{1, 2, 3, 4, 5, 6, 7, 8};
    auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1e-3, .momentum = 0.9}, acc::data::Loader{numbers, {.batch_size = 1}});
    Learned learned;
    std::map<int64_t, int64_t> visits;
    auto const body = [&, &model = model, &optimizer = optimizer](torch::Tensor const& x) {
        auto const sample = std::lround(x.item<double>());
        learned.seen.push_back(sample);
        auto y = model(x) * torch::rand({1});
        if (spoils(sample, visits[sample]++)) y.register_hook([](torch::Tensor const& g) { return g * NAN; });
        accelerator.backward(y.sum());
        optimizer.step();
        optimizer.zero_grad();
    };
    for (auto& x : loader) {
        if (accumulates) {
            auto window = accelerator.accumulate(model);
            body(x);
        } else {
            body(x);
        }
        learned.consumed = std::max(learned.consumed, loader.consumed());
    }
    learned.w = accelerator.get_state_dict(model).at("w").template item<double>(), learned.epoch = loader.epoch(), learned.steps = optimizer.steps();
    return learned;
}

}  // namespace

TEST_CASE("a window that is not finite is computed once more where one asks for it", "[rerun][non_finite][step_guard][loops]") {
    auto const with = [](acc::NonFinite policy, int64_t window, bool accumulates, std::function<bool(int64_t, int64_t)> const& spoils) {
        Run<> accelerator({.gradient_accumulation_steps = window, .non_finite = policy});
        return learned_from_eight(accelerator, accumulates, spoils);
    };
    using V = std::vector<int64_t>;
    auto const never = [](int64_t, int64_t) { return false; };
    auto const clean = with(acc::NonFinite::rerun(), 3, true, never);
    CHECK(clean.seen == V{1, 2, 3, 4, 5, 6, 7, 8});
    CHECK(clean.w == with(acc::NonFinite::skip(), 3, true, never).w);
    {
        // A fault of the machine in the middle of a window, and one in the short window at the end.
        auto const once = with(acc::NonFinite::rerun(), 3, true, [](int64_t sample, int64_t visit) { return (sample == 5 || sample == 8) && visit == 0; });
        CHECK(once.seen == V{1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 7, 8});
        CHECK(once.w == clean.w);  // the same batches and the same random numbers
        CHECK((once.epoch == 1 && once.consumed == 8 && once.steps == 3));
    }
    {
        // A fault of the data.
        auto const always = [](int64_t sample, int64_t) { return sample == 2; };
        auto const again = with(acc::NonFinite::rerun(), 3, true, always);
        CHECK(again.seen == V{1, 2, 3, 1, 2, 3, 4, 5, 6, 7, 8});
        CHECK(again.w == with(acc::NonFinite::skip(), 3, true, always).w);
        CHECK(again.steps == 2);
    }
    CHECK(with(acc::NonFinite::rerun(), 1, false, [](int64_t sample, int64_t) { return sample == 2; }).seen == V{1, 2, 3, 4, 5, 6, 7, 8});  // no window: skipped
    SelfFp16 scaled({.non_finite = acc::NonFinite::rerun(), .grad_scaler = {.init_scale = 2}});
    // The scaler looks for its scale first: 2, 1, 0.5; then it is the data's fault.
    CHECK(learned_from_eight(scaled, true, [](int64_t sample, int64_t) { return sample <= 4; }).seen == V{1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 8});

    std::atomic<int64_t> right = 0;
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>> accelerator({.gradient_accumulation_steps = 2, .non_finite = acc::NonFinite::rerun()}, comm);
        auto const learned = learned_from_eight(accelerator, true, [](int64_t sample, int64_t visit) { return sample == 7 && visit == 0; });  // one rank's
        right += learned.seen.size() == 6 && learned.steps == 2 && learned.epoch == 1;
    });
    CHECK(right == 2);
}

namespace {

/// Eight numbers as a stream that has parts.
struct Eight {
    struct Part {
        float at, step;
        std::optional<float> next() { return at <= 8 ? std::optional(std::exchange(at, at + step)) : std::nullopt; }
    };
    Part open(int64_t k, int64_t parts) const { return {static_cast<float>(k + 1), static_cast<float>(parts)}; }
};

/// Which samples a loop over an epoch of eight has come to, in windows of three of which the second one is not finite `broken` times, and what
/// has been learned. Calls `at(accelerator, bodies, inside)` behind the step, in the body, and behind the body.
struct Told {
    std::vector<int64_t> seen;
    double w = 0;
    int64_t skipped = 0, broken = 0;
};
template <class Data>
void tell(Told& told, Data dataset, std::filesystem::path const& from, std::function<void(Run<>&, int64_t, bool)> const& at) {
    Run<> accelerator({.gradient_accumulation_steps = 3, .non_finite = acc::NonFinite::rerun()});
    torch::manual_seed(from.empty() ? 5 : 99);
    auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1e-3, .momentum = 0.9}, acc::data::Loader{std::move(dataset), {.batch_size = 1}});
    if (!from.empty()) accelerator.load_state(from);
    for (auto& x : loader) {
        auto const sample = std::lround(x.template item<double>());
        told.seen.push_back(sample);
        {
            auto window = accelerator.accumulate(model);
            auto y = model(x) * torch::rand({1});
            if (sample == 5 && told.broken > 0) --told.broken, y.register_hook([](torch::Tensor const& g) { return g * NAN; });
            accelerator.backward(y.sum());
            optimizer.step();
            told.skipped += accelerator.sync_gradients() && accelerator.optimizer_step_was_skipped();
            if (at) at(accelerator, static_cast<int64_t>(told.seen.size()), true);
            optimizer.zero_grad();
        }
        if (at) at(accelerator, static_cast<int64_t>(told.seen.size()), false);
    }
    told.w = accelerator.get_state_dict(model).at("w").template item<double>();
}

}  // namespace

TEST_CASE("a run that goes on computes a window once more as the run that never stopped", "[rerun][loops][components]") {
    auto const check = [](auto const& dataset) {
        for (int64_t broken : {0, 1, 2})
            for (int64_t stop = 1; stop <= 8; ++stop)
                for (bool inside : {true, false}) {
                    INFO("broken " << broken << ", stop behind body " << stop << ", inside " << inside);
                    Folder const folder;
                    Told through, then;
                    through.broken = broken;
                    tell(through, dataset, {}, [&](auto& accelerator, int64_t bodies, bool in_body) {
                        if (bodies == stop && in_body == inside) accelerator.save_state(folder / "here"), then = through;
                    });
                    auto const seen_before = static_cast<std::ptrdiff_t>(then.seen.size());
                    tell(then, dataset, folder / "here", {});
                    CHECK(seen_before == stop);
                    CHECK(through.seen.size() == (broken > 0 ? 11 : 8));
                    if (broken > 0 && (stop == 4 || stop == 5)) {  // inside the window that will not be finite: its first batches are gone
                        CHECK(then.seen == std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8});
                        CHECK(then.skipped == 1);
                        continue;
                    }
                    CHECK(then.seen == through.seen);
                    CHECK(then.w == through.w);
                    CHECK(then.skipped == through.skipped);
                }
    };
    check(std::vector<float>{1, 2, 3, 4, 5, 6, 7, 8});
    check(Eight());
}

TEST_CASE("a run's own lists of operations hold in its scopes", "[autocast_ops][op_precision]") {
    Run<acc::precision::Bf16<>> accelerator({.autocast_ops = {.fp32 = {"aten::addmm"}}});  // what torch::nn::Linear calls
    auto model = accelerator.prepare(std::make_shared<Small>());
    auto const x = torch::ones({2, 3});
    CHECK(model(x).scalar_type() == at::kFloat);
    {
        auto window = accelerator.accumulate(model);
        CHECK(model(x).scalar_type() == at::kFloat);
    }
    auto const scope = accelerator.autocast();
    CHECK(torch::addmm(torch::ones({2}), x, torch::ones({3, 2})).scalar_type() == at::kFloat);
    CHECK(torch::matmul(x, torch::ones({3, 2})).scalar_type() == at::kBFloat16);
    CHECK_THROWS_WITH(Run<>({.autocast_ops = {.fp32 = {"aten::linear"}}}), contains("E_CONFIG") && contains("autocast_ops"));
}

TEST_CASE("a forward that goes past the precision's scope is mentioned", "[backward][autocast]") {
    auto const said = [](auto&& body) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Bf16<>, acc::sharding::None, acc::loader::Stateful<>> accelerator;
        auto model = accelerator.prepare(std::make_shared<Small>());
        return stderr_of([&] { body(accelerator, model, torch::ones({2, 3})); });
    };
    CHECK(said([](auto& accelerator, auto& model, auto x) { accelerator.backward(loss_of(model(x))); }).empty());
    CHECK(said([](auto& accelerator, auto& model, auto x) {
              auto window = accelerator.accumulate(model);
              accelerator.backward(loss_of(model->forward(x)));
          }).empty());
    CHECK(said([](auto& accelerator, auto& model, auto x) {
              auto y = [&] {
                  auto scope = accelerator.autocast();
                  return model->forward(x);
              }();
              accelerator.backward(loss_of(y));
          }).empty());
    CHECK_THAT(said([](auto& accelerator, auto& model, auto x) { accelerator.backward(loss_of(model->forward(x))); }), contains("model->forward(x)") && contains("call model(x)"));
}

TEST_CASE("ranks raise together", "[non_finite][step_guard]") {
    std::atomic<int64_t> raised = 0;
    CHECK_THROWS_WITH(acc::debug_launcher(3, [&](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>> accelerator({.non_finite = acc::NonFinite::raise()}, comm);
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Small>(), acc::optim::Sgd{.lr = 1.0});
        spoiled_backward(accelerator, model, torch::ones({2, 3}), Where::Gradient, accelerator.process_index() == 1 ? INFINITY : 1.0f);
        try {
            optimizer.step();
        } catch (acc::Error const& e) {
            raised += e.code() == acc::code::non_finite && std::string(e.what()).find("\"a.weight\"") != std::string::npos;
            throw;
        }
    }), contains("E_NONFINITE"));
    CHECK(raised == 3);
}

TEST_CASE("a loss scale changes nothing but what fp16 can hold", "[grad_scaler][step_guard][clipping]") {
    // Powers of two are exact: any scale gives the bits of no scale, clipped or not, and whatever the scaler does in between.
    auto const train = []<class Accelerator>(Accelerator& accelerator, double max_norm) {
        torch::manual_seed(3);
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Small>(), acc::optim::AdamW{.lr = 0.01});
        std::vector<torch::Tensor> seen;
        for (int64_t i = 0; i < 8; ++i) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(loss_of(model(torch::linspace(-1, 1, 6).view({2, 3}) * static_cast<double>(i + 1))));
            if (max_norm > 0) seen.push_back(accelerator.clip_grad_norm(model, max_norm));
            if (i == 5) {
                accelerator.unscale_gradients(model);
                seen.push_back(model->a->weight.grad().clone());
            }
            optimizer.step();
            optimizer.zero_grad();
            if (accelerator.sync_gradients()) seen.push_back(model->b->weight.detach().clone());
        }
        return seen;
    };
    auto const equal = [](std::vector<torch::Tensor> const& a, std::vector<torch::Tensor> const& b) {
        return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](auto const& s, auto const& t) { return torch::equal(s, t); });
    };
    for (double max_norm : {0.0, 0.05, 100.0})
        for (int64_t k : {1, 2}) {
            SelfFp16 one({.gradient_accumulation_steps = k, .grad_scaler = {.init_scale = 1024, .growth_interval = 1000}});
            SelfFp16 growing({.gradient_accumulation_steps = k, .grad_scaler = {.init_scale = 16, .growth_interval = 1}});
            auto const a = train(one, max_norm), b = train(growing, max_norm);
            CHECK(a.size() == static_cast<size_t>(8 / k + 1 + (max_norm > 0 ? 8 : 0)));
            CHECK(equal(a, b));
            CHECK(growing.scaler().get_scale() == static_cast<float>(16 << (8 / k)));
        }
}

TEST_CASE("a model in bf16 learns with master weights, or by chance", "[cast_parameters][storage]") {
    // A step of 1e-5 is far below half the distance of bf16 numbers around the weights: without either nothing would move.
    auto const learned = []<class Precision>(Precision, acc::optimizer_storage storage) {
        std::atomic<double> loss = 0;
        acc::debug_launcher(2, [&](acc::comm::Threads comm) {
            acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, Precision, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator({}, comm);
            auto net = std::make_shared<Small>();
            {
                torch::NoGradGuard no_grad;
                for (auto& p : net->parameters()) p.fill_(0.5);
            }
            auto [model, optimizer] = accelerator.prepare(net, acc::optim::AdamW{.lr = 1e-5, .weight_decay = 0, .storage = storage});
            for (int64_t i = 0; i < 400; ++i) {
                auto window = accelerator.accumulate(model);
                accelerator.backward(loss_of(model(torch::ones({2, 3}))));  // inputs stay fp32
                accelerator.clip_grad_norm(model, 1.0);
                optimizer.step();
                optimizer.zero_grad();
            }
            if (Precision::parameter != model->a->weight.scalar_type() || Precision::parameter != model->a->weight.grad().scalar_type()) throw std::logic_error("dtype");
            if (!accelerator.gather(model->b->weight.detach().to(at::kFloat).view({1, 2, 4})).diff(1, 0).eq(0).all().template item<bool>()) throw std::logic_error("ranks differ");
            loss = 1 - model->b->bias.detach().to(at::kFloat).mean().template item<double>() / 0.5;
        });
        return loss.load();
    };
    using Masters = acc::precision::Bf16<acc::bf16{.parameters = at::kBFloat16}>;
    using Alone = acc::precision::Bf16<acc::bf16{.parameters = at::kBFloat16, .master = at::kBFloat16}>;
    CHECK(learned(acc::precision::Fp32(), {}) == Approx(400 * 1e-5 / 0.5).epsilon(0.01));
    CHECK(std::abs(learned(Masters(), {}) - 400 * 1e-5 / 0.5) < 0.5 / 256);  // within bf16's distance
    CHECK(learned(Alone(), {}) == 0);
    CHECK(learned(Alone(), {.stochastic_rounding = true}) > 0);
}

TEST_CASE("one update of the scaler a step, however many optimizers; one verdict for all", "[grad_scaler][step_guard]") {
    SelfFp16 accelerator;
    auto [first, second, one, two] = accelerator.prepare(std::make_shared<Scale>(), std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::optim::Sgd{.lr = 1.0});
    auto const step = [&, &first = first, &second = second, &one = one, &two = two](float a, float b) {
        auto window = accelerator.accumulate(first, second);
        accelerator.backward(first(torch::full({1}, a)).sum() + second(torch::full({1}, b)).sum());
        one.step();
        two.step();
        one.zero_grad();
        two.zero_grad();
    };
    step(1, 1);
    step(1, 1);
    CHECK(accelerator.scaler().state_dict().values["_growth_tracker"] == 2);
    step(1, INFINITY);  // the first must not step either
    CHECK((one.steps() == 2 && two.steps() == 2 && one.step_was_skipped() && two.step_was_skipped()));
    CHECK(accelerator.scaler().get_scale() == 32768);
    step(1, 1);
    CHECK((one.steps() == 3 && two.steps() == 3 && !accelerator.optimizer_step_was_skipped()));
}

TEST_CASE("who is clipped together with infinite gradients does not step, though a step before had allowed it", "[clipping][step_guard]") {
    SelfFp16 accelerator;
    auto [first, second, one, two] = accelerator.prepare(std::make_shared<Scale>(), std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::optim::Sgd{.lr = 1.0});
    auto const backward = [&](auto& model, float x) { accelerator.backward(model(torch::full({1}, x)).sum()); };
    backward(first, 1), backward(second, 1);
    one.step();  // both are finite
    one.zero_grad();
    backward(first, INFINITY);
    CHECK_FALSE(std::isfinite(accelerator.clip_grad_norm(std::tie(second, first), 0.5).item<float>()));
    auto const before = accelerator.scaler().get_scale();
    two.step();
    CHECK(two.step_was_skipped());
    one.step();
    CHECK((one.step_was_skipped() && one.steps() == 1 && two.steps() == 0));
    CHECK(accelerator.scaler().get_scale() == before / 2);
}

namespace {

template <class S = acc::Plain>
struct Deep : torch::nn::Module {
    struct Block : torch::nn::Module {
        Block() : a(this, "a", 4, 4), b(this, "b", 4, 4) {}
        torch::Tensor forward(torch::Tensor const& x) { return x + torch::dropout(b(torch::tanh(a(x))), 0.2, is_training()); }
        acc::Linear<S> a, b;
    };
    Deep() : blocks(this, "blocks", 3) {}
    torch::Tensor forward(torch::Tensor const& x) { return blocks(x); }
    acc::Layers<S, Block> blocks;
};

/// Parameters after some steps and their averages, of the main rank.
template <class Sharding>
acc::TensorMap trained_deep(int64_t ranks, int64_t checkpoint_every) {
    acc::TensorMap found;
    acc::debug_launcher(ranks, [&](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Bf16<>, Sharding, acc::loader::Stateful<>> accelerator({.gradient_accumulation_steps = 2}, comm);
        auto [model, optimizer] = accelerator.prepare(accelerator.template make<Deep>(), acc::optim::AdamW{.lr = 0.01, .ema_decay = 0.5});
        model->blocks->checkpoint_every(checkpoint_every);
        model->train(ranks == 1);  // with ranks as threads the random numbers are shared
        torch::manual_seed(4);
        for (int64_t i = 0; i < 6; ++i) {
            auto window = accelerator.accumulate(model);
            accelerator.backward(loss_of(model(torch::linspace(-1, 1, 8).view({2, 4}) * static_cast<double>(i + 1 + accelerator.process_index()))));
            accelerator.clip_grad_norm(model, 0.5);
            optimizer.step();
            optimizer.zero_grad();
        }
        auto all = accelerator.get_state_dict(model);
        for (auto& [name, t] : all) t = t.clone();
        {
            auto const averages = optimizer.average_parameters();
            model->eval();
            torch::NoGradGuard no_grad;
            all.insert("average of the output", model(torch::ones({2, 4})).clone());
            for (auto const& [name, t] : accelerator.get_state_dict(model)) all.insert("average of " + name, t.clone());
        }
        if (!same(accelerator.get_state_dict(model), [&] {
                acc::TensorMap weights;
                for (auto const& [name, t] : all)
                    if (!name.starts_with("average")) weights.insert(name, t);
                return weights;
            }())) throw std::logic_error("the weights did not come back");
        if (accelerator.is_main_process()) found = all;
    });
    return found;
}

}  // namespace

TEST_CASE("checkpointed blocks train to the same bits under every sharding", "[checkpointed][layers]") {
    using namespace acc::sharding;
    auto const compare = [](auto const& train) {
        auto const plain = train(0);
        CHECK(plain.size() == 12 + 1 + 12);
        CHECK_FALSE(torch::equal(plain.at("blocks.0.a.weight"), plain.at("average of blocks.0.a.weight")));
        CHECK(same(plain, train(1)));
        CHECK(same(plain, train(2)));
        return plain;
    };
    auto const one = compare([](int64_t every) { return trained_deep<None>(1, every); });
    auto const two = compare([](int64_t every) { return trained_deep<Ddp<>>(2, every); });
    auto const sliced = compare([](int64_t every) { return trained_deep<Ddp<acc::ddp{.gather_gradients = false}>>(2, every); });
    CHECK(same(one, compare([](int64_t every) { return trained_deep<Fsdp<>>(1, every); })));
    auto const cut = compare([](int64_t every) { return trained_deep<Fsdp<>>(2, every); });
    for (auto const& [name, t] : two) CHECK((torch::allclose(t, sliced.at(name), 1e-2, 1e-2) && torch::allclose(t, cut.at(name), 1e-2, 1e-2)));
    compare([](int64_t every) { return trained_deep<Fsdp<acc::fsdp{.reshard_after_forward = false}>>(2, every); });
}

namespace {

template <class S = acc::Plain>
struct Mixed : torch::nn::Module {
    Mixed() : in(this, "in", 16, 32), a(this, "a", 32, 32), b(this, "b", 32, 40), c(this, "c", 40, 32), d(this, "d", 32, 32), out(this, "out", 32, 16) {}
    torch::Tensor forward(torch::Tensor x) {
        x = torch::relu(c(torch::relu(b(torch::relu(a(in(x)))))));
        return out(torch::tanh(d(torch::relu(plain(x)))));
    }
    acc::Linear<S> in, a, b, c;
    torch::nn::Linear plain{register_module("plain", torch::nn::Linear(32, 32))};
    acc::Linear<S> d, out;
};

template <class Recipe>
using Fp8Run = Run<acc::precision::Fp8<Recipe>>;

}  // namespace

TEST_CASE("prepare decides which layers run in fp8 and says why not", "[fp8_layers][fp8_options][fp8]") {
    Fp8Run<acc::recipe::Tensorwise> accelerator({.fp8 = {.filter = [](std::string const& name) { return name != "d"; }}});
    auto model = accelerator.make<Mixed>();
    auto const rows = acc::precision::choose_fp8_layers(*model, {.filter = [](std::string const& name) { return name != "d"; }});
    std::map<std::string, std::string> reasons;
    for (auto const& row : rows) reasons[row.name] = row.reason;
    CHECK(rows.size() == 7);
    CHECK(reasons["in"] == "the first layer");
    CHECK(reasons["a"].empty());
    CHECK(reasons["b"] == "out_features 40 is no multiple of 16");
    CHECK(reasons["c"] == "in_features 40 is no multiple of 16");
    CHECK(reasons["plain"] == "a torch::nn::Linear; write acc::Linear<S>");
    CHECK(reasons["d"] == "left out by the filter");
    CHECK(reasons["out"] == "the last layer");
    CHECK(acc::precision::fp8_share(rows) == Approx(32.0 * 32 / (16 * 32 + 32 * 32 + 32 * 40 + 40 * 32 + 32 * 32 + 32 * 32 + 32 * 16)));
    auto const table = acc::precision::fp8_table(rows);
    CHECK(table.find("a      32 x 32         fp8\n") != std::string::npos);
    CHECK(table.find("plain  32 x 32         bf16: a torch::nn::Linear") != std::string::npos);
    auto prepared = accelerator.prepare(model);
    CHECK((prepared->a->runs_in_fp8 && !prepared->in->runs_in_fp8 && !prepared->d->runs_in_fp8 && !prepared->out->runs_in_fp8));
    CHECK_THROWS_WITH(accelerator.prepare(std::make_shared<Small>()), contains("E_CONFIG") && contains("acc::Linear<S>") && contains("a torch::nn::Linear"));
    Fp8Run<acc::recipe::Tensorwise> nobody({.fp8 = {.filter = [](std::string const&) { return false; }}});
    CHECK_THROWS_WITH(nobody.prepare(nobody.make<Mixed>()), contains("no layer of this model would run in fp8") && contains("left out by the filter"));
}

TEST_CASE("an fp8 model learns, under every recipe and with slices", "[fp8][fp8_linear]") {
    auto const trained = []<class Accelerator>(Accelerator& accelerator) {
        auto [model, optimizer] = accelerator.prepare(accelerator.template make<Mixed>(), acc::optim::AdamW{.lr = 0.01});
        auto const generator = at::detail::createCPUGenerator(9);
        auto const x = at::randn({64, 16}, generator), y = torch::sin(x);
        double loss = 0;
        for (int64_t i = 0; i < 150; ++i) {
            auto window = accelerator.accumulate(model);
            auto const l = torch::mse_loss(model(x).to(at::kFloat), y);
            accelerator.backward(l);
            accelerator.clip_grad_norm(model, 1.0);
            optimizer.step();
            optimizer.zero_grad();
            loss = l.template item<double>();
        }
        return loss;
    };
    Run<> fp32;
    auto const reference = trained(fp32);
    auto const compare = [&](auto recipe) {
        Fp8Run<decltype(recipe)> accelerator;
        CHECK(accelerator.mixed_precision() == "fp8");
        auto const loss = trained(accelerator);
        INFO(decltype(recipe)::name << " " << loss << ", fp32 " << reference);
        CHECK(loss < 0.1);
        CHECK(loss < 2 * reference + 0.02);
    };
    compare(acc::recipe::Tensorwise());
    compare(acc::recipe::Rowwise());
    compare(acc::recipe::Blockwise());
    compare(acc::recipe::Delayed<8>());
    compare(acc::recipe::LowBitOptimizer<3>());
    Fp8Run<acc::recipe::LowBitOptimizer<2>> low;
    auto [model, optimizer] = low.prepare(low.make<Mixed>(), acc::optim::AdamW{});
    CHECK(optimizer.recipe().storage == acc::optim::low_bit_storage(2));
    auto const own = low.prepare_optimizer(acc::optim::AdamW{.storage = {.states = at::kBFloat16}}, model);
    CHECK(own.recipe().storage.states == at::kBFloat16);
}

TEST_CASE("weights that layers keep over a window are those of the last step", "[weight_cache]") {
    // Sharded weights are not kept, and train to the same bits.
    auto const trained = []<class Precision, class Sharding>(Precision, Sharding) {
        std::vector<float> losses;
        acc::debug_launcher(1, [&](acc::comm::Threads comm) {
            acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, Precision, Sharding, acc::loader::Stateful<>> accelerator({.gradient_accumulation_steps = 3}, comm);
            auto [model, optimizer] = accelerator.prepare(accelerator.template make<SmallFp8>(), acc::optim::AdamW{.lr = 0.01});
            auto const generator = at::detail::createCPUGenerator(9);
            for (int64_t i = 0; i < 12; ++i) {
                auto window = accelerator.accumulate(model);
                auto const loss = loss_of(model(at::randn({4, 3}, generator)));
                accelerator.backward(loss);
                optimizer.step();
                optimizer.zero_grad();
                losses.push_back(loss.template item<float>());
            }
        });
        return losses;
    };
    using acc::sharding::Fsdp;
    using acc::sharding::None;
    CHECK(trained(acc::precision::Bf16<>(), None()) == trained(acc::precision::Bf16<>(), Fsdp<>()));
    CHECK(trained(acc::precision::Fp8<>(), None()) == trained(acc::precision::Fp8<>(), Fsdp<>()));
}

TEST_CASE("ranks share the history of an fp8 model", "[fp8_history][amax_history]") {
    // Two ranks with a half of the batch each scale by what one with all of it would.
    using Recipe = acc::recipe::Delayed<4, acc::delayed{.amax_compute_algo = acc::AmaxCompute::Max}>;
    auto const trained = []<class Accelerator>(Accelerator& accelerator, acc::StateDict& history) {
        auto [model, optimizer] = accelerator.prepare(accelerator.template make<Mixed>(), acc::optim::AdamW{.lr = 0.01});
        auto const generator = at::detail::createCPUGenerator(9);
        auto const rows = 64 / accelerator.num_processes();
        auto const x = at::randn({64, 16}, generator).narrow(0, accelerator.process_index() * rows, rows), y = torch::sin(x);
        double loss = 0;
        for (int64_t i = 0; i < 150; ++i) {
            auto window = accelerator.accumulate(model);
            auto const l = torch::mse_loss(model(x).to(at::kFloat), y);
            accelerator.backward(l);
            optimizer.step();
            optimizer.zero_grad();
            loss = accelerator.reduce(l.detach(), "mean").template item<double>();
            if (i == 2) history = acc::precision::fp8_state_dict(*model);
        }
        return loss;
    };
    acc::StateDict one, two[2];
    Fp8Run<Recipe> single;
    trained(single, one);
    std::atomic<int64_t> learned = 0;
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Fp8<Recipe>, acc::sharding::Fsdp<>, acc::loader::Stateful<>> accelerator({}, comm);
        learned += trained(accelerator, two[comm.rank()]) < 0.1;
    });
    CHECK(learned == 2);
    CHECK(one.tensors.size() == 4);  // of the two layers in fp8
    CHECK(same(two[0].tensors, two[1].tensors));
    for (auto const& [name, t] : one.tensors) {
        INFO(name);
        // Gradients of a mean over half as many rows are twice as large on a rank.
        auto expected = t.clone();
        expected[acc::precision::AmaxHistory::Gradients] *= 2;
        CHECK(torch::allclose(two[0].tensors.at(name), expected, 0.05));
        CHECK((expected[0] > 0).any().item<bool>());
    }
}
