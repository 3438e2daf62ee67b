#include "support/catch.hpp"
#include "support/errors.hpp"

#include <accelerate/optim/scheduler.hpp>

namespace acc = accelerate;
namespace schedule = accelerate::schedule;
using acc::Epochs;
using acc::OptimizerSteps;
using acc::Samples;
using acc::Tokens;

namespace {

// What a schedule sees of an optimizer; a handle, as real ones are.
struct FakeOptimizer {
    double lr() const { return state->lr; }
    void set_lr(double lr) { state->lr = lr; }
    int64_t updates() const { return state->updates; }
    bool window_closed() const { return state->closed; }
    void step() { state->updates += state->closed ? 1 : 0; }

    struct State {
        double lr = 1;
        int64_t updates = 0;
        bool closed = true;
    };
    std::shared_ptr<State> state = std::make_shared<State>();
};

FakeOptimizer optimizer_with(double lr) {
    FakeOptimizer optimizer;
    optimizer.set_lr(lr);
    return optimizer;
}

// The lr of each of n steps of the loop `step(); schedule.step();`, as the Python lists below were made, and the same values out
// of order as pure functions of the position.
template <class Recipe>
void follows(Recipe recipe, std::vector<double> const& expected) {
    FakeOptimizer optimizer;
    schedule::Scheduler bound(recipe, optimizer);
    for (size_t i = 0; i < expected.size(); ++i) {
        CAPTURE(Recipe::kind, i);
        CHECK(optimizer.lr() == Approx(expected[i]).epsilon(1e-12).margin(1e-15));
        CHECK(bound.lr() == optimizer.lr());
        CHECK(bound.position() == static_cast<int64_t>(i));
        optimizer.step();
        bound.step();
    }
    for (size_t i = expected.size(); i-- > 0;) CHECK(recipe.factor(static_cast<int64_t>(i)) == Approx(expected[i]).epsilon(1e-12).margin(1e-15));
}

OptimizerSteps steps(int64_t n) { return OptimizerSteps{n}; }

}  // namespace

// The numbers were printed by Python's torch.optim.lr_scheduler 2.11 (SGD with lr 1, `o.step(); s.step()`); those with a warm-up
// are transformers' lambdas get_*_schedule_with_warmup evaluated in Python.
TEST_CASE("closed forms give Python's numbers", "[curves]") {
    // CosineAnnealingLR(T_max=8, eta_min=0.1)
    follows(schedule::Cosine{.total = steps(8), .min = 0.1},
            {1.0, 0.9657457896300791, 0.8681980515339464, 0.7222075445642905, 0.55, 0.3777924554357097, 0.2318019484660537, 0.134254210369921, 0.1});
    // PolynomialLR(total_iters=6, power=2)
    follows(schedule::Polynomial{.total = steps(6), .power = 2}, {1.0, 0.6944444444444445, 0.4444444444444446, 0.25000000000000006, 0.11111111111111116, 0.027777777777777773, 0.0, 0.0});
    // ExponentialLR(0.9)
    follows(schedule::Exponential{.gamma = 0.9}, {1.0, 0.9, 0.81, 0.7290000000000001, 0.6561000000000001, 0.5904900000000002});
    // StepLR(3, 0.5)
    follows(schedule::Step{.every = steps(3), .gamma = 0.5}, {1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25});
    // MultiStepLR([2, 5], 0.1)
    follows(schedule::MultiStep{.milestones = {steps(2), steps(5)}}, {1.0, 1.0, 0.1, 0.1, 0.1, 0.010000000000000002, 0.010000000000000002});
    // OneCycleLR(1.0, total_steps=10)
    follows(schedule::OneCycle{.total = steps(10)}, {0.040000000000000036, 0.52, 1.0, 0.9504846320134737, 0.8117456539497631, 0.6112620219362893, 0.38874197806371075, 0.18825834605023697,
                                                     0.049519367986526286, 4e-06});
    // OneCycleLR(1.0, total_steps=12, pct_start=0.25, anneal_strategy="linear", three_phase=True, div_factor=10, final_div_factor=100)
    follows(schedule::OneCycle{.total = steps(12), .pct_start = 0.25, .div_factor = 10, .final_div_factor = 100, .three_phase = true, .linear = true},
            {0.1, 0.55, 1.0, 0.55, 0.09999999999999998, 0.08585714285714287, 0.07171428571428572, 0.05757142857142858, 0.043428571428571434, 0.02928571428571429, 0.015142857142857152,
             0.0010000000000000009});

    // get_cosine_schedule_with_warmup(3, 10)
    follows(schedule::Cosine{.warmup = steps(3), .total = steps(10)}, {0.0, 0.3333333333333333, 0.6666666666666666, 1.0, 0.9504844339512095, 0.8117449009293668, 0.6112604669781572,
                                                                       0.38873953302184283, 0.18825509907063326, 0.04951556604879048, 0.0});
    // get_cosine_with_hard_restarts_schedule_with_warmup(2, 12, num_cycles=3)
    follows(schedule::Cosine{.warmup = steps(2), .total = steps(12), .cycles = 3, .restarts = true},
            {0.0, 0.5, 1.0, 0.7938926261462365, 0.3454915028125262, 0.02447174185242329, 0.9045084971874735, 0.5, 0.09549150281252644, 0.9755282581475769, 0.6545084971874732, 0.20610737385376326,
             0.0, 0.0});
    // get_linear_schedule_with_warmup(3, 8)
    follows(schedule::Linear{.warmup = steps(3), .total = steps(8)}, {0.0, 0.3333333333333333, 0.6666666666666666, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0});
    // get_polynomial_decay_schedule_with_warmup(2, 8, lr_end=0.1, power=3)
    follows(schedule::Polynomial{.warmup = steps(2), .total = steps(8), .power = 3, .min = 0.1},
            {0.0, 0.5, 1.0, 0.6208333333333335, 0.3666666666666668, 0.21250000000000002, 0.13333333333333336, 0.10416666666666667, 0.1, 0.1});
    // get_inverse_sqrt_schedule(4)
    follows(schedule::InverseSqrt{.warmup = steps(4)}, {0.0, 0.25, 0.5, 0.75, 1.0, 0.8944271909999159, 0.8164965809277261, 0.7559289460184544, 0.7071067811865475});
    // get_constant_schedule_with_warmup(2)
    follows(schedule::Constant{.warmup = steps(2), .value = 0.5}, {0.0, 0.25, 0.5, 0.5});
}

