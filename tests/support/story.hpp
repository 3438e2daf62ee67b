#pragma once
// A run that is told: what it lost and what it was, so that one that goes on from a checkpoint can be compared with it, bit by bit. Ranks are threads.

#include <torch/torch.h>

#include "catch.hpp"
#include "errors.hpp"
#include "folder.hpp"

#include <accelerate.hpp>
#include <algorithm>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace told {

namespace acc = accelerate;
namespace fs = std::filesystem;

template <class Precision, class Sharding, class Loader = acc::loader::Stateful<>>
using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, Precision, Sharding, Loader>;

/// Has buffers; under fp8 its middle layer runs in it.
template <class S = acc::Plain>
struct Net : torch::nn::Module {
    explicit Net(int64_t hidden = 16) : a(this, "a", 3, hidden), b(this, "b", hidden, hidden), c(this, "c", hidden, 2) {}
    torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(norm(torch::tanh(a(x)).to(norm->weight.scalar_type()))))); }
    acc::Linear<S> a, b, c;
    torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(16))};
};

struct Samples {
    size_t size() const { return 46; }
    std::pair<torch::Tensor, torch::Tensor> operator[](size_t i) const {
        auto generator = at::detail::createCPUGenerator(i);
        auto const x = at::randn({3}, generator);
        return {x, torch::stack({x.sum(), x[0] * x[1]})};
    }
};

/// The same as a stream that only says what comes next.
struct Stream {
    int64_t at = 0;
    std::optional<std::pair<torch::Tensor, torch::Tensor>> next() { return at < 46 ? std::optional(Samples()[static_cast<size_t>(at++)]) : std::nullopt; }
    void start(int64_t) { at = 0; }
};

/// The same as a stream of which each rank reads a part.
struct Parts {
    struct Part {
        int64_t at, end;
        std::optional<std::pair<torch::Tensor, torch::Tensor>> next() { return at < end ? std::optional(Samples()[static_cast<size_t>(at++)]) : std::nullopt; }
    };
    Part open(int64_t k, int64_t parts) const { return {k * 46 / parts, (k + 1) * 46 / parts}; }
};

/// Where the samples come from: an indexed data set, a stream, rank 0, or a part for each rank. `between_epochs`: where an epoch's last body is
/// the stop, that is behind the loop.
struct Indexed {
    using policy = acc::loader::Stateful<>;
    using dataset = Samples;
    static constexpr bool shuffle = true, between_epochs = false;
    static constexpr char const* name = "indexed";
};
struct IndexedBetween : Indexed {
    static constexpr bool between_epochs = true;
};
struct Streamed {
    using policy = acc::loader::Stateful<>;
    using dataset = Stream;
    static constexpr bool shuffle = false, between_epochs = false;
    static constexpr char const* name = "stream";
};
struct Whole : Samples {
    size_t size() const { return 48; }  // rank 0 cuts a last batch into parts: of 46 samples two ranks would have one each, which is too few to normalise
};
struct Dispatched {
    using policy = acc::loader::Dispatched<>;
    using dataset = Whole;
    static constexpr bool shuffle = true, between_epochs = false;
    static constexpr char const* name = "dispatched";
};
struct Parted {
    using policy = acc::loader::Stateful<>;
    using dataset = Parts;
    static constexpr bool shuffle = false, between_epochs = true;
    static constexpr char const* name = "parts of a stream";
};

/// Counts bodies; saved and restored with the run.
struct Counter {
    int64_t bodies = 0;
    acc::StateDict state_dict() const { return {{}, {{"bodies", bodies}}}; }
    void load_state_dict(acc::StateDict const& s) { bodies = s.value<int64_t>("bodies", "Counter"); }
};

/// What a run is at one moment, in bits.
struct Snapshot {
    acc::TensorMap tensors;
    std::string values;

    bool operator==(Snapshot const& other) const {
        if (values != other.values || tensors.size() != other.tensors.size()) return false;
        return std::all_of(tensors.begin(), tensors.end(), [&](auto const& item) { return other.tensors.contains(item.first) && same_bytes(item.second, other.tensors.at(item.first)); });
    }

private:
    static bool same_bytes(torch::Tensor const& a, torch::Tensor const& b) {
        auto const x = a.contiguous(), y = b.contiguous();
        return x.sizes() == y.sizes() && x.scalar_type() == y.scalar_type() && (x.numel() == 0 || std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0);
    }
};

