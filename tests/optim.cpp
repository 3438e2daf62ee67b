#include "support/catch.hpp"
#include "support/errors.hpp"

#include <ATen/record_function.h>
#include <torch/torch.h>

#include <accelerate/core/units.hpp>
#include <accelerate/optim/bind.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/optim/finite.hpp>
#include <cstring>
#include <numeric>

namespace acc = accelerate;
namespace kernel = accelerate::kernel;
using namespace accelerate::optim;
using accelerate::sharding::Flat;
using accelerate::sharding::Piece;

namespace {

// A prepared model as an optimizer sees it, without any sharding room: parameters of named tensors in flats by dtype, in a given
// order, padded to 64 bytes; optionally only a slice of them, whose gradients are read from memory of their own.
class FakeModel {
public:
    explicit FakeModel(std::vector<std::pair<std::string, at::Tensor>> parameters) : parameters_(std::move(parameters)) {
        std::vector<size_t> order(parameters_.size());
        std::iota(order.begin(), order.end(), size_t{0});
        arrange(order);
    }

    void arrange(std::vector<size_t> const& order) {
        torch::NoGradGuard no_grad;
        std::vector<Flat> made;
        for (auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
            Flat flat;
            int64_t numel = 0;
            for (auto i : order) {
                auto& [name, p] = parameters_[i];
                if (p.scalar_type() != dtype) continue;
                flat.slots.push_back({name, p, numel, p.numel(), static_cast<int64_t>(i)});
                numel += (p.numel() + 15) / 16 * 16;
            }
            if (flat.slots.empty()) continue;
            flat.parameters = torch::zeros({numel}, dtype);
            flat.gradients = torch::zeros({numel}, dtype);
            for (auto& slot : flat.slots) {
                auto& p = slot.parameter;
                auto view = flat.parameters.as_strided(p.sizes(), p.strides(), slot.begin), grad = flat.gradients.as_strided(p.sizes(), p.strides(), slot.begin);
                view.copy_(p);
                if (p.grad().defined()) grad.copy_(p.grad());
                p.set_data(view);
                p.mutable_grad() = grad;
            }
            made.push_back(std::move(flat));
        }
        flats_ = std::move(made);
        pieces_.clear();
        for (size_t f = 0; f < flats_.size(); ++f) pieces_.push_back({static_cast<int64_t>(f), 0, flats_[f].parameters.numel(), flats_[f].gradients});
        owned_ = pieces_;
        ++layout_;
    }

    // This rank steps on [begin, end) of the first flat only.
    void own_slice(int64_t begin, int64_t end) {
        pieces_ = owned_ = {{0, begin, end, torch::zeros({end - begin}, flats_[0].parameters.options())}};
        ++layout_;
    }
    // All of the first flat in pieces, each with gradients of its own.
    void cut(std::vector<int64_t> const& borders) {
        pieces_.clear();
        for (size_t i = 0; i + 1 < borders.size(); ++i) pieces_.push_back({0, borders[i], borders[i + 1], torch::zeros({borders[i + 1] - borders[i]}, flats_[0].parameters.options())});
        owned_ = pieces_;
        ++layout_;
    }
    void scatter_gradients() {
        for (auto& piece : pieces_) piece.gradients.copy_(flats_[static_cast<size_t>(piece.flat)].gradients.narrow(0, piece.begin, piece.end - piece.begin));
    }

    std::span<Flat const> flats() const { return flats_; }
    std::span<Piece const> pieces() const { return pieces_; }
    std::span<Piece const> owned() const { return owned_; }
    int64_t layout() const { return layout_; }
    bool window_closed() const { return closed; }
    bool before_step() {
        ++before;
        return allows;
    }
    double gradient_scale() const { return scale; }
    bool clears_in_step() const { return clears; }
    void gradients_cleared() { ++cleared; }
    void after_step() { ++after; }
    void settle() { ++settled; }
    void zero_grad() {
        for (auto& flat : flats_) flat.gradients.zero_();
    }

    at::Tensor const& operator[](std::string const& name) const {
        for (auto const& [n, p] : parameters_)
            if (n == name) return p;
        throw std::out_of_range(name);
    }
    std::vector<std::pair<std::string, at::Tensor>> const& parameters() const { return parameters_; }

    bool closed = true, allows = true, clears = false;
    double scale = 1;
    int cleared = 0, before = 0, after = 0, settled = 0;

private:
    std::vector<std::pair<std::string, at::Tensor>> parameters_;
    std::vector<Flat> flats_;
    std::vector<Piece> pieces_, owned_;
    int64_t layout_ = 0;
};
static_assert(accelerate::sharding::flat_model<FakeModel>);

using Parameters = std::vector<std::pair<std::string, at::Tensor>>;

at::Tensor leaf(at::Tensor t) { return t.detach().clone(at::MemoryFormat::Preserve).requires_grad_(); }

Parameters some_parameters(int64_t seed = 1) {
    torch::manual_seed(static_cast<uint64_t>(seed));
    return {{"wte.weight", leaf(torch::randn({7, 5}))},
            {"conv.weight", leaf(torch::randn({4, 3, 2, 2}).contiguous(at::MemoryFormat::ChannelsLast))},
            {"ln.weight", leaf(torch::ones({5}))},
            {"ln.bias", leaf(torch::zeros({5}))},
            {"up.weight", leaf(torch::randn({33, 5}))},
            {"up.bias", leaf(torch::randn({33}))}};
}

Parameters copy(Parameters const& from) {
    Parameters to;
    for (auto const& [name, p] : from) to.emplace_back(name, leaf(p));
    return to;
}

// The same pseudo-random gradients for the same step on every copy.
void give_gradients(Parameters const& parameters, int64_t step, double scale = 1) {
    torch::NoGradGuard no_grad;
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(1000 + step));
    for (auto const& [name, p] : parameters) {
        auto g = at::randn(p.sizes(), generator, p.options().requires_grad(false)) * scale;
        if (!p.grad().defined()) p.mutable_grad() = at::empty_like(p).requires_grad_(false);  // in the parameter's memory order, as autograd does
        p.grad().copy_(g);
    }
}

std::vector<at::Tensor> tensors(Parameters const& parameters) {
    std::vector<at::Tensor> list;
    for (auto const& [name, p] : parameters) list.push_back(p);
    return list;
}

double difference(Parameters const& a, Parameters const& b) {
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, (a[i].second - b[i].second).abs().max().item<double>());
    return largest;
}

// Runs a recipe and a torch::optim optimizer side by side on copies of the same parameters.
template <class Torch, class Recipe>
double distance_after(Recipe recipe, typename std::type_identity_t<std::function<Torch(std::vector<at::Tensor>)>> make, int64_t steps = 15) {
    auto ours = some_parameters(), theirs = copy(ours);
    auto model = std::make_shared<FakeModel>(ours);
    auto optimizer = bind(recipe, std::vector{model});
    auto reference = make(tensors(theirs));
    for (int64_t i = 0; i < steps; ++i) {
        give_gradients(ours, i);
        give_gradients(theirs, i);
        optimizer.step();
        reference.step();
    }
    CHECK(optimizer.steps() == steps);
    return difference(ours, theirs);
}

// Names of the ATen operations that a call makes, without those that they make in turn.
template <class F>
std::vector<std::string> operations_of(F&& f) {
    static std::vector<std::string>* log;
    static int depth;
    std::vector<std::string> names;
    log = &names;
    depth = 0;
    struct Call : at::ObserverContext {};
    auto begin = [](at::RecordFunction const& fn) -> std::unique_ptr<at::ObserverContext> {
        if (depth++ == 0) log->emplace_back(fn.name());
        return std::make_unique<Call>();
    };
    auto end = [](at::RecordFunction const&, at::ObserverContext*) { --depth; };
    auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback(begin, end).scopes({at::RecordScope::FUNCTION}));
    f();
    at::removeCallback(handle);
    return names;
}

template <class... Models>
auto span_of(std::vector<FakeModel*> const& models) {
    return std::span<FakeModel* const>(models);
}

}  // namespace

TEST_CASE("recipes update as LibTorch's own optimizers do", "[recipes][rules][optimizer]") {
    using namespace torch::optim;
    CHECK(distance_after<torch::optim::AdamW>(acc::optim::AdamW{.lr = 1e-2, .betas = {0.9, 0.95}, .weight_decay = 0.1},
                                              [](auto p) { return torch::optim::AdamW(p, AdamWOptions(1e-2).betas({0.9, 0.95}).weight_decay(0.1)); }) < 2e-6);
    CHECK(distance_after<torch::optim::AdamW>(acc::optim::AdamW{.lr = 1e-2, .amsgrad = true},
                                              [](auto p) { return torch::optim::AdamW(p, AdamWOptions(1e-2).amsgrad(true)); }) < 2e-6);
    CHECK(distance_after<torch::optim::Adam>(acc::optim::Adam{.lr = 1e-2, .weight_decay = 0.1}, [](auto p) { return torch::optim::Adam(p, AdamOptions(1e-2).weight_decay(0.1)); }) < 2e-6);
    CHECK(distance_after<torch::optim::SGD>(Sgd{.lr = 0.1}, [](auto p) { return torch::optim::SGD(p, SGDOptions(0.1)); }) < 2e-6);
    CHECK(distance_after<torch::optim::SGD>(Sgd{.lr = 0.1, .momentum = 0.9, .nesterov = true, .weight_decay = 0.01},
                                            [](auto p) { return torch::optim::SGD(p, SGDOptions(0.1).momentum(0.9).nesterov(true).weight_decay(0.01)); }) < 2e-6);
    CHECK(distance_after<torch::optim::SGD>(Sgd{.lr = 0.1, .momentum = 0.8, .dampening = 0.3}, [](auto p) { return torch::optim::SGD(p, SGDOptions(0.1).momentum(0.8).dampening(0.3)); }) < 2e-6);
    CHECK(distance_after<torch::optim::Adagrad>(acc::optim::Adagrad{.lr = 0.1, .lr_decay = 0.01, .weight_decay = 0.02, .initial_accumulator_value = 0.5}, [](auto p) {
              return torch::optim::Adagrad(p, AdagradOptions(0.1).lr_decay(0.01).weight_decay(0.02).initial_accumulator_value(0.5));
          }) < 2e-6);
}

