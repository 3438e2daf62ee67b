// The loop's vocabulary through public names, against formulas and hand-written loops. One process.
#include "support/catch.hpp"

#include "support/folder.hpp"
#include "support/scale.hpp"

namespace acc = accelerate;

namespace {

/// x, and the loss is mean(w x): its gradient is mean(x).
std::vector<torch::Tensor> numbers(std::initializer_list<float> values) {
    std::vector<torch::Tensor> out;
    for (float v : values) out.push_back(torch::full({1}, v));
    return out;
}

/// The gradient that each optimizer step saw, for SGD with lr 1.
template <class Accelerator>
std::vector<double> gradients_of(Accelerator& accelerator, std::vector<torch::Tensor> const& data, int64_t batch_size, bool weight = false) {
    auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::data::Loader{data, {.batch_size = batch_size}});
    std::vector<double> seen;
    auto before = model->w.template item<double>();
    for (auto& x : loader) {
        auto window = accelerator.accumulate(model);
        auto const y = model(x);
        if (weight) accelerator.backward(acc::weighted(y.sum(), static_cast<double>(x.numel())));
        else accelerator.backward(y.mean());
        optimizer.step();
        optimizer.zero_grad();
        auto const after = model->w.template item<double>();
        if (after != before) seen.push_back(before - after);
        before = after;
    }
    return seen;
}

}  // namespace

TEST_CASE("prepare gives back what it was given, in any order", "[prepare][accelerator][prepared]") {
    Run<> accelerator;
    auto const data = numbers({1, 2, 3, 4});
    std::string foreign = "untouched";
    auto [schedule, text, loader, optimizer, model, number] =
        accelerator.prepare(acc::schedule::Constant{}, foreign, acc::data::Loader{data, {.batch_size = 2}}, acc::optim::AdamW{.lr = 0.25}, Scale(), 7);
    CHECK(&text == &foreign);
    CHECK(number == 7);
    CHECK(loader.size() == 2);
    CHECK(optimizer.lr() == 0.25);
    CHECK(schedule.lr() == 0.25);
    CHECK(model(torch::ones({1})).template item<float>() == 0.5f);
    auto alone = accelerator.prepare(torch::nn::Linear(2, 2));
    CHECK(alone->weight.requires_grad());
    CHECK(accelerator.unwrap_model(alone).get() == &*alone);
    auto moved = std::move(model);
    CHECK(moved->w.template item<float>() == 0.5f);
}

TEST_CASE("preparing one raw model twice is an error at run time", "[prepare]") {
    Run<> accelerator;
    auto net = std::make_shared<Scale>();
    auto first = accelerator.prepare(net);
    CHECK_THROWS_AS(accelerator.prepare(net), acc::Error);
    CHECK_THROWS_AS(accelerator.prepare_model(net, {.evaluation_mode = true}), acc::Error);
    CHECK(net->w.requires_grad());  // the one that trains goes on
}

TEST_CASE("a window averages its micro-batches; the last batch of a loader ends it", "[accumulation][backward][window]") {
    auto const data = numbers({1, 2, 3, 4, 5, 6, 7});
    SECTION("a short last window is divided by k, as in Python") {
        Run<> accelerator({.gradient_accumulation_steps = 3});
        auto const g = gradients_of(accelerator, data, 1);
        REQUIRE(g.size() == 3);
        CHECK(g[0] == Approx((1 + 2 + 3) / 3.0));
        CHECK(g[1] == Approx((4 + 5 + 6) / 3.0));
        CHECK(g[2] == Approx(7 / 3.0));
    }
    SECTION("or by what it had") {
        Run<> accelerator({.gradient_accumulation_steps = 3, .short_window = acc::ShortWindow::Rescale});
        auto const g = gradients_of(accelerator, data, 1);
        REQUIRE(g.size() == 3);
        CHECK(g[2] == Approx(7.0));
    }
    SECTION("sync_with_dataloader = false lets windows run across epochs") {
        Run<> accelerator({.gradient_accumulation_steps = 3, .sync_with_dataloader = false});
        CHECK(gradients_of(accelerator, data, 1).size() == 2);
    }
    SECTION("weighted losses give the mean over things, whatever the batches") {
        Run<> accelerator({.gradient_accumulation_steps = 2});
        auto const g = gradients_of(accelerator, data, 2, true);  // batches of 2, 2, 2 and 1
        REQUIRE(g.size() == 2);
        CHECK(g[0] == Approx((1 + 2 + 3 + 4) / 4.0));
        CHECK(g[1] == Approx((5 + 6 + 7) / 3.0));
    }
    SECTION("weighted without accumulation") {
        Run<> accelerator;
        auto const g = gradients_of(accelerator, data, 4, true);
        REQUIRE(g.size() == 2);
        CHECK(g[0] == Approx(10 / 4.0));
        CHECK(g[1] == Approx(18 / 3.0));
    }
}