TEST_CASE("after its end a schedule stays where it is", "[curves]") {
    CHECK(schedule::Cosine{.total = steps(8), .min = 0.1}.factor(1000) == Approx(0.1));
    CHECK(schedule::Linear{.total = steps(8), .min = 0.2}.factor(1000) == Approx(0.2));
    CHECK(schedule::OneCycle{.total = steps(8)}.factor(1000) == Approx(4e-6));
    CHECK(schedule::InverseSqrt{}.factor(30000) == Approx(0.5));
    CHECK(schedule::OneCycle{.total = steps(1)}.factor(0) > 0);
}

// The "lr" list of the golden run `single`: lr 1e-3, five warm-up steps of forty.
TEST_CASE("a lambda gives the golden run's learning rates", "[curves][scheduler]") {
    std::vector<double> const expected{
        0.0002, 0.0004, 0.0006, 0.0008, 0.001, 0.001, 0.0009979871469976197, 0.0009919647942993148, 0.0009819814303479266, 0.0009681174353198686, 0.0009504844339512095, 0.000929224396800933,
        0.0009045084971874737, 0.0008765357330018055, 0.0008455313244934324, 0.0008117449009293668, 0.0007754484907260512, 0.0007369343312364993, 0.0006965125158269618, 0.0006545084971874737,
        0.0006112604669781572, 0.0005671166329088278, 0.0005224324151752575, 0.0004775675848247426, 0.0004328833670911723, 0.00038873953302184284, 0.00034549150281252633, 0.0003034874841730383,
        0.0002630656687635007, 0.0002245515092739488, 0.00018825509907063325, 0.00015446867550656767, 0.00012346426699819457, 9.549150281252633e-05, 7.077560319906695e-05, 4.9515566048790485e-05,
        3.18825646801314e-05, 1.801856965207338e-05, 8.035205700685167e-06, 2.012853002380466e-06};
    auto optimizer = optimizer_with(1e-3);
    schedule::Scheduler bound(schedule::Lambda{.function = [](int64_t s) { return s < 5 ? static_cast<double>(s + 1) / 5 : 0.5 * (1 + std::cos(std::numbers::pi * static_cast<double>(s - 5) / 35)); }},
                              optimizer);
    for (auto lr : expected) {
        CHECK(optimizer.lr() == lr);
        optimizer.step();
        bound.step();
    }
}