TEST_CASE("AdamW follows its formula in double precision", "[rules]") {
    Parameters ours{{"w", leaf(torch::randn({100}, at::kDouble))}};
    auto p = ours[0].second.detach().clone(), m = torch::zeros_like(p), v = torch::zeros_like(p);
    auto model = std::make_shared<FakeModel>(ours);
    auto optimizer = bind(acc::optim::AdamW{.lr = 1e-2, .betas = {0.8, 0.9}, .weight_decay = 0.3}, std::vector{model});
    for (int t = 1; t <= 10; ++t) {
        give_gradients(ours, t);
        auto const g = model->flats()[0].gradients.narrow(0, 0, 100).clone();
        optimizer.step();
        p = p * (1 - 1e-2 * 0.3);
        m = 0.8 * m + 0.2 * g;
        v = 0.9 * v + 0.1 * g * g;
        p = p - 1e-2 / (1 - std::pow(0.8, t)) * m / (v.sqrt() / std::sqrt(1 - std::pow(0.9, t)) + 1e-8);
        CHECK((ours[0].second - p).abs().max().item<double>() < 1e-14);
    }
}

TEST_CASE("maximize climbs where the same recipe would descend", "[rules]") {
    auto up = some_parameters(), down = copy(up);
    auto climber = std::make_shared<FakeModel>(up), descender = std::make_shared<FakeModel>(down);
    auto a = bind(acc::optim::Adam{.lr = 0.1, .maximize = true}, std::vector{climber});
    auto b = bind(acc::optim::Adam{.lr = 0.1}, std::vector{descender});
    for (int64_t i = 0; i < 3; ++i) {
        give_gradients(up, i, 1);
        give_gradients(down, i, -1);
        a.step();
        b.step();
    }
    CHECK(difference(up, down) == 0);
}

TEST_CASE("recipes with impossible values are refused by name", "[recipes][rules]") {
    auto model = std::make_shared<FakeModel>(some_parameters());
    auto refused = [&](auto recipe) { return code_of([&] { bind(recipe, std::vector{model}); }); };
    double const nan = std::numeric_limits<double>::quiet_NaN(), infinite = std::numeric_limits<double>::infinity();
    for (double const bad : {-1.0, nan, infinite}) {
        CHECK(refused(acc::optim::AdamW{.lr = bad}) == acc::code::config);
        CHECK(refused(acc::optim::Sgd{.weight_decay = bad}) == acc::code::config);
        CHECK(refused(acc::optim::AdamW{.groups = {{.lr = bad}}}) == acc::code::config);
        CHECK(refused(acc::optim::AdamW{.groups = {{.match = [](std::string const&) { return false; }, .weight_decay = bad}}}) == acc::code::config);
    }
    CHECK(refused(acc::optim::AdamW{.betas = {0.9, 1.0}}) == acc::code::config);
    CHECK(refused(acc::optim::Adam{.eps = -1}) == acc::code::config);
    CHECK(refused(Sgd{.nesterov = true}) == acc::code::config);
    CHECK(refused(acc::optim::Adagrad{.lr_decay = -1}) == acc::code::config);
    CHECK(refused(acc::optim::AdamW{.lr = 0, .groups = {{.lr = 1e-3}}}) == acc::code::config);
    CHECK(code_of([] { Optimizer<Sgd, FakeModel>({}, {}); }) == acc::code::config);
    model = std::make_shared<FakeModel>(std::vector<std::pair<std::string, at::Tensor>>{{"z", torch::ones({2}, at::kComplexFloat).requires_grad_()}});
    CHECK(refused(Sgd{}) == acc::code::config);
}

TEST_CASE("a step calls no operation where it sweeps, else LibTorch's fused ones", "[optimizer][batches][sweeps]") {
    auto parameters = some_parameters();
    auto model = std::make_shared<FakeModel>(parameters);
    auto const calls_of = [&](auto const& recipe, std::string const& fused, size_t calls) {
        auto optimizer = bind(recipe, std::vector{model});
        give_gradients(parameters, 0);
        optimizer.step();
        CHECK(optimizer.sweeps() == (kernel::can_sweep() && !recipe.amsgrad));
        CHECK(operations_of([&] { optimizer.step(); }) == std::vector<std::string>(optimizer.sweeps() ? 0 : calls, fused));
        CHECK(operations_of([&] { optimizer.zero_grad(); }) == std::vector<std::string>{"aten::zero_"});
    };
    calls_of(acc::optim::AdamW{}, "aten::_fused_adamw_", 1);
    calls_of(acc::optim::AdamW{.no_decay_on_norms_and_biases = true}, "aten::_fused_adamw_", 2);
    calls_of(acc::optim::AdamW{.amsgrad = true}, "aten::_fused_adamw_", 1);
    calls_of(acc::optim::Adam{.amsgrad = true, .no_decay_on_norms_and_biases = true}, "aten::_fused_adam_", 1);
}

TEST_CASE("a sweep is LibTorch's fused call on scaled gradients, at every length", "[sweeps][rules]") {
    if (!kernel::can_sweep()) return;  // the recipes use LibTorch's calls then
    auto const compare = [](auto recipe) {
        INFO(Rule<decltype(recipe)>::kind);
        for (int64_t n : {1, 7, 8, 9, 16, 37, 1000, 70001}) {
            torch::manual_seed(static_cast<uint64_t>(n));
            Parameters ours{{"w", leaf(torch::randn({n}))}}, theirs = copy(ours);
            auto swept = std::make_shared<FakeModel>(ours), called = std::make_shared<FakeModel>(theirs);
            auto optimizer = bind(recipe, std::vector{swept});
            auto by_calls = recipe;
            by_calls.operations = acc::Operations::Torch;
            auto reference = bind(by_calls, std::vector{called});
            REQUIRE((optimizer.sweeps() && !reference.sweeps()));
            swept->scale = 0.125;
            for (int64_t i = 0; i < 4; ++i) {
                give_gradients(ours, i, 8);
                give_gradients(theirs, i);
                optimizer.step();
                reference.step();
                CHECK(difference(ours, theirs) < 2e-6);
                auto const a = optimizer.state_dict(), b = reference.state_dict();
                REQUIRE(a.tensors.size() == b.tensors.size());
                for (auto const& [name, t] : a.tensors) CHECK(torch::allclose(t, b.tensors.at(name), 2e-6, 1e-6));  // sums of numbers up to 5, each rounded
            }
        }
    };
    compare(acc::optim::AdamW{.lr = 1e-2, .betas = {0.8, 0.95}, .weight_decay = 0.3});
    compare(acc::optim::AdamW{.lr = 1e-2, .maximize = true});
    compare(acc::optim::Adam{.lr = 1e-2, .weight_decay = 0.3});
    compare(acc::optim::Adam{.lr = 1e-2, .weight_decay = 0.3, .maximize = true});
    compare(Sgd{.lr = 1e-2, .weight_decay = 0.1});
    compare(Sgd{.lr = 1e-2, .momentum = 0.9, .weight_decay = 0.1, .maximize = true});
    compare(Sgd{.lr = 1e-2, .momentum = 0.9, .dampening = 1});
    compare(Sgd{.lr = 1e-2, .momentum = 0.9, .nesterov = true});
    compare(Adagrad{.lr = 1e-2, .lr_decay = 0.1, .weight_decay = 0.1, .initial_accumulator_value = 0.5});
    compare(Lion{.lr = 1e-2, .weight_decay = 0.3});
    compare(Lion{.lr = 1e-2, .maximize = true});
}

TEST_CASE("the bits of a sweep do not depend on where a strip ends", "[sweeps]") {
    if (!kernel::can_sweep()) return;
    auto const start = torch::randn({4, 100});
    auto const run = [&](std::vector<int64_t> const& borders) {
        auto t = start.clone();
        t[3].abs_();
        auto* const data = t.mutable_data_ptr<float>();
        kernel::AdamNumbers<true> const numbers{.scale = 0.7f, .decay = 0.1f, .one_minus_beta1 = 0.2f, .beta2 = 0.9f, .one_minus_beta2 = 0.1f, .step = 0.01f, .root = 1.5f, .eps = 1e-8f};
        for (size_t i = 0; i + 1 < borders.size(); ++i) {
            auto* const at = data + borders[i];
            kernel::sweep(numbers, {at, at + 100, at + 200, at + 300, borders[i + 1] - borders[i]});
        }
        return t;
    };
    auto const whole = run({0, 100});
    CHECK(torch::equal(run({0, 13, 50, 51, 100}), whole));
    CHECK(torch::equal(run({0, 64, 100}), whole));
    CHECK_FALSE(torch::equal(whole[0], start[0]));
    CHECK(torch::equal(whole[1], start[1]));  // gradients are only read
}