TEST_CASE("the length of windows may change between two of them", "[accumulation][window][training]") {
    auto const data = numbers({1, 2, 3, 4, 5, 6, 7, 8, 9});
    // What each window takes from the weight; with `changes`, from body to the number from there on, by the setter or by a run that goes on with another.
    auto const taken = [&](std::map<int64_t, int64_t> const& changes, bool resumed) {
        Folder const folder;
        std::vector<double> seen;
        int64_t at = 0, steps = 4;
        auto const part = [&](int64_t stop) {
            Run<> accelerator({.gradient_accumulation_steps = steps});
            auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::data::Loader{data, {.batch_size = 1}});
            if (at > 0) accelerator.load_state(folder / "saved");
            auto before = model->w.template item<double>();
            for (auto& x : loader) {
                {
                    auto window = accelerator.accumulate(model);
                    CHECK_THROWS_WITH(accelerator.set_gradient_accumulation_steps(2), contains("E_CALL_ORDER"));
                    accelerator.backward(model(x).mean());
                    optimizer.step();
                    optimizer.zero_grad();
                }
                if (!accelerator.sync_gradients()) CHECK_THROWS_WITH(accelerator.set_gradient_accumulation_steps(2), contains("E_CALL_ORDER"));
                auto const after = model->w.template item<double>();
                if (after != before) seen.push_back(before - after);
                before = after;
                ++at;
                if (auto const change = changes.find(at); change != changes.end()) {
                    steps = change->second;
                    if (resumed && at == stop) return static_cast<void>(accelerator.save_state(folder / "saved"));
                    accelerator.set_gradient_accumulation_steps(steps);
                    CHECK(accelerator.gradient_accumulation_steps() == steps);
                }
            }
        };
        if (resumed) part(4);
        part(9);
        return seen;
    };
    for (bool const resumed : {false, true}) {
        auto const seen = taken({{4, 3}, {7, 1}}, resumed);
        REQUIRE(seen.size() == 4);
        CHECK(seen[0] == Approx((1 + 2 + 3 + 4) / 4.0));
        CHECK(seen[1] == Approx((5 + 6 + 7) / 3.0));
        CHECK((seen[2] == Approx(8) && seen[3] == Approx(9)));
    }
    Run<> accelerator;
    CHECK_THROWS_WITH(accelerator.set_gradient_accumulation_steps(0), contains("E_CONFIG") && contains("gradient_accumulation_steps is 0"));
    CHECK(accelerator.gradient_accumulation_steps() == 1);
}

