// Checkpoints of whole runs: going on from one equals never having stopped, bit for bit; and what a folder may not be. Ranks are threads.
#include <torch/torch.h>

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/folder.hpp"

#include <accelerate.hpp>
#include <cstring>

namespace acc = accelerate;
namespace fs = std::filesystem;

namespace {

template <class Precision, class Sharding>
using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Threads>, Precision, Sharding, acc::loader::Stateful<>>;

/// Has buffers; under fp8 its middle layer runs in it.
template <class S = acc::Plain>
struct Net : torch::nn::Module {
    explicit Net(int64_t hidden = 16) : a(this, "a", 3, hidden), b(this, "b", hidden, hidden), c(this, "c", hidden, 2) {}
    torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(norm(torch::tanh(a(x)).to(norm->weight.scalar_type()))))); }
    acc::Linear<S> a, b, c;
    torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(16))};
};

template <class S = acc::Plain>
struct Turned : torch::nn::Module {
    Turned() : a(this, "a", 16, 3), b(this, "b", 16, 16), c(this, "c", 2, 16) {}
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

/// One rank's run of `bodies` bodies. `stop`: the body after which it calls `at_stop(accelerator)`. It goes on from a folder that is given.
template <class Precision, class Sharding, class F>
Story story(acc::comm::Threads comm, fs::path const& from, int64_t stop, F&& at_stop) {
    bool const resumed = !from.empty();
    Run<Precision, Sharding> accelerator({.gradient_accumulation_steps = window, .seed = resumed ? 99 : 1, .grad_scaler = {.init_scale = 1e6, .growth_interval = 2}}, comm);
    auto [model, optimizer, loader, schedule] = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = 0.01, .no_decay_on_norms_and_biases = true},
                                                                    acc::data::Loader{Samples(), {.batch_size = 2, .shuffle = true, .seed = resumed ? 5 : 7}},
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
        for (auto const& [name, t] : acc::detail::gradients_of(model.state())) s.tensors.insert("gradient." + name, t.clone());
        if (comm.size() == 1) s.tensors.insert("random", acc::random_state(at::kCPU));
        s.values = acc::concat(schedule.state_dict().values.dump(), loader.state_dict().values.dump(), optimizer.lr(), " ", optimizer.steps(), " ", counter.bodies, " ", model.state().window().position());
        if constexpr (Precision::compute == at::kHalf) s.values += accelerator.scaler().state_dict().values.dump();
        return s;
    };
    if (resumed) told.at_stop = snapshot();
    while (counter.bodies < bodies)
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
            if (++counter.bodies == stop) {
                if (!resumed) told.at_stop = snapshot();
                at_stop(accelerator);
            }
            if (counter.bodies == bodies) break;
        }
    told.at_end = snapshot();
    return told;
}

/// Stops after `stop` bodies, begins anew from the folder, and is where the run is that did not stop.
template <class Precision, class Sharding>
void resumes(int64_t ranks, std::vector<int64_t> const& stops) {
    for (auto stop : stops) {
        INFO(Precision::name << ", " << Sharding::name << ", " << ranks << " ranks, stop after " << stop);
        Folder folder;
        auto const dir = folder / "here";
        std::vector<Story> through(static_cast<size_t>(ranks)), again(static_cast<size_t>(ranks));
        torch::manual_seed(11);
        acc::debug_launcher(ranks, [&](acc::comm::Threads comm) { through[static_cast<size_t>(comm.rank())] = story<Precision, Sharding>(comm, {}, stop, [&](auto& accelerator) { accelerator.save_state(dir); }); });
        torch::manual_seed(12);
        acc::debug_launcher(ranks, [&](acc::comm::Threads comm) { again[static_cast<size_t>(comm.rank())] = story<Precision, Sharding>(comm, dir, -1, [](auto&) {}); });
        for (size_t r = 0; r < through.size(); ++r) {
            INFO("rank " << r);
            CHECK(again[r].at_stop == through[r].at_stop);
            CHECK(again[r].losses == std::vector<float>(through[r].losses.begin() + stop, through[r].losses.end()));
            CHECK(again[r].at_end == through[r].at_end);
        }
    }
}

using namespace acc::precision;
using namespace acc::sharding;

}  // namespace