TEST_CASE("a sweep clears gradients where the model lets it", "[sweeps][optimizer]") {
    auto kept = some_parameters(), gone = copy(kept);
    auto keeps = std::make_shared<FakeModel>(kept), clears = std::make_shared<FakeModel>(gone);
    clears->clears = true;
    auto a = bind(acc::optim::AdamW{.lr = 1e-2}, std::vector{keeps}), b = bind(acc::optim::AdamW{.lr = 1e-2}, std::vector{clears});
    for (int64_t i = 0; i < 3; ++i) {
        give_gradients(kept, i);
        give_gradients(gone, i);
        a.step();
        b.step();
        CHECK(difference(kept, gone) == 0);
        for (auto const& flat : keeps->flats()) CHECK(flat.gradients.abs().max().item<float>() > 0);
        for (auto const& flat : clears->flats()) CHECK((flat.gradients.abs().max().item<float>() == 0) == b.sweeps());
    }
    CHECK((keeps->cleared == 0 && clears->cleared == (b.sweeps() ? 3 : 0)));
}

TEST_CASE("Lion follows its formula in double precision", "[rules][recipes]") {
    Parameters ours{{"w", leaf(torch::randn({100}, at::kDouble))}};
    auto p = ours[0].second.detach().clone(), m = torch::zeros_like(p);
    auto model = std::make_shared<FakeModel>(ours);
    auto optimizer = bind(Lion{.lr = 1e-2, .betas = {0.8, 0.9}, .weight_decay = 0.3}, std::vector{model});
    for (int t = 1; t <= 10; ++t) {
        give_gradients(ours, t);
        auto const g = model->flats()[0].gradients.narrow(0, 0, 100).clone();
        optimizer.step();
        p = p * (1 - 1e-2 * 0.3) - 1e-2 * torch::sign(0.8 * m + 0.2 * g);
        m = 0.9 * m + 0.1 * g;
        CHECK((ours[0].second - p).abs().max().item<double>() < 1e-14);
    }
}

// ---- storage in less than fp32 -----------------------------------------------------------------------------------------------------

namespace {

/// As a precision whose `master` is fp32 trains it.
struct MasteredModel : FakeModel {
    using FakeModel::FakeModel;
    static constexpr at::ScalarType master = at::kFloat;
};

Parameters in_dtype(Parameters const& from, at::ScalarType dtype) {
    Parameters to;
    for (auto const& [name, p] : from) to.emplace_back(name, leaf(p.detach().to(at::kBFloat16).to(dtype)));
    return to;
}

template <class Model>
void give_bf16_gradients(Model& model, int64_t step) {
    torch::NoGradGuard no_grad;
    auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(500 + step));
    for (auto const& [name, p] : model.parameters()) p.grad().copy_(torch::randn(p.sizes(), generator).to(at::kBFloat16));
}

}  // namespace

TEST_CASE("bf16 is rounded to the nearest, or to a neighbour by chance", "[narrow]") {
    auto const every = torch::arange(65536, at::kInt).to(at::kShort).view(at::kBFloat16);
    auto const bits = [](torch::Tensor const& t) { return static_cast<uint16_t*>(t.mutable_data_ptr()); };
    auto wide = torch::empty({65536});
    kernel::widen(bits(every), wide.data_ptr<float>(), 65536);
    CHECK(torch::equal(wide.view(at::kInt), every.to(at::kFloat).view(at::kInt)));

    torch::manual_seed(2);
    auto const x = torch::cat({torch::randn({1003}) * torch::logspace(-38, 38, 1003), wide.narrow(0, 0, 32768), torch::tensor({INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 3.39e38f, 1e-45f})});
    auto const n = x.numel();
    auto out = torch::empty({n}, at::kBFloat16), other = torch::empty({n}, at::kBFloat16);
    kernel::narrow(x.const_data_ptr<float>(), bits(out), n);
    auto const nan = x.isnan();
    CHECK(torch::equal(out.view(at::kShort).masked_fill(nan, 0), x.to(at::kBFloat16).view(at::kShort).masked_fill(nan, 0)));
    CHECK(torch::equal(out.isnan(), nan));

    // By chance: one of two neighbours, the same bits on every path and at every start, unbiased.
    auto const noise = kernel::Noise::of(7, 1);
    kernel::narrow(x.const_data_ptr<float>(), bits(out), n, noise, 5);
    kernel::narrow_portable(x.const_data_ptr<float>(), bits(other), n, noise, 5);
    CHECK(torch::equal(out.view(at::kShort), other.view(at::kShort)));
    for (int64_t at : {1, 8, 13, 100}) {
        auto tail = torch::empty({n - at}, at::kBFloat16);
        kernel::narrow(x.const_data_ptr<float>() + at, bits(tail), n - at, noise, 5 + at);
        CHECK(torch::equal(tail.view(at::kShort), out.slice(0, at).view(at::kShort)));
    }
    auto padded = torch::empty({5 + n}, at::kBFloat16);
    accelerate::optim::detail::round_into(padded.slice(0, 5), x, &noise);  // LibTorch's operations, at place 5 of their storage
    CHECK(torch::equal(padded.slice(0, 5).view(at::kShort).masked_fill(nan, 0), out.view(at::kShort).masked_fill(nan, 0)));
    CHECK(torch::equal(out.isnan(), nan));
    auto const value = 1 + 0.3 / 128;  // three tenths of the way to the next bf16 number
    torch::Tensor const many = torch::full({200000}, value);
    auto rounded = torch::empty({200000}, at::kBFloat16);
    for (int64_t step : {1, 2, 3}) {
        kernel::narrow(many.const_data_ptr<float>(), bits(rounded), 200000, kernel::Noise::of(step, 0), 0);
        auto const up = (rounded.to(at::kFloat) > 1).to(at::kDouble).mean().item<double>();
        CHECK(std::abs(up - 0.3) < 5 * std::sqrt(0.3 * 0.7 / 200000));
        CHECK(((rounded == 1).logical_or(rounded == 1 + 1.0 / 128)).all().item<bool>());
    }
}

TEST_CASE("bf16 parameters are updated as fp32 ones, in a copy that follows them", "[wide][storage][moments]") {
    auto const check = [](auto recipe) {
        using Recipe = decltype(recipe);
        INFO(Rule<Recipe>::kind);
        auto fp32 = std::make_shared<FakeModel>(in_dtype(some_parameters(), at::kFloat));
        auto bf16 = std::make_shared<MasteredModel>(in_dtype(some_parameters(), at::kBFloat16));
        auto resumed = std::make_shared<MasteredModel>(in_dtype(some_parameters(), at::kBFloat16));
        bf16->clears = true;
        Optimizer one(recipe, std::vector{fp32});
        Optimizer two(recipe, std::vector{bf16});
        Optimizer three(recipe, std::vector{resumed});
        auto const equal = [&](auto const& optimizer, auto const& model) {
            auto const masters = optimizer.state_dict();
            for (auto const& [name, p] : fp32->parameters()) {
                if (!torch::equal(masters.tensors.at("master." + name), p)) return false;
                if (!torch::equal((*model)[name], p.detach().to(at::kBFloat16))) return false;
            }
            return true;
        };
        for (int64_t step = 1; step <= 6; ++step) {
            give_bf16_gradients(*fp32, step);
            give_bf16_gradients(*bf16, step);
            if (step == 3) {  // somebody loads weights
                torch::NoGradGuard no_grad;
                for (auto* model : {static_cast<FakeModel*>(fp32.get()), static_cast<FakeModel*>(bf16.get())}) (*model)["up.weight"].view({-1}).slice(0, 7, 90).fill_(40);
            }
            fp32->scale = bf16->scale = two.sweeps() ? 0.5 : 1;  // as clipping leaves it
            one.step();
            two.step();
            CHECK(equal(two, bf16));
            CHECK((bf16->flats()[0].gradients.abs().max().item<float>() == 0) == two.sweeps());  // cleared on the way
        }
        // A job that goes on from the state; and one that has only weights and moments.
        {
            torch::NoGradGuard no_grad;
            for (auto const& [name, p] : resumed->parameters()) p.copy_((*bf16)[name]);
        }
        three.load_state_dict(two.state_dict());
        CHECK(equal(three, resumed));
        give_bf16_gradients(*fp32, 9);
        give_bf16_gradients(*resumed, 9);
        resumed->scale = fp32->scale;
        one.step();
        three.step();
        CHECK(equal(three, resumed));
        auto without = two.state_dict();
        acc::StateDict moments{{}, without.values};
        for (auto const& [name, t] : without.tensors)
            if (!name.starts_with("master.")) moments.tensors.insert(name, t);
        three.load_state_dict(moments);
        CHECK(torch::equal(three.state_dict().tensors.at("master.up.bias"), (*resumed)["up.bias"].to(at::kFloat)));
    };
    check(AdamW{.lr = 1e-2});
    check(AdamW{.lr = 1e-2, .amsgrad = true});  // not swept
    check(Adam{.lr = 1e-2, .weight_decay = 0.1});
    check(Sgd{.lr = 1e-2});
    check(Sgd{.lr = 1e-2, .momentum = 0.9, .nesterov = true});
    check(Adagrad{.lr = 1e-2});
    check(Lion{.lr = 1e-3, .weight_decay = 0.1});
}

TEST_CASE("small updates of bf16 parameters add up by chance where the nearest stands still", "[storage][wide]") {
    auto const trained = [](acc::optimizer_storage storage, bool swept) {
        auto model = std::make_shared<FakeModel>(Parameters{{"w", leaf(torch::ones({4096}, at::kBFloat16))}});
        Optimizer optimizer(AdamW{.lr = 1e-4, .weight_decay = 0, .amsgrad = !swept, .storage = storage}, std::vector{model});
        CHECK(optimizer.sweeps() == (swept && kernel::can_sweep()));
        for (int i = 0; i < 200; ++i) {
            torch::NoGradGuard no_grad;
            model->flats()[0].gradients.fill_(1);
            optimizer.step();
        }
        return (*model)["w"].detach().to(at::kDouble);
    };
    for (bool swept : {true, false}) {
        CHECK(torch::equal(trained({}, swept), torch::ones({4096}, at::kDouble)));  // as in PyTorch: a step is a fortieth of the distance
        auto const moved = trained({.stochastic_rounding = true}, swept);
        CHECK(std::abs(moved.mean().item<double>() - (1 - 200e-4)) < 1e-3);
        CHECK(torch::equal(moved, trained({.stochastic_rounding = true}, swept)));  // and on every rank
    }
}