TEST_CASE("a micro-batch may have several losses, also the one that ends its window", "[backward][window]") {
    auto const data = numbers({2, 3, 4});
    auto const gradients = [&](acc::accelerator_options const& options, auto const& losses) {
        Run<> accelerator(options);
        auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::data::Loader{data, {.batch_size = 1}});
        std::vector<double> seen;
        for (auto& x : loader) {
            auto window = accelerator.accumulate(model);
            auto const before = model->w.template item<double>();
            losses(accelerator, model(x).sum(), model(torch::full({1}, 10.0f)).sum());
            optimizer.step();
            if (accelerator.sync_gradients()) seen.push_back(before - model->w.template item<double>());
        }
        REQUIRE(seen.size() == 2);
        return seen;
    };
    auto const means = [](auto& accelerator, auto const& first, auto const& second) { accelerator.backward(first), accelerator.backward(second); };
    auto const by_weight = [](auto& accelerator, auto const& first, auto const& second) { accelerator.backward(acc::weighted(first, 3)), accelerator.backward(acc::weighted(second, 5)); };
    auto const some_by_weight = [](auto& accelerator, auto const& first, auto const& second) { accelerator.backward(first), accelerator.backward(acc::weighted(second, 5)); };
    using acc::ShortWindow;
    for (auto [window, last] : {std::pair{ShortWindow::Divide, 7.0}, {ShortWindow::Rescale, 14.0}}) {
        auto const seen = gradients({.gradient_accumulation_steps = 2, .short_window = window}, means);
        CHECK(seen[0] == Approx((2 + 10 + 3 + 10) / 2.0));
        CHECK(seen[1] == Approx(last));
        auto const weighted = gradients({.gradient_accumulation_steps = 2, .short_window = window}, by_weight);
        CHECK(weighted[0] == Approx((2 + 10 + 3 + 10) / 16.0));
        CHECK(weighted[1] == Approx((4 + 10) / 8.0));
    }
    CHECK_THROWS_WITH(gradients({.gradient_accumulation_steps = 2}, some_by_weight), contains("E_CALL_ORDER") && contains("1 of the 3") && contains("weight all or none"));
}

TEST_CASE("what a step has used, or zero_grad dropped, has no weight in what follows in its micro-batch", "[backward][training]") {
    for (bool steps : {false, true}) {
        Run<> accelerator;
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
        auto window = accelerator.accumulate(model);
        accelerator.backward(acc::weighted(model(torch::full({1}, 3.0f)).sum(), 2));
        if (steps) optimizer.step();
        else optimizer.zero_grad();
        accelerator.backward(acc::weighted(model(torch::full({1}, 5.0f)).sum(), 4));
        CHECK(model->w.grad().template item<double>() == Approx(5 / 4.0));
    }
}

TEST_CASE("outside accumulate each weighted loss is a mean of its own, of one model and of several", "[backward][training]") {
    Run<> accelerator;
    auto [one, two, optimizer] = accelerator.prepare(std::make_shared<Scale>(), std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    for (auto const& [x, weight] : {std::pair(3.0f, 2.0), {5.0f, 4.0}}) {
        auto const loss = one(torch::full({1}, x)).sum() + two(torch::full({1}, 2 * x)).sum();
        accelerator.backward(acc::weighted(loss, weight));
    }
    accelerator.backward(acc::weighted(one(torch::full({1}, 7.0f)).sum(), 8));
    CHECK(one->w.grad().template item<double>() == Approx(3 / 2.0 + 5 / 4.0 + 7 / 8.0));
    CHECK(two->w.grad().template item<double>() == Approx(6 / 2.0 + 10 / 4.0));
}

TEST_CASE("a graph is kept for who asks for it", "[backward]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    auto const y = model(torch::full({1}, 3.0f)).square().sum();
    accelerator.backward(y, {.retain_graph = true});
    accelerator.backward(acc::weighted(y, 2), {.retain_graph = true});
    accelerator.backward(2 * y);
    CHECK(model->w.grad().template item<double>() == Approx(3.5 * 2 * 9 * 0.5));
    CHECK_THROWS(accelerator.backward(y));
}

TEST_CASE("what was frozen when its model was prepared cannot be thawed unnoticed", "[backward][training][prepare]") {
    auto net = std::make_shared<torch::nn::LinearImpl>(2, 1);
    net->bias.set_requires_grad(false);
    auto const x = torch::ones({1, 2});
    SECTION("where a recipe updates it") {
        Run<> accelerator;
        auto [model, optimizer] = accelerator.prepare(net, acc::optim::Sgd{.lr = 1.0});
        accelerator.backward(model(x).sum());
        optimizer.step();
        net->bias.set_requires_grad(true);
        CHECK_THROWS_WITH(accelerator.backward(model(x).sum()), contains("E_CONFIG") && contains("parameter bias") && contains("frozen"));
        net->bias.set_requires_grad(false);
        net->weight.set_requires_grad(false);  // and the other way it is not trained for a while
        net->weight.set_requires_grad(true);
        accelerator.backward(model(x).sum());
        optimizer.step();
    }
    SECTION("a torch::optim optimizer of one process has it, and trains it as ever") {
        Run<> accelerator;
        auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 1.0));
        auto const before = net->bias.item<double>();
        net->bias.set_requires_grad(true);
        accelerator.backward(model(x).sum());
        optimizer.step();
        CHECK(net->bias.item<double>() == Approx(before - 1));
    }
}