// Windows of three: after 3 and 9 between windows, after 4, 5, 10, 11, 14 in the middle of one; epochs end after 23, 12 and 8 bodies.
TEST_CASE("a run that goes on from a checkpoint is the run that never stopped", "[checkpoint][checkpointing][component][state_control][random_state]") {
    SECTION("alone, with random numbers") {
        resumes<Fp32, None>(1, {3, 5, 10});
        resumes<Fp16<>, None>(1, {1, 3, 9, 14});  // the scaler begins too high: the first steps are skipped
        resumes<Fp8<acc::recipe::Delayed<4>>, None>(1, {6, 7});
        resumes<Bf16<acc::bf16{.parameters = at::kBFloat16}>, None>(1, {9, 10});
    }
    SECTION("data parallel") {
        resumes<Fp32, Ddp<>>(2, {3, 5, 12, 13});
        resumes<Fp32, Ddp<acc::ddp{.gather_gradients = false}>>(2, {3, 4});
    }
    SECTION("sharded") {
        resumes<Fp32, Fsdp<>>(3, {3, 4, 8, 11});
        resumes<Fp16<>, Fsdp<>>(2, {1, 9});
    }
    SECTION("each rank for itself") {
        resumes<Fp32, None>(2, {4, 9});
        resumes<Fp16<>, None>(2, {9});  // with a scaler of its own
    }
}

namespace {

/// A run of `ranks` ranks that may load, trains a while, and may save. Gives rank 0's whole parameters and optimizer state.
template <class Sharding>
acc::TensorMap carried(int64_t ranks, fs::path const& from, int64_t windows, fs::path const& to) {
    acc::TensorMap result;
    acc::debug_launcher(ranks, [&](acc::comm::Threads comm) {
        Run<Fp32, Sharding> accelerator({.seed = from.empty() ? 1 : 2}, comm);
        auto [model, optimizer, loader] = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = from.empty() ? 0.01 : 0.5}, acc::data::Loader{Samples(), {.batch_size = 2}});
        if (!from.empty()) accelerator.load_state(from);
        if (windows > 0)
            for (auto& batch : loader) {
                auto opened = accelerator.accumulate(model);
                accelerator.backward(torch::mse_loss(model(batch.first), batch.second));
                optimizer.step();
                optimizer.zero_grad();
                if (optimizer.steps() == windows) break;
            }
        if (!to.empty()) accelerator.save_state(to);
        auto whole = accelerator.get_state_dict(model);
        if constexpr (std::is_same_v<Sharding, None>)
            for (auto const& [name, t] : optimizer.state_dict().tensors) whole.insert("optimizer." + name, t);
        whole.insert("lr", torch::tensor(optimizer.lr()));
        whole.insert("steps", torch::tensor(optimizer.steps()));
        whole.insert("consumed", torch::tensor(loader.consumed()));
        if (comm.rank() == 0) result = whole;
    });
    return result;
}

bool equal(acc::TensorMap const& a, acc::TensorMap const& b) { return Snapshot{a, {}} == Snapshot{b, {}}; }

}  // namespace

TEST_CASE("a checkpoint loads under another sharding and number of ranks, bit for bit", "[checkpoint][manifest]") {
    using Carry = acc::TensorMap (*)(int64_t, fs::path const&, int64_t, fs::path const&);
    std::vector<std::pair<Carry, int64_t>> const ways{{carried<None>, 1}, {carried<Ddp<>>, 2}, {carried<Ddp<>>, 3}, {carried<Fsdp<>>, 1}, {carried<Fsdp<>>, 2}, {carried<Fsdp<>>, 3}, {carried<Fsdp<>>, 4}};
    Folder folder;
    int64_t same = 0, pairs = 0;
    for (size_t i = 0; i < ways.size(); ++i) {
        auto const saved = folder / acc::concat("saved", i);
        ways[i].first(ways[i].second, {}, 3, saved);
        auto const expected = carried<None>(1, saved, 0, {});
        for (size_t j = 0; j < ways.size(); ++j) {
            auto const through = folder / acc::concat("through", i, "_", j);
            ways[j].first(ways[j].second, saved, 0, through);
            same += equal(carried<None>(1, through, 0, {}), expected);
            ++pairs;
        }
    }
    WARN(pairs << " pairs of shardings and worlds, " << same << " equal");
    CHECK(same == pairs);
}