namespace {

/// Every number that a format has from zero up, as LibTorch widens it.
template <class F>
std::vector<double> grid() {
    std::vector<double> all;
    auto const dtype = sizeof(typename F::bits) == 1 ? at::kFloat8_e4m3fn : at::kHalf;
    auto const codes = torch::arange(static_cast<int64_t>(F::largest) + 1).to(sizeof(typename F::bits) == 1 ? at::kByte : at::kShort).view(dtype).to(at::kDouble);
    for (int64_t i = 0; i < codes.numel(); ++i) all.push_back(codes[i].item<double>());
    return all;
}

template <class F>
void rounds_in_blocks(double limit) {
    auto const numbers = grid<F>();
    auto const dtype = sizeof(typename F::bits) == 1 ? at::kFloat8_e4m3fn : at::kHalf;
    torch::manual_seed(4);
    auto x = torch::cat({torch::randn({1000}) * torch::logspace(-30, 30, 1000), torch::randn({5000}), torch::randn({500}) * 1e-41, torch::zeros({40})});
    x.slice(0, 1200, 1210).fill_(448);
    auto const n = x.numel();
    auto const noise = kernel::Noise::of(3, 1);
    auto codes = torch::empty({n}, dtype);
    auto exponents = accelerate::optim::detail::exponents_for(x);
    auto* const bits = static_cast<typename F::bits*>(codes.mutable_data_ptr());
    kernel::encode<F>(x.const_data_ptr<float>(), bits, exponents.mutable_data_ptr<int8_t>(), n, noise, 5);

    // One of two neighbours on a grid that reaches as far as the block's largest number needs.
    auto decoded = torch::empty({n});
    kernel::decode<F>(bits, exponents.const_data_ptr<int8_t>(), decoded.mutable_data_ptr<float>(), n);
    int64_t wrong = 0;
    for (int64_t block = 0; block < n; block += 16) {
        auto const end = std::min(block + 16, n);
        auto const amax = x.slice(0, block, end).abs().max().item<double>();
        int exponent = 126;
        while (amax > 0 && std::ldexp(amax, exponent) > limit) --exponent;
        for (int64_t i = block; i < end; ++i) {
            auto const a = std::abs(std::ldexp(static_cast<double>(x[i].item<float>()), exponent));
            auto const above = std::lower_bound(numbers.begin(), numbers.end(), a);
            auto const below = above == numbers.begin() || *above == a ? above : above - 1;
            auto const found = std::abs(std::ldexp(static_cast<double>(decoded[i].item<float>()), exponent));
            wrong += found != *above && found != *below && std::abs(static_cast<double>(decoded[i].item<float>())) > 1e-37;  // fp32 itself ends there
            wrong += found != 0 && std::signbit(decoded[i].item<float>()) != std::signbit(x[i].item<float>());
        }
    }
    CHECK(wrong == 0);

    // LibTorch's operations, at place 5 of their storage; and what was decoded stays what it is.
    auto padded = torch::empty({5 + n}, dtype);
    auto others = torch::empty_like(exponents);
    accelerate::optim::detail::encode_into(padded.slice(0, 5), others, x, &noise);
    CHECK(torch::equal(accelerate::optim::detail::decoded(padded.slice(0, 5), others), decoded));
    CHECK(torch::equal(others, exponents));
    CHECK(torch::equal(accelerate::optim::detail::decoded(codes, exponents), decoded));
    auto again = torch::empty({n}, dtype);
    accelerate::optim::detail::encode_into(again, others, decoded, nullptr);
    CHECK(torch::equal(accelerate::optim::detail::decoded(again, others), decoded));

    auto const value = 1 + 0.3 * std::ldexp(1.0, -F::mantissa);  // three tenths of the way to the next one
    torch::Tensor const many = torch::full({200000}, value);
    codes = torch::empty({200000}, dtype), exponents = accelerate::optim::detail::exponents_for(many);
    kernel::encode<F>(many.const_data_ptr<float>(), static_cast<typename F::bits*>(codes.mutable_data_ptr()), exponents.mutable_data_ptr<int8_t>(), 200000, noise, 0);
    CHECK(std::abs((accelerate::optim::detail::decoded(codes, exponents) > 1).to(at::kDouble).mean().item<double>() - 0.3) < 5 * std::sqrt(0.3 * 0.7 / 200000));
}

}  // namespace

TEST_CASE("blocks of 16 numbers are kept in 8 or 16 bits with a power of two", "[block_scaled][rounding]") {
    rounds_in_blocks<kernel::Fp8E4m3>(448);
    rounds_in_blocks<kernel::Fp16>(32768);
}

TEST_CASE("states in less follow those in fp32", "[storage][wide][moments]") {
    auto const trained = [](acc::optimizer_storage storage, bool restored) {
        auto model = std::make_shared<FakeModel>(Parameters{{"w", leaf(torch::linspace(-1, 1, 5000))}, {"bias", leaf(torch::linspace(-1, 1, 50))}});
        auto optimizer = std::make_unique<Optimizer<AdamW, FakeModel>>(AdamW{.lr = 1e-3, .no_decay_on_norms_and_biases = true, .storage = storage}, std::vector{model});
        auto const generator = at::detail::createCPUGenerator(3);
        for (int i = 0; i < 400; ++i) {
            torch::NoGradGuard no_grad;
            for (auto const& [name, p] : model->parameters()) p.grad().copy_(torch::randn(p.sizes(), generator) + 0.5);
            if (i == 200 && restored) {  // saved and restored on the way
                auto const saved = optimizer->state_dict();
                CHECK(saved.tensors.at("exp_avg_sq.w").scalar_type() == (storage.states == at::kBFloat16 ? at::kBFloat16 : at::kFloat));
                optimizer = std::make_unique<Optimizer<AdamW, FakeModel>>(AdamW{.lr = 1e-3, .no_decay_on_norms_and_biases = true, .storage = storage}, std::vector{model});
                optimizer->load_state_dict(saved);
            }
            optimizer->step();
        }
        auto const each = static_cast<double>(optimizer->state_bytes()) / 5072;  // 5000 and 50, each padded to 16
        CHECK(each == Approx(storage.first_state ? 3.125 : storage.states == at::kHalf ? 4.125 : storage.states ? 4 : 8).epsilon(1e-3));
        return std::tuple((*model)["w"].detach().clone(), optimizer->state_dict().tensors.at("exp_avg.w").to(at::kDouble), optimizer->state_dict().tensors.at("exp_avg_sq.w").to(at::kDouble));
    };
    auto const [w, m, v] = trained({}, false);
    auto const way = (w - torch::linspace(-1, 1, 5000)).abs().mean().item<double>();
    for (auto const& storage : {acc::optimizer_storage{.states = at::kBFloat16}, acc::optimizer_storage{.states = at::kHalf}, low_bit_storage(2), low_bit_storage(3)}) {
        auto const [low_w, low_m, low_v] = trained(storage, true);
        auto const [same_w, same_m, same_v] = trained(storage, false);
        CHECK(torch::equal(low_w, same_w));
        CHECK((torch::equal(low_m, same_m) && torch::equal(low_v, same_v)));
        CHECK(std::abs((low_v / v).mean().item<double>() - 1) < 0.01);  // to the nearest it would be far off: 0.001 of itself is less than half a step
        CHECK(std::abs((low_m - m).mean().item<double>()) < 0.01 * m.abs().mean().item<double>());
        CHECK((low_w - w).abs().mean().item<double>() < 0.05 * way);
        CHECK(torch::equal(low_w, low_w.to(at::kHalf).to(at::kFloat)) == (storage.master == at::kHalf));
    }
    auto const refused = [](acc::optimizer_storage const& storage) { return code_of([&] { Optimizer(AdamW{.storage = storage}, std::vector{std::make_shared<FakeModel>(some_parameters())}); }) == acc::code::config; };
    CHECK(refused({.states = at::kFloat8_e4m3fn}));
    CHECK(refused({.first_state = at::kDouble}));
    CHECK(refused({.master = at::kBFloat16}));
    CHECK(code_of([] { Optimizer(AdamW{.operations = acc::Operations::Torch, .storage = {.stochastic_rounding = true}}, std::vector{std::make_shared<FakeModel>(some_parameters())}); }) == acc::code::config);
    Optimizer unswept(AdamW{.lr = 1e-3, .amsgrad = true, .storage = low_bit_storage(3)}, std::vector{std::make_shared<FakeModel>(some_parameters())});
    CHECK_FALSE(unswept.sweeps());
}