TEST_CASE("a loop without accumulate is a window of one", "[backward][training]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    for (int i = 0; i < 3; ++i) {
        accelerator.backward(model(torch::ones({1})).sum());
        optimizer.step();
        optimizer.zero_grad();
    }
    CHECK(model->w.template item<double>() == Approx(-2.5));
    CHECK(accelerator.sync_gradients());
}

TEST_CASE("in an unfinished window step, schedule, zero_grad and clipping wait", "[accumulation][clipping]") {
    Run<> accelerator({.gradient_accumulation_steps = 2});
    auto [model, optimizer, schedule] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0}, acc::schedule::Linear{.total = acc::OptimizerSteps{4}});
    std::vector<double> norms, rates;
    for (int i = 1; i <= 4; ++i) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(torch::full({1}, static_cast<float>(i))).sum());
        norms.push_back(accelerator.clip_grad_norm(model, 100.0).template item<double>());
        optimizer.step();
        schedule.step();
        optimizer.zero_grad();
        rates.push_back(optimizer.lr());
        CHECK(accelerator.sync_gradients() == (i % 2 == 0));
    }
    CHECK(norms == std::vector<double>{0, 1.5, 1.5, 3.5});
    CHECK(rates == std::vector<double>{1.0, 0.75, 0.75, 0.5});
}

TEST_CASE("what a window has whose last batch is passed over goes on into the next one, with its weight", "[accumulation][backward]") {
    for (bool weighted : {false, true}) {
        Run<> accelerator({.gradient_accumulation_steps = 2});
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
        auto const before = model->w.template item<double>();
        for (int i = 1; i <= 4; ++i) {
            auto window = accelerator.accumulate(model);
            if (i == 2) continue;
            auto const loss = model(torch::full({1}, static_cast<float>(i))).sum();
            if (weighted) accelerator.backward(acc::weighted(loss, i));
            else accelerator.backward(loss);
            optimizer.step();
            optimizer.zero_grad();
        }
        CHECK(before - model->w.template item<double>() == Approx(weighted ? 8.0 / 8 : 8.0 / 2));
    }
}

TEST_CASE("calls out of order name both states", "[window]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    CHECK_THROWS_WITH(optimizer.step(), contains("Stepped") && contains("Accumulating"));
    accelerator.backward(model(torch::ones({1})).sum());
    optimizer.step();
    CHECK_THROWS_WITH(accelerator.clip_grad_norm(model, 1.0), contains("Clipped") && contains("Stepped"));
    optimizer.zero_grad();
    accelerator.backward(model(torch::ones({1})).sum());
    accelerator.clip_grad_norm(model, 1.0);
    CHECK_THROWS_WITH(accelerator.backward(model(torch::ones({1})).sum()), contains("Clipped"));
}

TEST_CASE("a loss of several elements, or of none that learns, is refused", "[backward]") {
    Run<> accelerator;
    auto model = accelerator.prepare(std::make_shared<Scale>());
    CHECK_THROWS_WITH(accelerator.backward(model(torch::ones({3}))), contains("one element"));
    CHECK_THROWS_WITH(accelerator.backward(torch::Tensor()), contains("undefined"));
    CHECK_THROWS_WITH(accelerator.backward(model(torch::ones({1})).sum().detach()), contains("E_DATA") && contains("detached"));
    {
        torch::NoGradGuard const no_grad;
        CHECK_THROWS_WITH(accelerator.backward(model(torch::ones({1})).sum()), contains("NoGradGuard"));
    }
    CHECK_NOTHROW(accelerator.backward(model(torch::ones({1})).sum()));
}

