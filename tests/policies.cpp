// Policies that a user writes: what satisfies the published concepts trains, under every combination that `supported` allows.
#include "support/catch.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <mutex>

namespace acc = accelerate;

namespace {

using Threads = acc::device::BasicCpu<acc::comm::Threads>;
using Self = acc::device::BasicCpu<acc::comm::Self>;

thread_local int scopes_open = 0, scopes_made = 0, updates_seen = 0;

/// A precision whose linear layers give twice their product, and which counts what it is told.
struct Doubled {
    static constexpr at::ScalarType parameter = at::kFloat, compute = at::kFloat, reduction = at::kFloat, master = at::kFloat;
    static constexpr char const* name = "doubled";
    template <class Impl>
    struct impl : Impl {
        using Impl::Impl;
        torch::Tensor forward(torch::Tensor const& x) { return Impl::forward(x) * 2; }
    };
    template <class Device>
    struct scope {
        explicit scope(bool = true) { ++scopes_open, ++scopes_made; }
        ~scope() { --scopes_open; }
        scope(scope const&) = delete;
        scope& operator=(scope const&) = delete;
    };
    template <class Device>
    struct pause {
        pause() : were(std::exchange(scopes_open, 0)) {}
        ~pause() { scopes_open = were; }
        pause(pause const&) = delete;
        pause& operator=(pause const&) = delete;
        int were;
    };
    static void parameters_changed() { ++updates_seen; }
};

/// Data parallel as everybody writes it first: after backward, every gradient is averaged by itself.
template <class Comm>
class AveragedModel : public acc::sharding::FlatModel {
public:
    AveragedModel(acc::sharding::ModelParts parts, Comm const& comm) : FlatModel(std::move(parts.parameters)), comm_(comm) {
        adopt_whole();
    }
    void before_forward() {}
    void before_backward(at::Tensor const&) {}
    void after_backward() {
        repair_all();
        if (!window_.closed()) return;
        for (auto const& [name, p] : parameters_) comm_.all_reduce(p.grad(), acc::comm::Reduction::Mean);
        stage_ = acc::sharding::Stage::Reduced;
    }
    static constexpr bool owns_everything = true;
    double sum_over_ranks(double value) const {
        auto t = torch::tensor({value}, torch::kDouble);
        comm_.all_reduce(t, acc::comm::Reduction::Sum);
        return t.item<double>();
    }
    int64_t replicas() const { return comm_.size(); }

private:
    Comm comm_;
};

/// A placement that counts how often units run and how often their backward begins.
struct Watched {
    static inline std::atomic<int> forwards = 0, backwards = 0;

    template <class Block>
    struct impl : Block {
        using Block::Block;
        template <class... In>
        auto forward(In&&... in) {
            ++forwards;
            auto out = Block::forward(std::forward<In>(in)...);
            acc::for_each_tensor(out, [](at::Tensor const& t) {
                if (t.requires_grad()) t.register_hook([](at::Tensor const&) { ++backwards; });
            });
            return out;
        }
    };
};

struct Averaged {
    static constexpr char const* name = "Averaged";
    template <class Device>
    using placement = Watched;
    template <class Device>
    using model = AveragedModel<typename Device::communicator>;
};

/// As `Stateful`, under another name.
struct OwnLoader {
    static constexpr char const* name = "Own";
    template <class Loader>
    using prepared = acc::data::Prepared<Loader>;
};

/// A change of one member is a policy too.
struct Renamed : acc::sharding::Ddp<> {
    static constexpr char const* name = "Renamed";
};

template <class S>
struct Block : torch::nn::Module {
    explicit Block(int64_t d) : up(this, "up", d, 2 * d), down(this, "down", 2 * d, d) {}
    torch::Tensor forward(torch::Tensor x) { return x + down(torch::tanh(up(x))); }
    acc::Linear<S> up, down;
};
template <class S>
struct Model : torch::nn::Module {
    explicit Model(int64_t d) : blocks(this, "blocks", 2, d), head(this, "head", d, 1) {}
    torch::Tensor forward(torch::Tensor x) { return head(blocks(x)); }
    acc::Layers<S, Block<S>> blocks;
    acc::Linear<S> head;
};

struct Rows {
    size_t size() const { return 32; }
    torch::Tensor operator[](size_t i) const { return torch::sin(torch::arange(4, torch::kFloat) * (static_cast<double>(i) + 1) * 0.37); }
};

/// Three epochs; the loss of every step, over all ranks.
template <class Run, class Net>
std::vector<double> train(Run& accelerator, Net net, int64_t batch_size) {
    auto [model, optimizer, loader] = accelerator.prepare(net, acc::optim::Sgd{.lr = 0.02}, acc::data::Loader{Rows{}, {.batch_size = batch_size, .shuffle = true, .seed = 3}});
    std::vector<double> losses;
    while (loader.epoch() < 3)
        for (auto& x : loader) {
            auto window = accelerator.accumulate(model);
            auto const loss = (model(x) - x.sum(1, true)).square().mean();
            accelerator.backward(loss);
            accelerator.clip_grad_norm(model, 1.0);
            optimizer.step();
            optimizer.zero_grad();
            losses.push_back(accelerator.reduce(loss.detach(), "mean").template item<double>());
        }
    return losses;
}

template <class Run>
std::vector<double> train(Run& accelerator, int64_t batch_size) {
    return train(accelerator, accelerator.template make<Model>(int64_t{4}), batch_size);
}

template <class Precision, class Sharding, class Device = Self, class Loader = acc::loader::Stateful<>>
using Run = acc::Accelerator<Device, Precision, Sharding, Loader>;
using acc::precision::Fp32;
using acc::sharding::None;

void expect_equal(std::vector<double> const& a, std::vector<double> const& b, double tolerance) {
    REQUIRE(a.size() == b.size());
    for (size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= tolerance * std::abs(b[i]));
}

}  // namespace