TEST_CASE("an average of the weights follows its formula, and stands in for them while asked to", "[average_scope][optimizer][moments]") {
    auto const check = [](auto model, double distance) {
        auto const recipe = AdamW{.lr = 1e-2, .ema_decay = 0.8};
        auto optimizer = std::make_unique<Optimizer<AdamW, typename decltype(model)::element_type>>(recipe, std::vector{model});
        {
            auto const weights = (*model)["up.bias"].detach().clone();
            auto const averages = optimizer->average_parameters();  // none yet: the weights
            CHECK(torch::equal((*model)["up.bias"].detach(), weights));
        }
        std::map<std::string, at::Tensor> expected;
        for (auto const& [name, p] : model->parameters()) expected[name] = p.detach().to(at::kDouble);
        for (int64_t step = 0; step < 12; ++step) {
            give_bf16_gradients(*model, step);
            optimizer->step();
            auto const saved = optimizer->state_dict();
            for (auto const& [name, p] : model->parameters()) {
                auto const weights = saved.tensors.contains("master." + name) ? saved.tensors.at("master." + name) : p.detach();
                expected[name] = 0.8 * expected[name] + 0.2 * weights.to(at::kDouble);
            }
            if (step != 6) continue;
            optimizer = std::make_unique<Optimizer<AdamW, typename decltype(model)::element_type>>(recipe, std::vector{model});  // a job that goes on
            optimizer->load_state_dict(saved);
        }
        std::map<std::string, at::Tensor> before;
        for (auto const& [name, p] : model->parameters()) before[name] = p.detach().clone();
        {
            auto const averages = optimizer->average_parameters();
            for (auto const& [name, p] : model->parameters()) {
                INFO(name);
                CHECK((p.detach().to(at::kDouble) - expected[name]).abs().max().template item<double>() < distance);
                CHECK_FALSE(torch::equal(p.detach(), before[name]));
            }
            CHECK(code_of([&] { optimizer->step(); }) == acc::code::call_order);
            CHECK(code_of([&] { static_cast<void>(optimizer->average_parameters()); }) == acc::code::call_order);
        }
        for (auto const& [name, p] : model->parameters()) CHECK(torch::equal(p.detach(), before[name]));
        optimizer->step();
    };
    check(std::make_shared<FakeModel>(some_parameters()), 1e-6);
    check(std::make_shared<MasteredModel>(in_dtype(some_parameters(), at::kBFloat16)), 0.02);  // the average of the masters, shown in bf16
    auto const plain = std::make_shared<FakeModel>(some_parameters());
    Optimizer without(AdamW{}, std::vector{plain});
    CHECK(code_of([&] { static_cast<void>(without.average_parameters()); }) == acc::code::config);
    CHECK(code_of([&] { Optimizer(AdamW{.ema_decay = 1}, std::vector{plain}); }) == acc::code::config);
}

TEST_CASE("gradients are searched for what is not finite", "[finite]") {
    auto parameters = some_parameters();
    FakeModel model(parameters);
    give_gradients(parameters, 0);
    constexpr auto none = std::numeric_limits<int64_t>::max();
    CHECK((gradients_are_finite(model) && first_non_finite(model) == none));
    for (auto value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()})
        for (int64_t i : {5, 1, 4}) {
            give_gradients(parameters, 0);
            torch::NoGradGuard const no_grad;
            parameters[static_cast<size_t>(i)].second.mutable_grad().select(0, 0).fill_(value);
            CHECK_FALSE(gradients_are_finite(model));
            CHECK(first_non_finite(model) == i);
        }
    give_gradients(parameters, 0, 3e38 / 4);
    CHECK(gradients_are_finite(model));
    CHECK(all_finite(torch::empty({0})));
    CHECK_FALSE(all_finite(torch::full({100000}, 1.0, at::kDouble).index_put_({torch::tensor(99999)}, std::numeric_limits<double>::infinity())));
    CHECK_FALSE(all_finite(torch::full({200000}, 1.0).index_put_({torch::tensor(199999)}, std::numeric_limits<float>::quiet_NaN())));
}

TEST_CASE("neighbours of one set are one list entry, padding stays zero", "[batches][moments]") {
    auto parameters = some_parameters();
    FakeModel model(parameters);
    auto const& flat = model.flats()[0];
    auto batches_of = [&](std::vector<size_t> sets, acc::Operations operations, std::vector<std::optional<int64_t>> missed = std::vector<std::optional<int64_t>>(6, 0)) {
        Moments moments({"m"}, 0);
        std::vector<Part> parts;
        for (size_t i = 0; i < flat.slots.size(); ++i) {
            auto const& s = flat.slots[i];
            parts.push_back({s.name, s.parameter.sizes().vec(), s.parameter.strides().vec(), s.numel, 0, s.numel, 0, s.begin, static_cast<int64_t>(flat.slots.size() - i), sets[i]});
        }
        moments.arrange({{flat.parameters, flat.gradients, {}}}, parts, {});
        return make_batches(moments, operations, missed);
    };
    auto const one = batches_of({0, 0, 0, 0, 0, 0}, acc::Operations::Fused);
    REQUIRE(one.size() == 1);
    REQUIRE(one[0].columns.parameters.size() == 1);
    CHECK(one[0].columns.parameters[0].numel() == flat.parameters.numel());
    auto const two = batches_of({0, 0, 1, 1, 0, 1}, acc::Operations::Fused);
    REQUIRE(two.size() == 2);
    CHECK(two[0].columns.parameters.size() == 2);
    CHECK(two[1].columns.parameters.size() == 2);
    CHECK(two[1].columns.states[0][0].numel() == two[1].columns.gradients[0].numel());
    // What is left out is in no entry, and the padding behind it neither; what has missed updates is in a call of its own.
    auto const some = batches_of({0, 0, 0, 0, 0, 0}, acc::Operations::Fused, {0, 0, std::nullopt, 3, 3, 0});
    REQUIRE(some.size() == 2);
    auto const late = some[0].missed == 3 ? size_t{0} : size_t{1};
    CHECK((some[late].missed == 3 && some[1 - late].missed == 0));
    REQUIRE((some[late].columns.parameters.size() == 1 && some[1 - late].columns.parameters.size() == 2));
    CHECK(some[late].columns.parameters[0].data_ptr() == parameters[3].second.data_ptr());
    CHECK(some[late].columns.parameters[0].numel() == flat.slots[5].begin - flat.slots[3].begin);
    CHECK(some[1 - late].columns.parameters[0].numel() + some[1 - late].columns.parameters[1].numel() == flat.slots[2].begin + flat.parameters.numel() - flat.slots[5].begin);
    auto const each = batches_of({0, 0, 0, 0, 0, 0}, acc::Operations::Torch);
    REQUIRE(each.size() == 1);
    CHECK(each[0].columns.parameters.size() == 6);
    CHECK(each[0].columns.parameters[0].data_ptr() == parameters[5].second.data_ptr());  // by registration, here reversed

    auto shared = std::make_shared<FakeModel>(some_parameters(2));
    auto optimizer = bind(acc::optim::AdamW{.lr = 0.1, .weight_decay = 0.5}, std::vector{shared});
    for (int64_t i = 0; i < 5; ++i) give_gradients(shared->parameters(), i), optimizer.step();
    auto const& slots = shared->flats()[0].slots;
    for (size_t i = 0; i + 1 < slots.size(); ++i)
        if (slots[i].end() < slots[i + 1].begin) CHECK(shared->flats()[0].parameters.narrow(0, slots[i].end(), slots[i + 1].begin - slots[i].end()).abs().max().item<float>() == 0);
}