TEST_CASE("options that cannot be are refused", "[training_base][accelerator_options]") {
    CHECK_THROWS_WITH(Run<>({.gradient_accumulation_steps = 0}), contains("E_CONFIG") && contains("gradient_accumulation_steps is 0"));
    for (double const wrong : {0.0, -1.0, std::nan("")}) CHECK_THROWS_WITH(Run<>({.timeout_s = wrong}), contains("E_CONFIG") && contains("timeout_s"));
    for (double const right : {1e-6, 600.0, HUGE_VAL}) CHECK_NOTHROW(Run<>({.timeout_s = right}));
}

TEST_CASE("what cannot be clipped to, or optimised, is refused", "[clipping][optimizer]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    accelerator.backward(model(torch::ones({1})).sum());
    for (double const wrong : {-1.0, std::nan("")}) {
        CHECK_THROWS_WITH(accelerator.clip_grad_norm(model, wrong), contains("E_CONFIG") && contains("max_norm"));
        CHECK_THROWS_WITH(accelerator.clip_grad_value(model, wrong), contains("E_CONFIG"));
    }
    CHECK_THROWS_WITH(accelerator.clip_grad_norm(model, 1.0, std::nan("")), contains("norm_type"));
    CHECK(model->w.grad().item<double>() == 1);
    accelerator.clip_grad_norm(model, 0);
    optimizer.step();
    CHECK(model->w.item<double>() == 0.5);

    auto const frozen = std::make_shared<Scale>();
    frozen->w.set_requires_grad(false);
    CHECK_THROWS_WITH(accelerator.prepare(frozen, acc::optim::Sgd{.lr = 1.0}), contains("E_CONFIG") && contains("requires gradients"));
}

TEST_CASE("a parameter that was given other memory is still the one that is trained", "[flat_model]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 0.5});
    auto const step = [&, &model = model, &optimizer = optimizer] {
        accelerator.backward(model(torch::ones({1})).sum());
        optimizer.step();
        optimizer.zero_grad();
        return model->w.template item<double>();
    };
    CHECK(step() == 0);
    model->w.set_data(torch::full_like(model->w, 7));
    CHECK(step() == 6.5);
    CHECK(step() == 6);
    model->to(torch::kDouble);
    accelerator.backward(model(torch::ones({1}, torch::kDouble)).sum());
    CHECK_THROWS_WITH(optimizer.step(), contains("E_CONFIG") && contains("parameter w is") && contains("Double") && contains("before prepare"));
}

TEST_CASE("module->zero_grad(), which drops the views, does no harm", "[flat_model]") {
    Run<> accelerator;
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    for (int i = 0; i < 2; ++i) {
        model->zero_grad();
        accelerator.backward(model(torch::full({1}, 2.0f)).sum());
        optimizer.step();
    }
    CHECK(model->w.template item<double>() == Approx(0.5 - 4));
}

TEST_CASE("a torch::optim optimizer is accepted", "[prepare]") {
    Run<> accelerator;
    auto net = std::make_shared<Scale>();
    auto [model, optimizer] = accelerator.prepare(net, torch::optim::SGD(net->parameters(), 1.0));
    accelerator.backward(model(torch::ones({1})).sum());
    optimizer.step();
    optimizer.zero_grad();
    CHECK(model->w.template item<double>() == Approx(-0.5));
    CHECK(model->w.grad().template item<double>() == 0);
}

TEST_CASE("bf16: the scope covers forward and loss; outputs stay bf16, parameters and gradients fp32", "[training][bf16]") {
    Run<acc::precision::Bf16<>> accelerator;
    auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(4, 3), acc::optim::Sgd{.lr = 0.1});
    auto const x = torch::randn({5, 4});
    auto const target = torch::randint(3, {5});
    auto check = [&](torch::Tensor const& logits, torch::Tensor const& loss) {
        CHECK(logits.scalar_type() == torch::kBFloat16);
        CHECK(loss.scalar_type() == torch::kFloat);
    };
    {
        auto window = accelerator.accumulate(model);
        auto const logits = model(x);
        auto const loss = torch::nn::functional::cross_entropy(logits, target);
        check(logits, loss);
        accelerator.backward(loss);
        CHECK(model->weight.grad().scalar_type() == torch::kFloat);
        optimizer.step();
        optimizer.zero_grad();
    }
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    auto const logits = model(x);
    auto const loss = torch::nn::functional::cross_entropy(logits, target);
    check(logits, loss);
    accelerator.backward(loss);
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    CHECK_THROWS(model(torch::randn({5, 7})));
    CHECK_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    CHECK(accelerator.mixed_precision() == "bf16");
}