TEST_CASE("warm-up before any schedule, schedules one after the other", "[combinators]") {
    // SequentialLR([LinearLR(0.25, 1, 4), ExponentialLR(0.9)], [4])
    follows(schedule::Warmup{steps(4), schedule::Exponential{.gamma = 0.9}, 0.25}, {0.25, 0.4375, 0.625, 0.8125, 1.0, 0.9, 0.81, 0.7290000000000001});
    // SequentialLR([ConstantLR(0.5, 100), StepLR(2, 0.5), CosineAnnealingLR(4)], [3, 7])
    follows(schedule::Chain{{steps(3), steps(7)}, schedule::Constant{.value = 0.5}, schedule::Step{.every = steps(2), .gamma = 0.5}, schedule::Cosine{.total = steps(4)}},
            {0.5, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627});
    follows(schedule::Warmup{steps(2), schedule::Chain{{}, schedule::Constant{.value = 0.5}}}, {0.0, 0.25, 0.5, 0.5});

    auto refused = [](auto recipe) { return code_of([&] { schedule::Scheduler(recipe, FakeOptimizer{}); }); };
    CHECK(refused(schedule::Chain{{}, schedule::Constant{}, schedule::Constant{}}) == acc::code::config);
    CHECK(refused(schedule::Chain{{steps(5), steps(2)}, schedule::Constant{}, schedule::Constant{}, schedule::Constant{}}) == acc::code::config);
    CHECK(refused(schedule::Chain{{Epochs{2}}, schedule::Constant{}, schedule::Constant{}}) == acc::code::config);
    CHECK(refused(schedule::Warmup{Samples{100}, schedule::Linear{.total = steps(10)}}) == acc::code::config);
    CHECK(refused(schedule::Warmup{steps(5), schedule::Linear{}}) == acc::code::config);
}

TEST_CASE("lengths carry units and do not mix", "[schedule_length][curves]") {
    static_assert(!std::is_convertible_v<acc::Bytes, schedule::Length>);
    static_assert(schedule::Length(Tokens{5}).unit == schedule::Unit::Tokens);
    CHECK(schedule::Linear{.total = Epochs{3}}.unit() == schedule::Unit::Epochs);
    CHECK(schedule::Constant{}.unit() == schedule::Unit::OptimizerSteps);
    CHECK(schedule::common_unit("x", {}) == schedule::Unit::OptimizerSteps);
    CHECK(std::string(schedule::name(schedule::Unit::Samples)) == "samples");
    CHECK(std::string(schedule::name(schedule::Unit::Any)) == "any unit");
    auto refused = [](auto recipe) { return code_of([&] { schedule::Scheduler(recipe, FakeOptimizer{}); }); };
    CHECK(refused(schedule::Cosine{.warmup = Samples{100}, .total = steps(2000)}) == acc::code::config);
    CHECK(refused(schedule::Cosine{}) == acc::code::config);
    CHECK(refused(schedule::Linear{.warmup = steps(20), .total = steps(10)}) == acc::code::config);
    CHECK(refused(schedule::Step{}) == acc::code::config);
    CHECK(refused(schedule::MultiStep{}) == acc::code::config);
    CHECK(refused(schedule::Exponential{.gamma = 0}) == acc::code::config);
    CHECK(refused(schedule::InverseSqrt{.timescale = steps(-1)}) == acc::code::config);
    CHECK(refused(schedule::Constant{.warmup = steps(-1)}) == acc::code::config);
    CHECK(refused(schedule::OneCycle{.total = steps(5), .pct_start = 2}) == acc::code::config);
    CHECK(refused(schedule::Lambda{}) == acc::code::config);
    CHECK(refused(schedule::Plateau{.factor = 1}) == acc::code::config);
}

TEST_CASE("a schedule counts real optimizer steps", "[scheduler]") {
    FakeOptimizer optimizer;
    schedule::Scheduler bound(schedule::Linear{.total = steps(10)}, optimizer);
    for (int micro = 1; micro <= 8; ++micro) {  // four micro-batches a window
        optimizer.state->closed = micro % 4 == 0;
        optimizer.step();
        bound.step();
        CHECK(bound.position() == micro / 4);
    }
    bound.step();  // a window that ended without an update, as after an overflow
    CHECK(bound.position() == 2);
    optimizer.step();
    optimizer.step();
    bound.step();  // called once for two updates: it is updates that count
    CHECK(bound.position() == 4);
    CHECK(optimizer.lr() == Approx(0.6));
    bound.step(OptimizerSteps{3});
    CHECK(bound.position() == 7);

    auto moved = std::move(bound);
    optimizer.step();
    moved.step();
    CHECK(moved.position() == 8);
    CHECK(moved.recipe().total.value == 10);
    CHECK(moved.unit() == schedule::Unit::OptimizerSteps);
}