TEST_CASE("parameter groups: first match, no decay on norms and biases, ratios under set_lr", "[groups]") {
    auto parameters = some_parameters();
    auto reference = copy(parameters);
    auto model = std::make_shared<FakeModel>(parameters);
    auto starts = [](std::string prefix) { return [prefix](std::string const& name) { return name.starts_with(prefix); }; };
    auto optimizer = bind(acc::optim::AdamW{.lr = 1e-2, .weight_decay = 0.1, .no_decay_on_norms_and_biases = true,
                                            .groups = {{.match = starts("up"), .lr = 3e-3}, {.match = starts("up.bias"), .lr = 1}, {.match = starts("ln.weight"), .weight_decay = 0.7}}},
                          std::vector{model});
    auto options = [](double lr, double decay) { return std::make_unique<torch::optim::AdamWOptions>(torch::optim::AdamWOptions(lr).weight_decay(decay)); };
    auto p = [&](size_t i) { return std::vector<at::Tensor>{reference[i].second}; };
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(p(0), options(1e-2, 0.1));
    groups.emplace_back(p(1), options(1e-2, 0.1));
    groups.emplace_back(p(2), options(1e-2, 0.7));  // explicit decay wins over the no-decay option
    groups.emplace_back(p(3), options(1e-2, 0));
    groups.emplace_back(p(4), options(3e-3, 0.1));
    groups.emplace_back(p(5), options(3e-3, 0));  // the first match, and a bias
    torch::optim::AdamW expected(groups, torch::optim::AdamWOptions(1e-2));
    auto step = [&](int64_t i) {
        give_gradients(parameters, i);
        give_gradients(reference, i);
        optimizer.step();
        expected.step();
    };
    for (int64_t i = 0; i < 5; ++i) step(i);
    CHECK(difference(parameters, reference) < 2e-6);

    optimizer.set_lr(5e-3);
    for (double const bad : {-1.0, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) CHECK(code_of([&] { optimizer.set_lr(bad); }) == acc::code::config);
    CHECK(optimizer.lr() == 5e-3);
    for (auto& group : expected.param_groups()) group.options().set_lr(group.options().get_lr() / 2);
    for (int64_t i = 5; i < 10; ++i) step(i);
    CHECK(difference(parameters, reference) < 2e-6);
    auto const values = optimizer.state_dict().values;
    CHECK(values["groups"].size() == 5);
    CHECK(values["groups"][0]["lr"] == 5e-3);
}

TEST_CASE("an unfinished window: step and zero_grad do nothing; a refused step makes no update", "[optimizer]") {
    auto parameters = some_parameters();
    auto const before = copy(parameters);
    auto model = std::make_shared<FakeModel>(parameters), other = std::make_shared<FakeModel>(some_parameters(3));
    auto optimizer = bind(Sgd{.lr = 0.1}, std::vector{model, other});
    give_gradients(parameters, 0);
    other->closed = false;  // one open window is enough
    optimizer.step();
    optimizer.zero_grad();
    CHECK((optimizer.steps() == 0 && optimizer.updates() == 0 && model->before == 0 && !optimizer.window_closed()));
    CHECK(difference(parameters, before) == 0);
    CHECK(parameters[0].second.grad().abs().max().item<float>() > 0);

    other->closed = true;
    other->allows = false;  // one that refuses is enough
    optimizer.step();
    CHECK((optimizer.step_was_skipped() && optimizer.steps() == 0 && model->before == 1 && model->after == 1));
    other->allows = true;
    CHECK(difference(parameters, before) == 0);

    auto handle = optimizer;  // copies and moved-to handles are the same optimizer
    auto moved = std::move(optimizer);
    moved.step();
    CHECK((handle.steps() == 1 && handle.updates() == 1 && !handle.step_was_skipped() && model->after == 2 && other->after == 2));
    CHECK(difference(parameters, before) > 0);
    moved.zero_grad();
    CHECK(parameters[0].second.grad().abs().max().item<float>() == 0);
    CHECK(moved.recipe().lr == 0.1);
    CHECK(moved.models().size() == 2);
}

TEST_CASE("state follows its parameters into a new arrangement", "[moments][optimizer]") {
    auto a = some_parameters(), b = copy(a);
    auto fixed = std::make_shared<FakeModel>(a), moving = std::make_shared<FakeModel>(b);
    acc::optim::AdamW const recipe{.lr = 1e-2, .amsgrad = true, .no_decay_on_norms_and_biases = true};
    auto x = bind(recipe, std::vector{fixed}), y = bind(recipe, std::vector{moving});
    auto step = [&](int64_t i) {
        give_gradients(a, i);
        give_gradients(b, i);
        moving->scatter_gradients();
        x.step();
        y.step();
    };
    step(0);
    moving->arrange({5, 3, 1, 0, 2, 4});
    for (int64_t i = 1; i < 4; ++i) step(i);
    CHECK(difference(a, b) < 1e-7);
    moving->cut({0, 40, 41, 200, moving->flats()[0].parameters.numel()});  // slices through parameters, gradients read elsewhere
    for (int64_t i = 4; i < 8; ++i) step(i);
    CHECK(difference(a, b) < 1e-7);

    auto const left = x.state_dict(), right = y.state_dict();
    CHECK(left.tensors.size() == 18);
    for (auto const& [name, tensor] : left.tensors) CHECK(at::allclose(tensor, right.tensors.at(name), 1e-5, 1e-9));
    CHECK(left.tensors.at("exp_avg.conv.weight").sizes() == a[1].second.sizes());
}

TEST_CASE("a rank may step on a slice only; its state loads from whole parameters", "[bound_parameters][moments][optimizer]") {
    auto a = some_parameters(), b = copy(a);
    auto whole = std::make_shared<FakeModel>(a), sliced = std::make_shared<FakeModel>(b);
    auto const begin = sliced->flats()[0].slots[1].begin + 3, end = sliced->flats()[0].slots[4].begin + 50;
    sliced->own_slice(begin, end);
    acc::optim::AdamW const recipe{.lr = 1e-2};
    auto x = bind(recipe, std::vector{whole}), y = bind(recipe, std::vector{sliced});
    auto step = [&](int64_t i) {
        give_gradients(a, i);
        give_gradients(b, i);
        sliced->scatter_gradients();
        x.step();
        y.step();
    };
    auto distance = [&] { return (whole->flats()[0].parameters - sliced->flats()[0].parameters).narrow(0, begin, end - begin).abs().max().item<double>(); };
    for (int64_t i = 0; i < 3; ++i) step(i);
    CHECK(distance() < 1e-7);
    CHECK((whole->flats()[0].parameters - sliced->flats()[0].parameters).narrow(0, 0, begin).abs().max().item<double>() > 1e-3);

    auto const part = y.state_dict();
    CHECK(part.tensors.at("exp_avg.ln.bias").sizes() == at::IntArrayRef{5});
    CHECK(part.values["slices"]["exp_avg.up.weight"] == (std::vector<int64_t>{0, 50}));
    CHECK(part.tensors.at("exp_avg.up.weight").numel() == 50);
    CHECK_FALSE(part.tensors.contains("exp_avg.wte.weight"));

    auto const saved = x.state_dict();
    y = bind(recipe, std::vector{sliced});
    y.load_state_dict(saved);  // what a slice does not need belongs to another rank
    for (int64_t i = 3; i < 6; ++i) step(i);
    CHECK(distance() < 1e-7);
    y.load_state_dict(y.state_dict());
    auto broken = part;
    broken.values["slices"]["exp_avg.up.weight"] = {10, 60};
    CHECK(code_of([&] { y.load_state_dict(broken); }) == acc::code::data);
}

TEST_CASE("resume equals never having stopped, bit for bit", "[optimizer][moments]") {
    auto check = [](auto recipe) {
        auto a = some_parameters();
        auto model = std::make_shared<FakeModel>(a);
        auto optimizer = bind(recipe, std::vector{model});
        for (int64_t i = 0; i < 3; ++i) give_gradients(a, i), optimizer.step();
        optimizer.set_lr(optimizer.lr() / 3);
        auto const saved = optimizer.state_dict();
        auto b = copy(a);
        for (int64_t i = 3; i < 6; ++i) give_gradients(a, i), optimizer.step();  // the state dict is a copy: this leaves it alone

        auto again = bind(recipe, std::vector{std::make_shared<FakeModel>(b)});
        again.load_state_dict(saved);
        CHECK(again.steps() == 3);
        CHECK(again.updates() == 0);
        for (int64_t i = 3; i < 6; ++i) give_gradients(b, i), again.step();
        CHECK(again.lr() == optimizer.lr());
        return difference(a, b);
    };
    CHECK(check(acc::optim::AdamW{.amsgrad = true}) == 0);
    CHECK(check(acc::optim::Adam{.operations = acc::Operations::Torch}) == 0);
    CHECK(check(Sgd{.momentum = 0.9, .dampening = 0.5}) == 0);
    CHECK(check(Sgd{}) == 0);
    CHECK(check(acc::optim::Adagrad{.initial_accumulator_value = 0.1}) == 0);
}

TEST_CASE("a state that does not fit is refused and changes nothing", "[moments][optimizer][saved_progress]") {
    auto a = some_parameters();
    auto model = std::make_shared<FakeModel>(a);
    auto optimizer = bind(acc::optim::AdamW{}, std::vector{model});
    give_gradients(a, 0);
    optimizer.step();
    auto const good = optimizer.state_dict();
    auto refused = [&](auto change) {
        auto bad = good;
        change(bad);
        return code_of([&] { optimizer.load_state_dict(bad); });
    };
    CHECK(refused([](auto& s) { s.values["kind"] = "Sgd"; }) == acc::code::data);
    CHECK(refused([](auto& s) { s.values.erase("steps"); }) == acc::code::data);
    CHECK(refused([](auto& s) { s.values["lr"] = "fast"; }) == acc::code::data);
    CHECK(refused([](auto& s) { s.tensors.at("exp_avg.up.bias") = torch::zeros({32}); }) == acc::code::data);
    CHECK(refused([](auto& s) { s.tensors.insert("exp_avg.nobody", torch::zeros({1})); }) == acc::code::data);
    CHECK(refused([](auto& s) { s.tensors = acc::TensorMap(); }) == acc::code::data);
    auto const after = optimizer.state_dict();
    for (auto const& [name, tensor] : good.tensors) CHECK(at::equal(tensor, after.tensors.at(name)));

    auto fresh = bind(acc::optim::AdamW{}, std::vector{model});  // saved before the first step: nothing but values
    auto const empty = fresh.state_dict();
    CHECK(empty.tensors.empty());
    optimizer.load_state_dict(empty);
    CHECK(optimizer.steps() == 0);
    CHECK(optimizer.state_dict().tensors.at("exp_avg_sq.up.bias").abs().max().item<float>() == 0);
}

TEST_CASE("two models of one optimizer keep equal names apart, dtypes go their own calls", "[bound_parameters][optimizer][moments]") {
    Parameters a{{"w", leaf(torch::randn({20}))}, {"half", leaf(torch::randn({8, 4}).to(at::kBFloat16))}}, b{{"w", leaf(torch::randn({3}))}};
    auto optimizer = bind(acc::optim::Adam{.lr = 0.1}, std::vector{std::make_shared<FakeModel>(a), std::make_shared<FakeModel>(b)});
    give_gradients(a, 0);
    give_gradients(b, 0);
    optimizer.step();
    CHECK(operations_of([&] { optimizer.step(); }).size() == (optimizer.sweeps() ? 0 : 2));
    auto const state = optimizer.state_dict();
    CHECK(state.tensors.at("exp_avg.0.w").numel() == 20);
    CHECK(state.tensors.at("exp_avg.1.w").numel() == 3);
    CHECK(state.tensors.at("exp_avg.0.half").scalar_type() == at::kBFloat16);
}

TEST_CASE("Operations::Torch makes Python's calls on Python's lists", "[operations][clip][optimizer]") {
    auto ours = some_parameters(), theirs = copy(ours);
    auto model = std::make_shared<FakeModel>(ours);
    model->arrange({5, 4, 3, 2, 1, 0});  // as for speed: last first
    auto optimizer = bind(acc::optim::AdamW{.lr = 1e-2, .weight_decay = 0.1, .operations = acc::Operations::Torch}, std::vector{model});
    auto list = tensors(theirs);
    std::vector<at::Tensor> m, v, steps;
    for (auto const& p : list) m.push_back(torch::zeros_like(p)), v.push_back(torch::zeros_like(p)), steps.push_back(torch::zeros({}));
    for (int64_t i = 0; i < 10; ++i) {
        give_gradients(ours, i, 0.02);
        give_gradients(theirs, i, 0.02);
        std::vector<FakeModel*> const models{model.get()};
        auto const norm = clip_grad_norm(span_of(models), 0.25, 2, acc::Operations::Torch);
        optimizer.step();

        torch::NoGradGuard no_grad;
        std::vector<at::Tensor> grads;
        for (auto const& p : list) grads.push_back(p.grad());
        auto const total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2.0)), 2.0);
        at::_foreach_mul_(grads, at::clamp(0.25 / (total + 1e-6), std::nullopt, 1.0));
        at::_foreach_add_(steps, 1);
        at::_fused_adamw_(list, grads, m, v, {}, steps, 1e-2, 0.9, 0.999, 0.1, 1e-8, false, false);
        CHECK(norm.item<float>() == total.item<float>());
        CHECK(difference(ours, theirs) == 0);
    }
    CHECK(operations_of([&] { optimizer.step(); }) == std::vector<std::string>{"aten::_fused_adamw_"});
}