TEST_CASE("policies of a user's satisfy the concepts", "[policy][supported]") {
    STATIC_REQUIRE(acc::precision_policy<Doubled>);
    STATIC_REQUIRE(acc::sharding_policy<Averaged, Threads>);
    STATIC_REQUIRE(acc::sharding_policy<Renamed, Self>);
    STATIC_REQUIRE(acc::placement<Watched>);
    STATIC_REQUIRE(acc::loader_policy<OwnLoader>);
    STATIC_REQUIRE(acc::supported<Threads, Doubled, Averaged, OwnLoader>);
    // In wrong slots, or of the wrong kind, nothing is supported, and asking is no error.
    STATIC_REQUIRE_FALSE(acc::supported<Threads, Averaged, Doubled, OwnLoader>);
    STATIC_REQUIRE_FALSE(acc::supported<int, Fp32, None, acc::loader::Stateful<>>);
    STATIC_REQUIRE_FALSE(acc::supported<Self, Fp32, None, int>);
    CHECK(Run<Doubled, Averaged, Threads, OwnLoader>::policies() == "device cpu, mixed_precision doubled, sharding Averaged, loader Own");
}

TEST_CASE("an own precision replaces the arithmetic of linear layers and is told about scopes and updates", "[policy][linear]") {
    // The reference is written by hand, with the doubling in the model.
    struct Twice : torch::nn::Module {
        explicit Twice(int64_t d) {
            for (int64_t i = 0; i < 2; ++i)
                up.push_back(register_module("up" + std::to_string(i), torch::nn::Linear(d, 2 * d))), down.push_back(register_module("down" + std::to_string(i), torch::nn::Linear(2 * d, d)));
            head = register_module("head", torch::nn::Linear(d, 1));
        }
        torch::Tensor forward(torch::Tensor x) {
            for (size_t i = 0; i < 2; ++i) x = x + down[i](torch::tanh(up[i](x) * 2)) * 2;
            return head(x) * 2;
        }
        std::vector<torch::nn::Linear> up, down;
        torch::nn::Linear head{nullptr};
    };
    Run<Fp32, None> plain;
    auto const initial = plain.make<Model>(int64_t{4});
    auto reference = std::make_shared<Twice>(4);
    {
        torch::NoGradGuard no_grad;
        auto const from = initial->named_parameters();
        for (int i = 0; i < 2; ++i)
            for (auto const* part : {"weight", "bias"}) {
                auto const n = std::to_string(i);
                reference->named_parameters()["up" + n + "." + part].copy_(from["blocks." + n + ".up." + part]);
                reference->named_parameters()["down" + n + "." + part].copy_(from["blocks." + n + ".down." + part]);
            }
        for (auto const* part : {"weight", "bias"}) reference->named_parameters()[std::string("head.") + part].copy_(from[std::string("head.") + part]);
    }
    auto const expected = train(plain, reference, 8);

    scopes_made = updates_seen = 0;
    Run<Doubled, None> own;
    expect_equal(train(own, 8), expected, 1e-6);
    CHECK(own.mixed_precision() == "doubled");
    CHECK(updates_seen == 12);
    CHECK(scopes_made == 12);  // one for each micro-batch, around forward and loss
    CHECK(scopes_open == 0);
}

TEST_CASE("an own sharding and an own placement train as one process does", "[policy][placement]") {
    Run<Fp32, None> alone;
    auto const expected = train(alone, 8);
    Watched::forwards = Watched::backwards = 0;
    std::mutex mutex;
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Averaged, Threads> accelerator({}, comm);
        auto const ours = train(accelerator, 4);
        std::lock_guard const lock(mutex);
        expect_equal(ours, expected, 1e-6);
    });
    // The root and two blocks, 12 steps, 2 ranks; a resident Linear is no unit.
    CHECK(Watched::forwards == 3 * 12 * 2);
    CHECK(Watched::backwards == 3 * 12 * 2);

    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Renamed, Threads, OwnLoader> accelerator({}, comm);
        auto const ours = train(accelerator, 4);
        std::lock_guard const lock(mutex);
        expect_equal(ours, expected, 1e-6);
    });
}

TEST_CASE("own policies combine with the library's", "[policy]") {
    std::vector<double> expected;
    {
        Run<Doubled, None> alone;
        expected = train(alone, 8);
    }
    std::mutex mutex;
    auto const on_two = [&]<class Sharding>(std::type_identity<Sharding>) {
        acc::debug_launcher(2, [&](acc::comm::Threads comm) {
            Run<Doubled, Sharding, Threads> accelerator({}, comm);
            auto const ours = train(accelerator, 4);
            std::lock_guard const lock(mutex);
            expect_equal(ours, expected, 1e-6);
        });
    };
    on_two(std::type_identity<acc::sharding::Ddp<>>());
    on_two(std::type_identity<acc::sharding::Fsdp<>>());
    on_two(std::type_identity<Averaged>());
}