TEST_CASE("make draws the same weights for the same seed and leaves the global generator alone", "[accelerator]") {
    auto weights = [](int64_t seed) {
        Run<> accelerator({.seed = seed});
        return accelerator.make<torch::nn::LinearImpl>(6, 5)->weight.clone();
    };
    torch::manual_seed(3);
    auto const expected = torch::randn({4});
    torch::manual_seed(3);
    auto const a = weights(1);
    CHECK(torch::equal(torch::randn({4}), expected));
    CHECK(torch::equal(a, weights(1)));
    CHECK_FALSE(torch::equal(a, weights(2)));
}

TEST_CASE("save_model writes what load_file reads", "[accelerator]") {
    Run<> accelerator;
    auto model = accelerator.prepare(torch::nn::Linear(3, 2));
    auto const folder = std::filesystem::temp_directory_path() / "accelerate_test_save_model";
    accelerator.save_model(model, folder);
    auto const read = acc::load_file(folder / "model.safetensors");
    CHECK(torch::equal(read.at("weight"), model->weight));
    CHECK(torch::equal(read.at("bias"), model->bias));
    std::filesystem::remove_all(folder);
}

namespace {

/// Parameters, a view of one of them, a tied one, a frozen half, buffers, and a tensor that nobody registers.
struct Mixed : torch::nn::Module {
    explicit Mixed(int64_t d = 6)
        : up(register_module("up", torch::nn::Linear(4, d))), down(register_module("down", torch::nn::Linear(d, 4))), norm(register_module("norm", torch::nn::BatchNorm1d(4))),
          half(register_parameter("half", torch::randn({3}).to(torch::kHalf), false)), rows(register_buffer("rows", up->weight.detach().slice(0, 1, 3))), kept(torch::arange(3.) * 2),
          transposed(register_parameter("transposed", torch::randn({3, 5}).t())) {
        acc::tie_weights(*down, "bias", down->bias, norm->bias);
    }
    torch::nn::Linear up, down;
    torch::nn::BatchNorm1d norm;
    torch::Tensor half, rows, kept, transposed;
};

}  // namespace

TEST_CASE("a model made from files has their values and its constructors' structure", "[from][load_report]") {
    Run<> accelerator({.seed = 1}), other({.seed = 2});
    auto const saved = accelerator.make<Mixed>();
    auto const folder = std::filesystem::temp_directory_path() / "accelerate_test_from_files";
    std::filesystem::remove_all(folder);
    acc::save_model(*saved, folder);
    torch::manual_seed(3);
    auto const expected = torch::randn({4});
    torch::manual_seed(3);
    auto const made = other.make<Mixed>(acc::from(folder));
    CHECK(torch::equal(torch::randn({4}), expected));  // the program's generator is left alone
    auto const there = acc::model_tensors(*saved), here = acc::model_tensors(*made);
    CHECK(here.size() == there.size());
    for (auto const& [name, t] : there) {
        CHECK(torch::equal(here.at(name), t));
        CHECK(here.at(name).strides() == t.strides());
        CHECK(here.at(name).requires_grad() == t.requires_grad());
    }
    CHECK(made->down->bias.is_same(made->norm->bias));
    CHECK(made->rows.data_ptr() == made->up->weight[1].data_ptr());
    CHECK(torch::equal(made->kept, torch::arange(3.) * 2));

    auto const code_of = [](auto const& f) {
        try {
            f();
        } catch (acc::Error const& e) {
            return std::string(e.code().name);
        }
        return std::string();
    };
    auto const few = folder / "few.safetensors";
    acc::save_file({{"net.up.weight", torch::ones({6, 4}, torch::kDouble)}, {"extra", torch::ones({1})}}, few);
    CHECK(code_of([&] { other.make<Mixed>(acc::from(few)); }) == "E_CK_KEYS");
    CHECK(code_of([&] { other.make<Mixed>(acc::from(folder), int64_t{5}); }) == "E_CK_KEYS");
    CHECK(code_of([&] { other.make<Mixed>(acc::from(folder / "absent")); }) == "E_IO");
    auto const partly = other.make<Mixed>(acc::from(few, {.strict = false, .rename = {acc::rename_prefix("net.", "")}})), fresh = other.make<Mixed>();
    CHECK((torch::equal(partly->up->weight, torch::ones({6, 4})) && partly->up->weight.scalar_type() == torch::kFloat));
    CHECK(torch::equal(partly->down->weight, fresh->down->weight));  // what the file lacks is initialised as ever
    CHECK(torch::equal(partly->transposed, fresh->transposed));
    CHECK(torch::equal(partly->rows, torch::ones({2, 4})));
    std::filesystem::remove_all(folder);
}