struct Story {
    std::vector<float> losses;   ///< of the bodies after the stop, or of all
    Snapshot at_stop, at_end;
};

constexpr int64_t bodies = 20, window = 3;  // an epoch has 8 bodies at three ranks, 12 at two, 23 at one

/// One rank's run of `bodies` bodies. `stop`: the body after which it calls `at_stop(accelerator)`, 0: before the first. It goes on from a
/// folder that is given.
template <class Precision, class Sharding, class Data = Indexed>
Story story(acc::comm::Threads comm, fs::path const& from, int64_t stop, std::function<void(Run<Precision, Sharding, typename Data::policy>&)> const& at_stop) {
    bool const resumed = !from.empty();
    Run<Precision, Sharding, typename Data::policy> accelerator({.gradient_accumulation_steps = window, .seed = resumed ? 99 : 1, .grad_scaler = {.init_scale = 1e6, .growth_interval = 2}}, comm);
    auto [model, optimizer, loader, schedule] = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = 0.01, .no_decay_on_norms_and_biases = true},
                                                                    acc::data::Loader{typename Data::dataset(), {.batch_size = 2, .shuffle = Data::shuffle, .seed = resumed ? 5 : 7}},
                                                                    acc::schedule::Cosine{.warmup = acc::OptimizerSteps{2}, .total = acc::OptimizerSteps{30}});
    Counter counter;
    accelerator.register_for_checkpointing(counter);
    if (resumed) accelerator.load_state(from);
    Story told;
    auto const snapshot = [&, &model = model, &optimizer = optimizer, &loader = loader, &schedule = schedule] {
        Snapshot s;
        for (auto const& [name, t] : accelerator.get_state_dict(model)) s.tensors.insert(name, t);
        if (optimizer.steps() > 0)
            for (auto const& [name, t] : optimizer.state_dict().tensors) s.tensors.insert("optimizer." + name, t.clone());
        for (auto const& [name, t] : acc::detail::gradients_in(model.state().flats())) s.tensors.insert("gradient." + name, t.clone());
        if (comm.size() == 1) s.tensors.insert("random", acc::random_state(at::kCPU));
        s.values = acc::concat(schedule.state_dict().values.dump(), loader.state_dict().values.dump(), optimizer.lr(), " ", optimizer.steps(), " ", counter.bodies, " ", model.state().window().position());
        if constexpr (Precision::compute == at::kHalf) s.values += accelerator.scaler().state_dict().values.dump();
        return s;
    };
    auto const here = [&] {
        if (counter.bodies != stop) return;
        if (!resumed) told.at_stop = snapshot();
        at_stop(accelerator);
    };
    if (resumed) told.at_stop = snapshot();
    else here();
    while (counter.bodies < bodies) {
        for (auto& batch : loader) {
            {
                auto opened = accelerator.accumulate(model);
                auto x = batch.first;
                if (comm.size() == 1) x = torch::dropout(x, 0.2, true);  // ranks that are threads share the generator
                auto const loss = torch::mse_loss(model(x).to(at::kFloat), batch.second);
                accelerator.backward(loss);
                accelerator.clip_grad_norm(model, 1.0);
                optimizer.step();
                schedule.step();
                optimizer.zero_grad();
                told.losses.push_back(loss.template item<float>());
            }
            ++counter.bodies;
            if (!Data::between_epochs || !loader.end_of_dataloader()) here();
            if (counter.bodies == bodies) break;
        }
        if (Data::between_epochs) here();
    }
    told.at_end = snapshot();
    return told;
}

/// The same of so many ranks.
template <class Precision, class Sharding, class Data = Indexed>
std::vector<Story> stories(int64_t ranks, fs::path const& from, int64_t stop, std::function<void(Run<Precision, Sharding, typename Data::policy>&)> const& at_stop) {
    std::vector<Story> told(static_cast<size_t>(ranks));
    acc::debug_launcher(ranks, [&](acc::comm::Threads comm) { told[static_cast<size_t>(comm.rank())] = story<Precision, Sharding, Data>(comm, from, stop, at_stop); });
    return told;
}

}  // namespace told