TEST_CASE("norms of flat buffers are those of fp64", "[norm][reductions]") {
    torch::manual_seed(3);
    auto const big = torch::randn({25'000'000});
    auto const exact = big.to(at::kDouble).norm().item<double>();
    CHECK(std::abs(total_norm(std::vector{big}).item<double>() / exact - 1) < 1e-6);
    CHECK(std::abs(std::sqrt(kernel::sum_of_squares(big.data_ptr<float>(), big.numel())) / exact - 1) < 1e-10);
    CHECK(std::abs(std::sqrt(kernel::sum_of_squares_portable(big.data_ptr<float>(), big.numel())) / exact - 1) < 1e-10);
    Norm const two(2);
    CHECK(std::abs(two.finish(two.partial_tensor(std::vector{big})).item<double>() / exact - 1) < 1e-6);  // as on a device

    auto const infinity = std::numeric_limits<double>::infinity();
    for (auto dtype : {at::kFloat, at::kDouble, at::kBFloat16})
        for (double p : {1.0, 2.0, 3.0, 0.5, 0.0, infinity, -infinity}) {
            std::vector<at::Tensor> const buffers{torch::randn({9001}).to(dtype), torch::randn({5}).to(dtype), torch::empty({0}, dtype), torch::randn({4096}).to(dtype)};
            auto const expected = at::linalg_vector_norm(torch::cat(buffers).to(at::kDouble), p).item<double>();
            Norm const norm(p);
            CHECK(total_norm(buffers, p).item<double>() == Approx(expected).epsilon(1e-6));
            CHECK(norm.finish(norm.partial_tensor(buffers)).item<double>() == Approx(expected).epsilon(1e-6));
        }
    CHECK(total_norm(std::vector<at::Tensor>{}).item<float>() == 0);
    // Of complex numbers the magnitudes count.
    for (auto const dtype : {at::kComplexFloat, at::kComplexDouble}) {
        auto const z = torch::randn({5000}, dtype);
        for (double const p : {1.0, 2.0, std::numeric_limits<double>::infinity()}) {
            auto const found = total_norm(std::vector{z}, p);
            CHECK(found.scalar_type() == c10::toRealValueType(dtype));
            CHECK(found.item<double>() == Approx(torch::linalg_vector_norm(z.to(at::kComplexDouble).abs(), p).item<double>()).epsilon(1e-6));
        }
    }
}

TEST_CASE("kernels agree at every length and on special values", "[reductions]") {
    torch::manual_seed(4);
    auto const x = torch::randn({200}) * 1e25;  // squares overflow fp32
    auto const* data = x.data_ptr<float>();
    for (int64_t n = 0; n <= 200; ++n) {
        auto const plain = kernel::sum_of_squares_portable(data, n);
        CHECK(kernel::sum_of_squares(data, n) == Approx(plain).epsilon(1e-13));
        CHECK(kernel::largest_magnitude(data, n) == kernel::largest_magnitude_portable(data, n));
        if (n > 0) CHECK(kernel::largest_magnitude(data, n) == x.narrow(0, 0, n).abs().max().item<float>());
    }
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) CHECK(kernel::sum_of_squares_avx2(data, 199) == Approx(kernel::sum_of_squares_portable(data, 199)).epsilon(1e-13));
    if (__builtin_cpu_supports("avx512f")) CHECK(kernel::sum_of_squares_avx512(data, 199) == Approx(kernel::sum_of_squares_portable(data, 199)).epsilon(1e-13));
#endif
    for (int64_t at : {0, 50, 199})
        for (float special : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
            auto y = torch::randn({200});
            y[at] = special;
            CHECK(std::isnan(kernel::sum_of_squares(y.data_ptr<float>(), 200)) == std::isnan(special));
            CHECK(std::isnan(kernel::largest_magnitude(y.data_ptr<float>(), 200)) == std::isnan(special));
            CHECK_FALSE(std::isfinite(kernel::largest_magnitude(y.data_ptr<float>(), 200)));
        }
}

TEST_CASE("clip_grad_norm scales as LibTorch's, over several models", "[clip]") {
    for (double p : {2.0, 1.0, std::numeric_limits<double>::infinity()})
        for (double max_norm : {0.5, 1e6}) {
            auto a = some_parameters(), b = some_parameters(2);
            auto reference = copy(a);
            for (auto& entry : copy(b)) reference.push_back(entry);
            FakeModel first(a), second(b);
            std::vector<FakeModel*> const models{&first, &second};
            for (int64_t i = 0; i < 2; ++i) {
                give_gradients(i == 0 ? a : b, i);
                give_gradients(i == 0 ? Parameters(reference.begin(), reference.begin() + 6) : Parameters(reference.begin() + 6, reference.end()), i);
            }
            auto const expected = torch::nn::utils::clip_grad_norm_(tensors(reference), max_norm, p);
            auto const norm = clip_grad_norm(span_of(models), max_norm, p);
            CHECK(norm.dim() == 0);
            CHECK(norm.scalar_type() == at::kFloat);
            CHECK(norm.item<double>() == Approx(expected).epsilon(1e-6));
            CHECK(first.settled == (max_norm < 1 ? 1 : 0));  // written, so others must be told
            auto all = a;
            all.insert(all.end(), b.begin(), b.end());
            for (size_t i = 0; i < all.size(); ++i) CHECK(at::allclose(all[i].second.grad(), reference[i].second.grad(), 1e-5, 1e-8));
        }
}

TEST_CASE("clipping: NaN spreads, values are clamped, ranks fold their parts", "[clip]") {
    auto a = some_parameters();
    FakeModel model(a);
    std::vector<FakeModel*> const models{&model};
    give_gradients(a, 0);
    clip_grad_value(span_of(models), 0.3);
    CHECK(model.flats()[0].gradients.abs().max().item<float>() == 0.3f);

    // Two ranks, each the owner of half: the partial results are added (or the largest taken), then both scale by the same.
    auto const full = total_norm(std::vector{model.flats()[0].gradients}).item<double>();
    auto const half = model.flats()[0].parameters.numel() / 2;
    auto b = copy(a);
    FakeModel left(b);
    left.cut({0, half});
    left.pieces()[0].gradients.copy_(model.flats()[0].gradients.narrow(0, 0, half));
    std::vector<FakeModel*> const lefts{&left};
    auto const other = model.flats()[0].gradients.narrow(0, half, half);
    auto const norm = clip_grad_norm(span_of(lefts), 0.1, 2, acc::Operations::Fused, [&](at::Tensor& partial, Fold how) {
        CHECK(how == Fold::Sum);
        partial.add_(other.to(at::kDouble).square().sum());
    });
    CHECK(norm.item<double>() == Approx(full).epsilon(1e-6));
    CHECK(left.pieces()[0].gradients.norm().item<double>() == Approx(0.1 * model.flats()[0].gradients.narrow(0, 0, half).norm().item<double>() / full).epsilon(1e-4));

    model.flats()[0].gradients[3] = std::numeric_limits<float>::quiet_NaN();
    CHECK(std::isnan(clip_grad_norm(span_of(models), 1).item<float>()));
    CHECK(model.flats()[0].gradients.isnan().all().item<bool>());
}

TEST_CASE("a torch::optim optimizer behind the same interface", "[torch_adapter][bind]") {
    auto ours = some_parameters(), theirs = copy(ours);
    auto model = std::make_shared<FakeModel>(ours);
    auto held = std::make_unique<torch::optim::RMSprop>(tensors(ours), torch::optim::RMSpropOptions(1e-2));
    torch::optim::RMSprop reference(tensors(theirs), torch::optim::RMSpropOptions(1e-2));
    auto optimizer = bind(std::move(held), std::vector{model});
    auto const* gradients = ours[0].second.grad().data_ptr();
    for (int64_t i = 0; i < 4; ++i) {
        give_gradients(ours, i);
        give_gradients(theirs, i);
        model->closed = false;
        optimizer.step();
        optimizer.zero_grad();
        model->closed = true;
        optimizer.step();
        optimizer.zero_grad();
        reference.step();
        CHECK(ours[0].second.grad().data_ptr() == gradients);  // still a view
        CHECK(ours[0].second.grad().abs().max().item<float>() == 0);
    }
    CHECK(difference(ours, theirs) == 0);
    CHECK((optimizer.steps() == 4 && optimizer.updates() == 4 && model->before == 4 && model->after == 4));
    model->allows = false;
    optimizer.step();
    CHECK((optimizer.step_was_skipped() && optimizer.updates() == 4));
    optimizer.set_lr(5e-3);
    CHECK(code_of([&] { optimizer.set_lr(-1); }) == acc::code::config);
    CHECK(optimizer.lr() == 5e-3);
    CHECK(optimizer.unwrap().param_groups()[0].options().get_lr() == 5e-3);
    CHECK(optimizer.models().size() == 1);
}