TEST_CASE("ranks as threads rehearse a run", "[debug_launcher]") {
    std::atomic<int64_t> ranks = 0;
    acc::debug_launcher(3, [&](acc::comm::Threads communicator) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator({}, communicator);
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
        accelerator.backward(model(torch::full({1}, static_cast<float>(accelerator.process_index()))).sum());
        optimizer.step();
        ranks += model->w.template item<double>() == -0.5;  // the mean of 0, 1 and 2
        auto const all = accelerator.gather(torch::full({1}, static_cast<float>(accelerator.process_index())));
        ranks += all.numel() == 3 ? 10 : 0;
    });
    CHECK(ranks == 33);
}

TEST_CASE("unscale_gradients wants gradients that are complete", "[accelerator][window]") {
    Run<> accelerator({.gradient_accumulation_steps = 2});
    auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
    for (int64_t i = 0; i < 2; ++i) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(torch::full({1}, 3.0)).mean());
        accelerator.unscale_gradients();  // in the first micro-batch nothing
        CHECK(model.state().stage() == (i == 0 ? acc::sharding::Stage::Accumulating : acc::sharding::Stage::Unscaled));
    }
    CHECK(model->w.grad().item<double>() == 3);
    accelerator.unscale_gradients(model);
    CHECK_THROWS_WITH(accelerator.backward(model(torch::full({1}, 3.0)).mean()), contains("Unscaled"));
    CHECK(accelerator.clip_grad_norm(model, 1.0).item<double>() == Approx(3));
    optimizer.step();
    CHECK(model->w.item<double>() == Approx(-0.5));
    CHECK_THROWS_WITH(accelerator.unscale_gradients(model), contains("unscale_gradients") && contains("Stepped"));
}

TEST_CASE("free_memory lets go of what was prepared", "[accelerator][prepared]") {
    Run<> accelerator;
    auto net = std::make_shared<Scale>();
    std::weak_ptr<Scale> const alive = net;
    {
        auto [model, optimizer, loader] = accelerator.prepare(net, acc::optim::Sgd{.lr = 1.0}, acc::data::Loader{numbers({1, 2}), {.batch_size = 1}});
        CHECK_THROWS_AS(accelerator.prepare(net), acc::Error);  // prepared already
        {
            auto window = accelerator.accumulate(model);
            CHECK_THROWS_WITH(accelerator.free_memory(model), contains("window"));
        }
        accelerator.free_memory(model, optimizer, loader);
        CHECK(model.module() == nullptr);
    }
    auto again = accelerator.prepare(net);
    CHECK(again->w.item<double>() == 0.5);
    accelerator.free_memory(again);
    net.reset();
    CHECK(alive.expired());
}

TEST_CASE("a run is named as Python names it", "[process_control][partial_state]") {
    CHECK(Run<>().distributed_type() == "NO");
    CHECK(acc::PartialState<acc::device::BasicCpu<acc::comm::Self>>().distributed_type() == "NO");
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>> sharded;
    CHECK(sharded.distributed_type() == "FSDP");
    acc::debug_launcher(2, [](acc::comm::Threads comm) {
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> replicated({}, comm);
        acc::check(replicated.distributed_type() == "MULTI_CPU", acc::code::internal, replicated.distributed_type());
    });
    CHECK(acc::distributed_type("cuda", 4) == "MULTI_GPU");
    CHECK(acc::distributed_type("xpu", 2) == "MULTI_XPU");
}