TEST_CASE("samples, tokens and epochs are counted when told", "[scheduler]") {
    FakeOptimizer optimizer;
    schedule::Scheduler by_samples(schedule::Linear{.total = Samples{100}}, optimizer);
    CHECK(code_of([&] { by_samples.step(); }) == acc::code::call_order);
    CHECK(code_of([&] { by_samples.step(Tokens{5}); }) == acc::code::call_order);
    optimizer.state->closed = false;
    by_samples.step(Samples{10});
    CHECK(optimizer.lr() == 1);  // the window under way keeps its lr
    optimizer.state->closed = true;
    by_samples.step(Samples{10});
    CHECK(optimizer.lr() == Approx(0.8));
    CHECK(by_samples.position() == 20);

    FakeOptimizer second;
    schedule::Scheduler by_epoch(schedule::Step{.every = Epochs{2}}, second);
    CHECK(code_of([&] { by_epoch.step(); }) == acc::code::call_order);
    by_epoch.step(Epochs{2});
    CHECK(second.lr() == Approx(0.1));

    FakeOptimizer third;  // for those who call step() once an epoch, whatever the optimizer does
    schedule::Scheduler plain(schedule::Exponential{.gamma = 0.5}, third, {.step_with_optimizer = false});
    schedule::Scheduler epochs(schedule::Exponential{.gamma = 0.5, .every = Epochs{1}}, third, {.step_with_optimizer = false});
    third.state->closed = false;
    plain.step();
    plain.step();
    CHECK(third.lr() == 0.25);
    epochs.step();
    CHECK(epochs.position() == 1);
    CHECK(third.lr() == 0.5);
}

// ReduceLROnPlateau on an SGD with lr 0.1, `s.step(m)` for the metrics below.
TEST_CASE("plateau gives Python's numbers", "[plateau][scheduler]") {
    std::vector<double> const metrics{1.0, 0.9, 0.91, 0.92, 0.899995, 0.93, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6};
    // factor=0.5, patience=1, cooldown=1
    std::vector<double> const falling{0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125, 0.0125, 0.0125};
    // negated metrics, factor=0.1, patience=2, mode="max", threshold=0.05, threshold_mode="abs", min_lr=0.005
    std::vector<double> const rising{0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.005, 0.005, 0.005};
    auto a = optimizer_with(0.1), b = optimizer_with(0.1);
    schedule::Scheduler down(schedule::Plateau{.factor = 0.5, .patience = 1, .cooldown = 1}, a);
    schedule::Scheduler up(schedule::Plateau{.factor = 0.1, .patience = 2, .threshold = 0.05, .relative = false, .maximize = true, .min = 0.05}, b);
    for (size_t i = 0; i < metrics.size(); ++i) {
        CAPTURE(i);
        down.step(metrics[i]);
        up.step(-metrics[i]);
        CHECK(a.lr() == Approx(falling[i]));
        CHECK(b.lr() == Approx(rising[i]));
        auto c = optimizer_with(0.1);  // saved and restored anywhere, it goes on the same way
        schedule::Scheduler again(down.recipe(), c);
        again.load_state_dict(down.state_dict());
        CHECK(c.lr() == a.lr());
        for (size_t k = i + 1; k < metrics.size(); ++k) again.step(metrics[k]);
        CHECK(c.lr() == Approx(falling.back()));
    }
    auto d = optimizer_with(1);
    schedule::Scheduler early(schedule::Plateau{}, d);
    early.load_state_dict(early.state_dict());  // nothing seen yet
    for (auto const& [key, value] : std::initializer_list<std::pair<char const*, nlohmann::json>>{{"scale", -0.5}, {"scale", 1.5}, {"bad", -1}, {"cooling", -1}}) {
        auto state = early.state_dict();
        state.values[key] = value;
        CHECK_THROWS_WITH(early.load_state_dict(state), contains("E_DATA") && contains("cannot be"));
    }
    for (int i = 0; i < 12; ++i) early.step(std::nan(""));
    CHECK(d.lr() == Approx(0.1));  // never an improvement
}

TEST_CASE("a restored schedule goes on exactly, in any order with its optimizer", "[scheduler]") {
    schedule::Cosine const recipe{.warmup = steps(4), .total = steps(20), .min = 0.1};
    auto make = [&](double lr) {
        auto optimizer = optimizer_with(lr);
        return std::pair(optimizer, schedule::Scheduler(recipe, optimizer));
    };
    auto [a, first] = make(3e-4);
    auto run = [](auto& optimizer, auto& bound, int n) {
        for (int i = 0; i < n; ++i) optimizer.step(), bound.step();
    };
    run(a, first, 9);
    auto const saved = first.state_dict();
    auto const lr = a.lr();
    run(a, first, 5);

    auto [b, second] = make(1.0);  // made with another lr: the saved base lr is in force after loading
    second.load_state_dict(saved);
    b.set_lr(lr);  // the optimizer's own state, loaded after
    CHECK(second.position() == 9);
    run(b, second, 5);
    CHECK(b.lr() == a.lr());

    auto bad = saved;
    bad.values["kind"] = "Linear";
    CHECK(code_of([&, &bound = second] { bound.load_state_dict(bad); }) == acc::code::data);
    bad = saved;
    bad.values["unit"] = "samples";
    CHECK(code_of([&, &bound = second] { bound.load_state_dict(bad); }) == acc::code::data);
    bad.values.clear();
    CHECK(code_of([&, &bound = second] { bound.load_state_dict(bad); }) == acc::code::data);
    CHECK(second.position() == 14);
}