TEST_CASE("what is no whole checkpoint is refused by name, and the one before it is taken", "[checkpoint][manifest][file_hash][together][inspect]") {
    Folder folder;
    auto const with = [&](auto&& f, int64_t ranks = 1, acc::accelerator_options options = {}) {
        options.project_dir = folder.path;
        acc::debug_launcher(ranks, [&](acc::comm::Threads comm) {
            Run<Fp32, Ddp<>> accelerator(options, comm);
            auto model = accelerator.prepare(accelerator.template make<Net>());
            f(accelerator, model);
        });
    };
    with([](auto& accelerator, auto&) {
        CHECK_FALSE(accelerator.resume());
        for (int i = 0; i < 3; ++i) CHECK(accelerator.save_state().filename() == acc::concat("checkpoint_", i));
    });
    auto const newest = folder / "checkpoints/checkpoint_2";
    auto const file = newest / "rank-00000.safetensors", manifest = newest / "manifest.json";
    CHECK((fs::status(newest).permissions() & fs::perms::all) == fs::perms::owner_all);
    CHECK((fs::status(file).permissions() & fs::perms::all) == (fs::perms::owner_read | fs::perms::owner_write));
    CHECK(std::distance(fs::directory_iterator(folder / "checkpoints"), fs::directory_iterator()) == 3);  // nothing hidden is left
    auto const read = [](fs::path const& path) {
        std::ifstream in(path, std::ios::binary);
        return std::string(std::istreambuf_iterator<char>(in), {});
    };
    auto const bytes = read(file), text = read(manifest);
    auto const loading = [&] {
        std::string error = "nothing was thrown";
        with([&](auto& accelerator, auto&) { error = error_of([&] { accelerator.load_state(newest); }); });
        return error;
    };
    auto const put = [](fs::path const& path, std::string const& content) { std::ofstream(path, std::ios::binary) << content; };
    CHECK(loading() == "nothing was thrown");
    acc::verify(newest);
    auto const info = acc::inspect(newest);
    CHECK((info.world == 1 && info.bytes == static_cast<int64_t>(bytes.size()) && info.tensors == 8 && info.elements == 3 * 16 + 16 + 16 * 16 + 16 + 16 * 2 + 2 + 16 + 16));
    CHECK(has(info.describe(), {"model", "model_buffers", "random", "sharding Ddp"}));

    // One flipped bit anywhere in the data, a byte less, a byte more.
    for (size_t i = 0; i < 40; ++i) {
        auto flipped = bytes;
        flipped[(i * 7919 + 11) % flipped.size()] ^= static_cast<char>(1 << (i % 8));
        put(file, flipped);
        CHECK(has(loading(), {"E_CK_HASH", "rank-00000.safetensors"}));
        if (i == 0) CHECK(code_of([&] { acc::verify(newest); }) == acc::code::ck_hash);
    }
    put(file, bytes.substr(0, bytes.size() - 1));
    CHECK(has(loading(), {"E_CK_FILE_SET", "rank-00000.safetensors"}));
    fs::remove(file);
    CHECK(has(loading(), {"E_CK_FILE_SET", "lacks"}));
    put(file, bytes);
    put(newest / "more", "");
    CHECK(has(loading(), {"E_CK_FILE_SET", "\"more\""}));
    fs::remove(newest / "more");

    // The manifest cut at every byte, and what it may not say.
    int64_t other = 0;
    for (size_t n = 0; n < text.size() - 2; n += 7) {
        try {
            acc::state::Manifest::parse(text.substr(0, n), "m");
            ++other;
        } catch (acc::Error const& e) {
            other += e.code() != acc::code::ck_bad_manifest;
        }
    }
    CHECK(other == 0);
    auto const edited = [&](auto&& edit) {
        auto j = nlohmann::json::parse(text);
        edit(j);
        return error_of([&] { acc::state::Manifest::parse(j.dump(), "manifest.json"); });
    };
    for (auto version : {nlohmann::json(0), nlohmann::json(2), nlohmann::json(2147483648), nlohmann::json("1")}) CHECK(has(edited([&](auto& j) { j["version"] = version; }), {"E_CK_VERSION"}));
    for (auto world : {nlohmann::json(0), nlohmann::json(-1), nlohmann::json(1000000000), nlohmann::json(2), nlohmann::json("1")}) CHECK(has(edited([&](auto& j) { j["world"] = world; }), {"E_CK_MESH"}));
    for (auto hash : {"", "xxh3-128:12", "sha999:00", "xxh3-128:0123456789ABCDEF0123456789ABCDEF"}) CHECK(has(edited([&](auto& j) { j["files"][0]["hash"] = hash; }), {"E_CK_BAD_MANIFEST", "hash"}));
    for (auto name : {"../x", "/etc/passwd", "a/b", ".hidden", ""}) CHECK(has(edited([&](auto& j) { j["files"][0]["name"] = name; }), {"E_CK_BAD_MANIFEST", "named"}));
    for (auto parts : {nlohmann::json::array(), nlohmann::json{{0, 0, 7}}, nlohmann::json{{0, 1, 48}}, nlohmann::json{{0, 0, 30}, {0, 20, 48}}, nlohmann::json{{0, 0, 30}, {0, 31, 48}}, nlohmann::json{{0, 0, 49}}})
        CHECK(has(edited([&](auto& j) { j["tensors"]["model/a.weight"]["parts"] = parts; }), {"E_CK_SLICES", "model/a.weight"}));
    CHECK(has(edited([](auto& j) { j["tensors"]["model/a.weight"]["parts"] = {{1, 0, 48}}; }), {"E_CK_BAD_MANIFEST"}));
    CHECK(has(edited([](auto& j) { j["tensors"]["model/a.weight"]["dtype"] = "F99"; }), {"E_CK_BAD_MANIFEST", "dtype"}));
    CHECK(has(edited([](auto& j) { j["tensors"]["model/a.weight"]["shape"] = {int64_t{1} << 40, int64_t{1} << 40}; }), {"E_CK_BAD_MANIFEST"}));
    CHECK(has(edited([](auto& j) { j.erase("values"); }), {"E_CK_BAD_MANIFEST", "values"}));

    // The newest that is whole is taken; where none is, that is an error.
    put(file, bytes.substr(1) + "x");
    fs::create_directories(folder / "checkpoints/checkpoint_7");  // a killed save of somebody else's
    fs::create_directories(folder / "checkpoints/checkpoint_08");
    with([&](auto& accelerator, auto& model) {
        auto const before = model->a->weight.detach().clone();
        CHECK(accelerator.resume());
        CHECK(torch::equal(model->a->weight, before));
        CHECK(accelerator.save_state().filename() == "checkpoint_8");
    });
    for (auto const& [number, dir] : acc::detail::numbered_checkpoints(folder / "checkpoints")) fs::remove(dir / "manifest.json");
    with([](auto& accelerator, auto&) { CHECK(has(error_of([&] { accelerator.resume(); }), {"E_CK_INCOMPLETE", "none of the"})); });

    // A loader that is gone is not saved, and its name is free.
    with([&](auto& accelerator, auto&) {
        { auto const once = accelerator.prepare(acc::data::Loader{Samples(), {.batch_size = 2}}); }
        auto const kept = accelerator.prepare(acc::data::Loader{Samples(), {.batch_size = 2}});
        accelerator.save_state(folder / "loaders");
    });
    auto const own = acc::state::CheckpointReader(folder / "loaders").manifest().ranks.at(0);
    CHECK((own.contains("loader") && !own.contains("loader_1")));

    // On every rank the same error; a taken name; other names; total_limit.
    fs::remove_all(folder / "checkpoints");
    std::atomic<int64_t> right = 0;
    with([&](auto& accelerator, auto&) {
        accelerator.save_state(folder / "one");
        right += code_of([&] { accelerator.save_state(folder / "one"); }) == acc::code::exists;
        right += code_of([&] { accelerator.load_state(folder / "none"); }) == acc::code::io;
        for (int i = 0; i < 4; ++i) accelerator.save_state();
    }, 2, {.total_limit = 2});
    CHECK(right == 4);
    auto const left = acc::detail::numbered_checkpoints(folder / "checkpoints");
    REQUIRE(left.size() == 2);
    CHECK((left[0].first == 3 && left[1].first == 2));
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Ddp<>> accelerator({}, comm);
        auto model = accelerator.prepare(std::make_shared<torch::nn::LinearImpl>(3, 2));
        right += code_of([&] { accelerator.load_state(folder / "one"); }) == acc::code::ck_keys;
        Run<Fp32, Fsdp<>> turned({}, comm);  // as many numbers in another shape
        auto const transposed = turned.prepare(turned.template make<Turned>());
        right += has(error_of([&] { turned.load_state(folder / "one"); }), {"E_CK_KEYS", "model/a.", "shape"});
    });
    CHECK(right == 8);
    Run<Fp32, Ddp<>> without({}, acc::comm::Threads::world());
    CHECK(has(error_of([&] { without.save_state(); }), {"E_CONFIG", "project_dir"}));
}