TEST_CASE("clipping is done by the sweep, or before", "[clipping][clip]") {
    for (auto operations : {acc::Operations::Fused, acc::Operations::Torch}) {
        Run<> accelerator;
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0, .operations = operations});
        accelerator.backward(model(torch::full({1}, 4.0f)).sum());
        CHECK(accelerator.clip_grad_norm(model, 2.0).template item<double>() == 4);
        CHECK(accelerator.clip_grad_norm(model, 1.0).template item<double>() == Approx(2));  // of the clipped gradients
        accelerator.unscale_gradients(model);
        CHECK(model->w.grad().template item<double>() == Approx(1));
        optimizer.step();
        CHECK(model->w.template item<double>() == Approx(-0.5));
    }
}

TEST_CASE("gradients are cleared by the step that read them, or kept", "[flat_model][optimizer]") {
    for (bool keep : {false, true}) {
        Run<> accelerator({.keep_gradients = keep});
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Scale>(), acc::optim::Sgd{.lr = 1.0});
        auto const grad = [&model = model] { return model->w.grad().template item<double>(); };
        auto const backward = [&, &model = model](float x) { accelerator.backward(model(torch::full({1}, x)).sum()); };
        backward(3);
        CHECK(grad() == 3);
        optimizer.step();
        CHECK(grad() == (keep || !optimizer.sweeps() ? 3 : 0));
        optimizer.zero_grad();
        CHECK(grad() == 0);
        backward(4);  // what comes after a step that has cleared is cleared all the same
        CHECK(grad() == 4);
        optimizer.zero_grad();
        CHECK(grad() == 0);
        backward(5);
        optimizer.step();
        model(torch::full({1}, 6.0f)).sum().backward();  // not through the accelerator
        optimizer.zero_grad();
        CHECK(grad() == 0);
        backward(std::numeric_limits<float>::quiet_NaN());
        optimizer.step();  // refused: nothing was read
        optimizer.zero_grad();
        CHECK(grad() == 0);
        CHECK(model->w.template item<double>() == 0.5 - 3 - 5);
    }
}

TEST_CASE("a norm that backward has added up is the norm of the gradients", "[none][clipping][norm]") {
    struct Two : torch::nn::Module {
        torch::nn::Linear used{register_module("used", torch::nn::Linear(40, 30))}, sometimes{register_module("sometimes", torch::nn::Linear(30, 20))};
        torch::Tensor forward(torch::Tensor const& x, bool both) { return both ? sometimes(used(x)) : used(x); }
    };
    for (int64_t k : {1, 2}) {
        Run<> accelerator({.gradient_accumulation_steps = k});
        torch::manual_seed(5);
        auto [model, optimizer] = accelerator.prepare(std::make_shared<Two>(), acc::optim::Sgd{.lr = 0.01});
        auto const exact = [&model = model] {
            double sum = 0;
            for (auto const& p : model->parameters()) sum += p.grad().to(at::kDouble).square().sum().template item<double>();
            return std::sqrt(sum);
        };
        int64_t known = 0;
        for (int64_t i = 0; i < 12; ++i) {
            auto window = accelerator.accumulate(model);
            auto const y = model(torch::randn({8, 40}), i % 4 != 3);  // now and then a parameter is not reached
            if (k == 1 && i % 3 == 2) accelerator.backward(acc::weighted(y.square().sum(), 7.0));
            else accelerator.backward(y.square().mean());
            if (!accelerator.sync_gradients()) continue;
            known += model.state().sum_of_squares().has_value();
            if (i % 5 == 4) model->used->weight.mutable_grad().mul_(3);  // a user's hand after backward
            auto const before = exact();
            CHECK(accelerator.clip_grad_norm(model, 1e9).template item<double>() == Approx(before).epsilon(1e-6));
            optimizer.step();
            optimizer.zero_grad();
        }
        CHECK(known >= 2);
    }
}