TEST_CASE("torch::optim by value, by reference and by either pointer; strangers are refused", "[torch_adapter][bind]") {
    auto a = some_parameters();
    auto model = std::make_shared<FakeModel>(a);
    torch::optim::SGD mine(tensors(a), 0.1);
    auto by_reference = bind(mine, std::vector{model});
    CHECK(&by_reference.unwrap() == &mine);
    auto by_value = bind(torch::optim::SGD(tensors(a), 0.2), std::vector{model});
    auto by_shared = bind(std::make_shared<torch::optim::AdamW>(tensors(a), 0.3), std::vector{model});
    auto by_base = bind(std::unique_ptr<torch::optim::Optimizer>(std::make_unique<torch::optim::Adagrad>(tensors(a), 0.4)), std::vector{model});
    CHECK((by_reference.lr() == 0.1 && by_value.lr() == 0.2 && by_shared.lr() == 0.3 && by_base.lr() == 0.4));
    CHECK(code_of([&] { (void)by_base.state_dict(); }) == acc::code::config);
    CHECK(code_of([&] { by_base.load_state_dict({}); }) == acc::code::config);

    auto stray = leaf(torch::ones({2}));  // trained beside the model, as a temperature is
    auto with_stray = bind(torch::optim::SGD({a[0].second, stray}, 0.1), std::vector{model});
    stray.mutable_grad() = torch::ones({2});
    give_gradients(a, 0);
    with_stray.step();
    with_stray.zero_grad();
    CHECK(stray[0].item<float>() == Approx(0.9));
    CHECK_FALSE(stray.grad().defined());
    CHECK(code_of([&] { bind(torch::optim::SGD({stray}, 0.1), std::vector{model}); }) == acc::code::config);

    auto const rates = [](auto const& optimizer) {
        std::vector<double> all;
        for (auto const& group : optimizer.unwrap().param_groups()) all.push_back(group.options().get_lr());
        return all;
    };
    using Group = torch::optim::OptimizerParamGroup;
    auto const group = [&](size_t i, double lr) { return Group({a[i].second}, std::make_unique<torch::optim::SGDOptions>(lr)); };
    auto grown = bind(torch::optim::SGD({group(0, 0.1), group(1, 0.3)}, torch::optim::SGDOptions(0.1)), std::vector{model});
    grown.unwrap().add_param_group(Group({stray}, std::make_unique<torch::optim::SGDOptions>(0.2)));  // as who thaws a layer does
    grown.set_lr(0.05);
    for (auto [found, expected] : {std::pair{rates(grown)[0], 0.05}, {rates(grown)[1], 0.15}, {rates(grown)[2], 0.1}}) CHECK(found == Approx(expected));
    auto from_zero = bind(torch::optim::SGD({group(0, 0.0), group(1, 0.3)}, torch::optim::SGDOptions(0.1)), std::vector{model});
    CHECK(code_of([&] { from_zero.set_lr(0.1); }) == acc::code::config);
    CHECK(rates(from_zero) == std::vector{0.0, 0.3});
    grown.unwrap().param_groups()[0].options().set_lr(0.7);  // as LibTorch's own schedulers do
    CHECK(grown.lr() == 0.7);

    model->cut({0, 64, model->flats()[0].parameters.numel()});
    CHECK(code_of([&] { bind(torch::optim::SGD(tensors(a), 0.1), std::vector{model}); }) == acc::code::config);
}

TEST_CASE("torch::optim state by parameter name, exchangeable with a recipe's", "[torch_state][torch_adapter]") {
    auto round_trip = [](auto make, auto... recipe) {
        auto a = some_parameters();
        auto first = bind(make(tensors(a)), std::vector{std::make_shared<FakeModel>(a)});
        for (int64_t i = 0; i < 3; ++i) give_gradients(a, i), first.step();
        first.set_lr(first.lr() / 2);
        auto const saved = first.state_dict();
        auto b = copy(a), c = copy(a);
        auto second = bind(make(tensors(b)), std::vector{std::make_shared<FakeModel>(b)});
        second.load_state_dict(saved);
        auto step = [&](auto& optimizer, auto& parameters) {
            for (int64_t i = 3; i < 6; ++i) give_gradients(parameters, i), optimizer.step();
        };
        step(first, a);
        step(second, b);
        CHECK(second.steps() == 6);
        CHECK(difference(a, b) == 0);
        ((void)[&](auto r) {
            auto third = bind(r, std::vector{std::make_shared<FakeModel>(c)});
            third.load_state_dict(saved);
            step(third, c);
            CHECK(difference(a, c) < 2e-6);
            second.load_state_dict(third.state_dict());
            CHECK(second.steps() == 6);
        }(recipe), ...);
        auto bad = saved;
        bad.values["kind"] = "another";
        CHECK(code_of([&] { second.load_state_dict(bad); }) == acc::code::data);
    };
    using P = std::vector<at::Tensor>;
    round_trip([](P p) { return torch::optim::AdamW(p, torch::optim::AdamWOptions(1e-2)); }, acc::optim::AdamW{.lr = 1e-2});
    round_trip([](P p) { return torch::optim::Adam(p, torch::optim::AdamOptions(1e-2).amsgrad(true)); }, acc::optim::Adam{.lr = 1e-2, .amsgrad = true});
    round_trip([](P p) { return torch::optim::SGD(p, torch::optim::SGDOptions(1e-2).momentum(0.9)); }, Sgd{.lr = 1e-2, .momentum = 0.9});
    round_trip([](P p) { return torch::optim::Adagrad(p, torch::optim::AdagradOptions(1e-2)); }, acc::optim::Adagrad{.lr = 1e-2});
    round_trip([](P p) { return torch::optim::RMSprop(p, torch::optim::RMSpropOptions(1e-2).momentum(0.5)); });
}

TEST_CASE("a search goes on from its state, by parameter name", "[lbfgs_state][torch_adapter]") {
    auto const begin = [] {
        torch::manual_seed(3);
        return Parameters{{"a.weight", leaf(torch::randn({4, 3}))}, {"a.bias", leaf(torch::randn({4}))}, {"b.weight", leaf(torch::randn({2, 4}).to(torch::kDouble))}};
    };
    auto const options = torch::optim::LBFGSOptions(0.5).max_iter(5).history_size(3).line_search_fn("strong_wolfe");
    auto const make = [&](Parameters& p) { return bind(torch::optim::LBFGS({p[0].second, p[1].second}, options), std::vector{std::make_shared<FakeModel>(p)}); };
    auto const steps = [](auto& optimizer, Parameters const& p, int64_t n) {
        auto const closure = [&] {
            optimizer.zero_grad();
            auto const loss = (p[0].second.sin() + p[1].second.unsqueeze(1)).square().sum() + p[1].second.cos().sum() + p[0].second.pow(4).mean();
            loss.backward();
            return loss;
        };
        for (int64_t i = 0; i < n; ++i) optimizer.step(closure);
    };
    for (int64_t const before : {0, 1, 3}) {
        auto p = begin(), q = begin();
        auto first = make(p), second = make(q);
        steps(first, p, before);
        auto saved = first.state_dict();
        CHECK(saved.tensors.contains("d.a.weight") == (before > 0));
        CHECK(saved.tensors.contains("old_stps_2.a.bias") == (before > 0));
        saved.values = nlohmann::json::parse(saved.values.dump());
        for (size_t i = 0; i < p.size(); ++i) q[i].second.detach().copy_(p[i].second.detach());
        second.check_state_dict(saved);
        second.load_state_dict(saved);
        steps(first, p, 3), steps(second, q, 3);
        CHECK(difference(p, q) == 0);
        CHECK((first.steps() == before + 3 && second.steps() == before + 3));
        if (before == 0) continue;
        auto const refused = [&](auto const& spoil) {
            auto bad = saved;
            spoil(bad);
            return code_of([&] { second.check_state_dict(bad); });
        };
        CHECK(refused([](auto& s) { s.values["kind"] = "AdamW"; }) == acc::code::data);
        CHECK(refused([](auto& s) { s.values["search"]["n_iter"] = 0; }) == acc::code::data);
        CHECK(refused([](auto& s) { s.values["search"]["t"] = nullptr; }) == acc::code::data);
        CHECK(refused([](auto& s) { s.values["search"]["ro"].push_back(1.0); }) == acc::code::data);
        CHECK(refused([](auto& s) { s.values["search"].erase("H_diag"); }) == acc::code::data);
        CHECK(refused([](auto& s) { s.values["search"] = 1; }) == acc::code::data);
        CHECK(refused([](auto& s) { s.tensors.find("d.a.bias")->second = torch::zeros({5}); }) == acc::code::data);
    }
    auto p = begin();
    auto still = make(p);
    still.step([&] { return still.zero_grad(), (p[0].second * 0).sum() + (p[1].second * 0).sum(); });
    auto const nothing = still.state_dict();
    CHECK((nothing.tensors.empty() && !nothing.values.contains("search")));
    still.load_state_dict(nothing);
    auto stranger = leaf(torch::zeros({2}));
    auto optimizer = bind(torch::optim::LBFGS({p[0].second, stranger}, options), std::vector{std::make_shared<FakeModel>(p)});
    CHECK(code_of([&] { optimizer.state_dict(); }) == acc::code::config);
}

TEST_CASE("a callable option is shared, const and knows when it is empty", "[callable]") {
    Callable<bool(std::string const&)> empty;
    CHECK_FALSE(bool(empty));
    auto counter = std::make_shared<int>(0);
    Callable<bool(std::string const&)> match = [counter](std::string_view name) { return ++*counter, name.ends_with("bias"); };
    auto again = match;
    CHECK(counter.use_count() == 2);
    CHECK((match("a.bias") && !again("a.weight")));
    CHECK(*counter == 2);
    Callable<double(int64_t)> half = +[](int64_t n) { return static_cast<double>(n) / 2; };
    CHECK(half(3) == 1.5);
}
