// Checkpoints as folders: under another sharding and number of ranks, what they may not be, asynchronous ones. Ranks are threads.
#include <torch/torch.h>

#include "support/stderr.hpp"
#include "support/story.hpp"

#include <atomic>
#include <chrono>
#include <fstream>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace acc = accelerate;
namespace fs = std::filesystem;
using namespace told;

namespace {

template <class S = acc::Plain>
struct Turned : torch::nn::Module {
    Turned() : a(this, "a", 16, 3), b(this, "b", 16, 16), c(this, "c", 2, 16) {}
    acc::Linear<S> a, b, c;
    torch::nn::BatchNorm1d norm{register_module("norm", torch::nn::BatchNorm1d(16))};
};

std::string read_text(fs::path const& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

/// "optimizer" of "/values/optimizer/kind".
std::string state_name(std::string const& pointer) {
    auto parts = pointer.substr(pointer.starts_with("/ranks") ? 9 : 8);
    return parts.substr(0, parts.find('/'));
}

using namespace acc::precision;
using namespace acc::sharding;

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

TEST_CASE("a checkpoint loads under another sharding and number of ranks, bit for bit", "[checkpoint_reader][manifest]") {
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

TEST_CASE("what is no whole checkpoint is refused by name, and the one before it is taken", "[checkpoint_reader][manifest][file_hash][together][inspect]") {
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
    CHECK(std::distance(fs::directory_iterator(folder / "checkpoints"), fs::directory_iterator()) == 4);  // with `latest`; nothing hidden is left
    auto const bytes = read_text(file), text = read_text(manifest);
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
    // A link is not followed, whatever it leads to.
    put(folder / "elsewhere", bytes);
    fs::create_symlink(folder / "elsewhere", file);
    CHECK(has(loading(), {"E_CK_FILE_SET", "lacks", "symbolic link"}));
    fs::remove(file);
    put(file, bytes);
    fs::rename(manifest, folder / "elsewhere");
    fs::create_symlink(folder / "elsewhere", manifest);
    CHECK(has(loading(), {"E_SYMLINK", "manifest.json"}));
    fs::remove(manifest);
    put(manifest, text);
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

namespace {

/// All that a checkpoint would hold now.
Snapshot everything(std::vector<acc::state::Component> const& components) {
    Snapshot s;
    for (auto const& c : components) {
        auto const state = c.save();
        for (auto const& [name, t] : state.tensors) s.tensors.insert(c.name + "/" + name, t.clone());
        s.values += c.name + state.values.dump();
    }
    return s;
}

/// The error of loading a folder, which must have changed nothing.
std::string refusal(auto& accelerator, fs::path const& dir) {
    std::vector<acc::state::Component> components;
    Snapshot before;
    auto handle = accelerator.register_load_state_pre_hook([&](auto& all, fs::path const&) { components = all, before = everything(all); });
    auto const error = error_of([&] { accelerator.load_state(dir); });
    CHECK((components.empty() || everything(components) == before));
    return error;
}

}  // namespace

TEST_CASE("a state that cannot be is refused with its own code", "[window_state][components][component][manifest][checkpoint_hooks][state_dict]") {
    Folder folder;
    using Half = Run<Fp16<>, Ddp<>>;
    auto const run = [](auto&& f, double scale = 1024) {
        Half accelerator({.gradient_accumulation_steps = 3, .grad_scaler = {.init_scale = scale}}, acc::comm::Threads::world());
        auto prepared = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = 0.01}, acc::data::Loader{Samples(), {.batch_size = 2}}, acc::schedule::Cosine{.total = acc::OptimizerSteps{30}});
        auto& [model, optimizer, loader, schedule] = prepared;
        int64_t body = 0;
        for (auto& batch : loader) {
            auto opened = accelerator.accumulate(model);
            accelerator.backward(torch::mse_loss(model(batch.first).to(at::kFloat), batch.second));
            optimizer.step(), schedule.step(), optimizer.zero_grad();
            if (++body == 4) break;
        }
        f(accelerator, prepared);
    };
    auto const dir = folder / "saved";
    run([&](auto& accelerator, auto&) { accelerator.save_state(dir); });
    auto const text = read_text(dir / "manifest.json");
    struct Row {
        int row;
        std::string pointer, json, code;
    };
    std::vector<Row> const rows{
        {85, "/values/model", "[1]", "E_CK_BAD_MANIFEST"}, {85, "/ranks/0/progress", "7", "E_CK_BAD_MANIFEST"},
        {92, "/ranks/0/progress/steps", "-1", "E_CK_KEYS"}, {92, "/ranks/0/progress/skipped_in_a_row", "-1", "E_CK_KEYS"},
        {94, "/values/optimizer/kind", "\"sgd\"", "E_CK_OPTIM"}, {94, "/values/optimizer/kind", "7", "E_CK_OPTIM"}, {93, "/values/optimizer/steps", "-1", "E_CK_OPTIM"}, {93, "/values/optimizer/steps", "1.5", "E_CK_OPTIM"},
        {93, "/values/optimizer/steps", "9223372036854775808", "E_CK_OPTIM"}, {93, "/values/optimizer/lr", "null", "E_CK_OPTIM"}, {93, "/values/optimizer/lr", "-0.1", "E_CK_OPTIM"}, {93, "/values/optimizer/lr", "true", "E_CK_OPTIM"},
        {94, "/values/optimizer/parameter_groups", "1", "E_CK_OPTIM"},
        {96, "/values/scaler/scale", "0", "E_CK_SCALER"}, {96, "/values/scaler/scale", "-1024.0", "E_CK_SCALER"}, {96, "/values/scaler/scale", "1e300", "E_CK_SCALER"}, {96, "/values/scaler/scale", "null", "E_CK_SCALER"},
        {96, "/values/scaler/_growth_tracker", "-1", "E_CK_SCALER"}, {96, "/values/scaler/_growth_tracker", "18446744073709551615", "E_CK_SCALER"}, {96, "/values/scaler/hysteresis", "0", "E_CK_SCALER"},
        {98, "/ranks/0/loader/consumed", "47", "E_CK_LOADER"}, {98, "/ranks/0/loader/consumed", "-1", "E_CK_LOADER"}, {98, "/ranks/0/loader/epoch", "-1", "E_CK_LOADER"}, {98, "/ranks/0/loader/size", "45", "E_CK_LOADER"},
        {98, "/ranks/0/loader/seed", "\"x\"", "E_CK_LOADER"}, {98, "/ranks/0/loader/consumed", "1e30", "E_CK_LOADER"},
        {99, "/ranks/0/model_window/position", "-1", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/stage", "99", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/ranks", "2", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/micro_batches", "3", "E_CK_ACCUM"},
        {99, "/ranks/0/model_window/weight", "null", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/gradients", "1", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/loss_scale", "-1.0", "E_CK_ACCUM"},
        {99, "/ranks/0/model_window/weighted", "-1", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/losses", "-1", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/losses", "\"1\"", "E_CK_ACCUM"}, {99, "/ranks/0/model_window/finished", "0", "E_CK_ACCUM"},
        {100, "/values/scheduler/position", "-1", "E_CK_SCHED"}, {100, "/values/scheduler/position", "9223372036854775808", "E_CK_SCHED"}, {100, "/values/scheduler/base_lr", "null", "E_CK_SCHED"}, {100, "/values/scheduler/base_lr", "-1", "E_CK_SCHED"},
        {100, "/values/scheduler/kind", "\"linear\"", "E_CK_SCHED"}};
    for (auto const& [row, pointer, json, code] : rows) {
        INFO("row " << row << ": " << pointer << " is " << json);
        auto j = nlohmann::json::parse(text);
        j.at(nlohmann::json::json_pointer(pointer)) = nlohmann::json::parse(json);
        std::ofstream(dir / "manifest.json") << j.dump();
        std::string error;
        run([&](auto& accelerator, auto&) { error = refusal(accelerator, dir); });
        CHECK(has(error, {code, state_name(pointer)}));
    }
    auto const parsed = [&](auto&& edit) {
        auto j = nlohmann::json::parse(text);
        edit(j);
        return error_of([&] { acc::state::Manifest::parse(j.dump(), "manifest.json"); });
    };
    auto const second = [](auto& j) {
        j["world"] = 2, j["files"].push_back(j["files"][0]), j["files"][1]["name"] = "rank-00001.safetensors", j["ranks"].push_back(j["ranks"][0]);
    };
    CHECK(parsed(second) == "nothing was thrown");
    CHECK(has(parsed([&](auto& j) { second(j), j["ranks"][1]["progress"]["steps"] = 2; }), {"E_CK_MIXED", "rank 1"}));
    CHECK(has(parsed([&](auto& j) { second(j), j["files"][1]["name"] = j["files"][0]["name"]; }), {"E_CK_BAD_MANIFEST", "another"}));
    CHECK(has(parsed([](auto& j) { j["ranks"][0] = 7; }), {"E_CK_BAD_MANIFEST"}));
    for (auto strides : {nlohmann::json{1, 1}, nlohmann::json{4, 1}, nlohmann::json{3}, nlohmann::json{int64_t{1} << 62, 1}}) CHECK(has(parsed([&](auto& j) { j["tensors"]["model/a.weight"].update({{"whole", false}, {"strides", strides}}); }), {"E_CK_SLICES", "strides"}));
    CHECK(parsed([](auto& j) { j["tensors"]["model/a.weight"].update({{"whole", false}, {"strides", {1, 16}}}); }) == "nothing was thrown");
    auto const raw = [](std::string const& changed) { return error_of([&] { acc::state::Manifest::parse(changed, "manifest.json"); }); };
    CHECK(has(raw("{\"version\":1," + text.substr(1)), {"E_CK_BAD_MANIFEST", "\"version\" appears twice"}));
    CHECK(has(raw("{\"x\":" + std::string(100'000, '[') + std::string(100'000, ']') + "," + text.substr(1)), {"E_CK_BAD_MANIFEST", "nested"}));
    CHECK(has(raw("\xFF" + text), {"E_CK_BAD_MANIFEST", "UTF-8"}));
    CHECK(has(raw(text + "x"), {"E_CK_BAD_MANIFEST"}));

    // What a hook changes in a state while it is saved, rows 93, 95, 97 and 101; the hook is gone afterwards.
    std::ofstream(dir / "manifest.json") << text;
    int64_t written = 0;
    auto const changed = [&](std::string const& component, auto change) {
        auto const other = folder / acc::concat("changed_", ++written);
        std::string error;
        run([&](auto& accelerator, auto&) {
            auto handle = accelerator.register_save_state_pre_hook([&](std::vector<acc::state::Component>& components, fs::path const& to) {
                CHECK(to == other);
                for (auto& c : components)
                    if (c.name == component) c.save = [save = c.save, change] {
                        auto state = save();
                        change(state);
                        return state;
                    };
            });
            accelerator.save_state(other);
            handle.remove();
            fs::remove_all(folder / "unchanged");
            accelerator.save_state(folder / "unchanged");
            accelerator.load_state(folder / "unchanged");
            error = refusal(accelerator, other);
        });
        return error;
    };
    using State = acc::StateDict;
    auto const without = [](State& s, std::string const& name) {
        acc::TensorMap kept;
        for (auto const& [key, t] : s.tensors)
            if (key != name) kept.insert(key, t);
        s.tensors = kept;
    };
    CHECK(has(changed("optimizer", [=](State& s) { without(s, "exp_avg.a.weight"); }), {"E_CK_OPTIM", "a.weight"}));
    CHECK(has(changed("optimizer", [](State& s) { s.tensors.insert("exp_avg.zzz", torch::ones({3})); }), {"E_CK_OPTIM", "zzz"}));
    CHECK(has(changed("optimizer", [](State& s) { s.tensors["exp_avg.a.weight"] = torch::ones({2}); }), {"E_CK_OPTIM", "a.weight"}));
    CHECK(has(changed("model", [](State& s) { s.tensors["a.weight"] = torch::ones({2}); }), {"E_CK_KEYS", "a.weight"}));
    CHECK(has(changed("random", [](State& s) { s.tensors["cpu"] = torch::ones({7}, torch::kByte); }), {"E_CK_RNG"}));
    CHECK(has(changed("random", [](State& s) { s.tensors["cpu"].zero_(); }), {"E_CK_RNG"}));
    CHECK(has(changed("model_window", [=](State& s) { without(s, "a.weight"); }), {"E_CK_KEYS", "model_window", "a.weight"}));

    // Another run: what is only here or only there is named, and left out where it is named.
    std::string error;
    Run<Fp32, Ddp<>> plain({}, acc::comm::Threads::world());
    auto other = plain.prepare(plain.make<Net>());
    error = error_of([&] { plain.load_state(dir); });
    CHECK(has(error, {"E_CK_PRECISION", "\"scaler\" is in the checkpoint, but not here", "\"optimizer\"", "\"scheduler\"", "\"loader\"", ".skip"}));
    CHECK(has(error_of([&] { plain.load_state(dir, {.skip = {"scaler", "optimizer", "loader"}}); }), {"E_CK_KEYS", "\"scheduler\""}));
    CHECK(has(error_of([&] { plain.load_state(dir, {.skip = {"scaler", "optimizer", "loader", "scheduler", "optimizr"}}); }), {"E_CK_KEYS", "\"optimizr\" to skip"}));
    plain.load_state(dir, {.skip = {"scaler", "optimizer", "loader", "scheduler", "model_window"}});
    Counter counter;
    plain.register_for_checkpointing(counter);
    CHECK(has(error_of([&] { plain.load_state(dir, {.skip = {"scaler", "optimizer", "loader", "scheduler", "model_window"}}); }), {"E_CK_KEYS", "\"custom_checkpoint_0\" is here"}));
    auto const weight = other->a->weight.detach().clone();
    run([&](auto& accelerator, auto& prepared) {
        accelerator.load_state(dir);
        CHECK(torch::equal(std::get<0>(prepared)->a->weight, weight));
    });
}

namespace {

struct Numbers {
    int64_t n = 24;
    size_t size() const { return static_cast<size_t>(n); }
    std::pair<torch::Tensor, torch::Tensor> operator[](size_t i) const { return Samples()[i]; }
};

/// A run that begins with an accelerator's options, a recipe, a loader and a schedule, and does four bodies of a window of three.
void begun(acc::accelerator_options options, auto recipe, acc::data::Loader<Numbers> loader_given, auto schedule_given, auto&& f) {
    Run<Fp32, None> accelerator(options, acc::comm::Threads::world());
    auto [model, optimizer, loader, schedule] = accelerator.prepare(std::make_shared<Net<>>(), recipe, std::move(loader_given), schedule_given);
    int64_t body = 0;
    for (auto& batch : loader) {
        auto opened = accelerator.accumulate(model);
        accelerator.backward(torch::mse_loss(model(batch.first), batch.second));
        optimizer.step(), schedule.step(), optimizer.zero_grad();
        if (++body == 4) break;
    }
    f(accelerator);
}

/// Objects of the user's: one that refuses what it gets, one that can say so before.
struct Refusing : Counter {
    void load_state_dict(acc::StateDict const&) { throw std::runtime_error("not this one"); }
};
struct Checking : Counter {
    void check_state_dict(acc::StateDict const&) const { throw std::runtime_error("not that one"); }
};
/// One that holds what it is given.
struct Holding {
    acc::StateDict held;
    acc::StateDict state_dict() const { return held; }
    void load_state_dict(acc::StateDict const& s) { held = s; }
};

}  // namespace

TEST_CASE("a checkpoint of another run changes nothing, whatever of it does not fit", "[checkpoints][model_components][component][prepared][indexed_source][scheduler]") {
    using acc::data::Loader;
    Folder folder;
    auto const dir = folder / "saved";
    acc::schedule::Cosine const cosine{.total = acc::OptimizerSteps{30}};
    auto const numbers = [](int64_t n, bool shuffle = false) { return Loader{Numbers{n}, {.batch_size = 2, .shuffle = shuffle}}; };
    acc::accelerator_options const three{.gradient_accumulation_steps = 3}, two{.gradient_accumulation_steps = 2};
    acc::optim::AdamW const adamw{.lr = 0.01};
    begun(three, adamw, numbers(24), cosine, [&](auto& accelerator) { accelerator.save_state(dir); });
    auto const into = [&](auto const& options, auto recipe, auto loader, auto schedule) {
        std::string error;
        begun(options, recipe, std::move(loader), schedule, [&](auto& accelerator) { error = refusal(accelerator, dir); });
        return error;
    };
    begun(three, adamw, numbers(24), cosine, [&](auto& accelerator) { accelerator.load_state(dir); });
    CHECK(has(into(three, acc::optim::Sgd{.lr = 0.01}, numbers(24), cosine), {"E_CK_OPTIM", "saved by AdamW"}));
    CHECK(has(into(three, acc::optim::Lion{}, numbers(24), cosine), {"E_CK_OPTIM", "saved by AdamW"}));
    CHECK(has(into(three, adamw, numbers(26), cosine), {"E_CK_LOADER", "26 samples", "24"}));
    CHECK(has(into(three, adamw, numbers(24, true), cosine), {"E_CK_LOADER", "shuffled", "sequential"}));
    CHECK(has(into(three, adamw, numbers(24), acc::schedule::Linear{.total = acc::OptimizerSteps{30}}), {"E_CK_SCHED", "Cosine"}));
    CHECK(has(into(two, adamw, numbers(24), cosine), {"E_CK_ACCUM", "gradient_accumulation_steps 3"}));

    // Objects of the user's, which alone can say whether a state is theirs, come before all else.
    auto const registered = [&](auto object, fs::path const& from, bool saves) {
        std::string error;
        begun(three, adamw, numbers(24), cosine, [&](auto& accelerator) {
            accelerator.register_for_checkpointing(object);
            if (saves) accelerator.save_state(from);
            else error = refusal(accelerator, from);
        });
        return error;
    };
    registered(Counter(), folder / "registered", true);
    CHECK(has(registered(Refusing(), folder / "registered", false), {"not this one"}));
    CHECK(has(registered(Checking(), folder / "registered", false), {"not that one"}));

    CHECK(has(error_of([] { Run<Fp32, None>({.total_limit = -1}, acc::comm::Threads::world()); }), {"E_CONFIG", "total_limit", "-1"}));
}

TEST_CASE("ranks that save or load unlike each other are told what differs", "[together][state_control]") {
    Folder folder;
    std::mutex mutex;
    std::vector<std::string> errors;
    auto const unlike = [&](auto&& f) {
        errors.clear();
        acc::debug_launcher(2, [&](acc::comm::Threads comm) {
            Run<Fp32, Ddp<>> accelerator({.timeout_s = 60}, comm);
            Counter counter;
            auto model = accelerator.prepare(accelerator.template make<Net>());
            auto const error = error_of([&] { f(accelerator, counter, comm.rank() == 0); });
            std::lock_guard const lock(mutex);
            errors.push_back(error);
        });
        CHECK(errors[0] == errors[1]);
        return errors[0];
    };
    auto const dir = folder / "saved";
    CHECK(unlike([&](auto& a, auto&, bool) { a.save_state(dir); }) == "nothing was thrown");
    auto const other = folder / "other";
    CHECK(has(unlike([&](auto& a, auto&, bool first) { a.save_state(other, {.asynchronous = first}); }), {"E_COLLECTIVE_MISMATCH", "save_state", "rank 0 has an asynchronous save", "rank 1 has a save that waits"}));
    CHECK(has(unlike([&](auto& a, auto&, bool first) { a.save_state(other, {.hash = first ? acc::Hash::Xxh3 : acc::Hash::Sha256}); }), {"E_COLLECTIVE_MISMATCH", "XXH3", "SHA-256"}));
    CHECK(has(unlike([&](auto& a, auto& counter, bool first) {
                  if (!first) a.register_for_checkpointing(counter);
                  a.save_state(other);
              }),
              {"E_COLLECTIVE_MISMATCH", "rank 1 has \"custom_checkpoint_0\""}));
    CHECK(has(unlike([&](auto& a, auto&, bool first) { a.load_state(dir, {.verify = first}); }), {"E_COLLECTIVE_MISMATCH", "load_state", "hashes"}));
    CHECK(has(unlike([&](auto& a, auto&, bool first) { a.load_state(dir, {.skip = first ? std::vector<std::string>{"model"} : std::vector<std::string>()}); }), {"E_COLLECTIVE_MISMATCH", "\"model\" to skip"}));

    // One that throws before it has begun: the other hears of it, and takes back what it has made.
    errors.clear();
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Ddp<>> accelerator({.timeout_s = 60}, comm);
        if (comm.rank() == 1) accelerator.register_save_state_pre_hook([](auto&, fs::path const&) { throw std::runtime_error("no"); });
        auto const error = error_of([&] { accelerator.save_state(other); });
        std::lock_guard const lock(mutex);
        errors.push_back(error);
    });
    CHECK((errors[0] == "no" || has(errors[0], {"E_PEER_LOST", "rank 1"})));
    for (auto const& entry : fs::directory_iterator(folder.path)) CHECK(entry.path() == dir);
}

TEST_CASE("values that JSON lacks come back, and what would not is refused by name", "[json_values][state_dict]") {
    Folder folder;
    int64_t saves = 0;
    auto const through = [&](auto fill) {
        Run<Fp32, None> accelerator({}, acc::comm::Threads::world());
        Holding object;
        fill(object.held);
        accelerator.register_for_checkpointing(object);
        auto const dir = folder / acc::concat("held", saves++, "/");  // with the stroke that people write behind folders
        accelerator.save_state(dir);
        object.held = {};
        accelerator.load_state(dir);
        return object.held;
    };
    auto const infinity = std::numeric_limits<double>::infinity();
    auto const back = through([&](acc::StateDict& s) {
        s.values = {{"best", infinity}, {"worst", {{"list", {1.5, -infinity, nullptr}}}}, {"none", std::nan("")}, {"word", "inf"}, {"slices", 7}, {"large", std::numeric_limits<uint64_t>::max()}};
        s.tensors.insert("weights", torch::ones({2}));
    }).values;
    CHECK(back["best"] == infinity);
    CHECK(back["worst"]["list"] == nlohmann::json({1.5, -infinity, nullptr}));
    CHECK(std::isnan(back["none"].get<double>()));
    CHECK((back["word"] == "inf" && back["slices"] == 7 && back["large"] == std::numeric_limits<uint64_t>::max() && back.size() == 6));

    auto const refused = [&](auto fill) {
        auto const error = error_of([&] { through(fill); });
        CHECK(fs::directory_iterator(folder / acc::concat("held", 0)) != fs::directory_iterator());
        for (auto const& entry : fs::directory_iterator(folder.path)) CHECK(entry.path().filename() == "held0");  // nothing is left of the others
        return error;
    };
    CHECK(has(refused([](auto& s) { s.values["name"] = "\xff"; }), {"E_CONFIG", "custom_checkpoint_0", "\"name\"", "UTF-8"}));
    CHECK(has(refused([](auto& s) { s.values["\xff"] = 1; }), {"E_CONFIG", "UTF-8"}));
    CHECK(has(refused([](auto& s) { s.values["raw"] = nlohmann::json::binary({1, 2}); }), {"E_CONFIG", "\"raw\"", "binary", "tensor"}));
    CHECK(has(refused([](auto& s) { s.values = nlohmann::json::array({1}); }), {"E_CONFIG", "object", "array"}));
    CHECK(has(refused([](auto& s) { s.values["a"]["__float__"] = 1; }), {"E_CONFIG", "__float__"}));
    CHECK(has(refused([](auto& s) { s.tensors.insert("t", torch::Tensor()); }), {"E_ST_BAD_TENSOR", "custom_checkpoint_0/t", "undefined"}));
    CHECK(has(refused([](auto& s) { s.tensors.insert("t", torch::ones({2}, torch::kComplexDouble)); }), {"E_ST_UNSUPPORTED_DTYPE", "custom_checkpoint_0/t"}));
    CHECK(has(refused([](auto& s) { s.tensors.insert("t", torch::eye(2).to_sparse()); }), {"E_ST_BAD_TENSOR", "sparse"}));

    Run<Fp32, None> accelerator({}, acc::comm::Threads::world());
    CHECK(has(error_of([&] { accelerator.save_state(fs::path()); }), {"E_CONFIG", "empty"}));
    CHECK(has(error_of([&] { accelerator.save_state(folder / std::string(300, 'x')); }), {"E_IO", "xxx"}));
}

namespace {

/// The same model under other names.
template <class S = acc::Plain>
struct Renamed : torch::nn::Module {
    Renamed() : first(this, "first", 3, 16), b(this, "b", 16, 16), c(this, "c", 16, 2) {}
    torch::Tensor forward(torch::Tensor const& x) { return c(torch::tanh(b(norm(torch::tanh(first(x)))))); }
    acc::Linear<S> first, b, c;
    torch::nn::BatchNorm1d norm{register_module("normalised", torch::nn::BatchNorm1d(16))};
};

}  // namespace

TEST_CASE("what has changed around a run is named when it goes on", "[environment]") {
    Folder folder;
    auto const with = [&](int64_t ranks, auto&& f) {
        acc::debug_launcher(ranks, [&](acc::comm::Threads comm) {
            Run<Fp32, Ddp<>> accelerator({}, comm);
            auto model = accelerator.prepare(accelerator.template make<Net>());
            f(accelerator);
        });
    };
    auto const dir = folder / "c", manifest = dir / "manifest.json";
    with(2, [&](auto& accelerator) { accelerator.save_state(dir); });
    auto const loaded = [&](int64_t ranks = 2) { return stderr_of([&] { with(ranks, [&](auto& accelerator) { accelerator.load_state(dir); }); }); };
    auto const saved = nlohmann::json::parse(read_text(manifest));
    auto const& environment = saved["about"]["environment"];
    CHECK((environment["ranks"] == 2 && environment["threads"] == at::get_num_threads() && environment["isa"] == at::get_cpu_capability() && environment["torch"] == TORCH_VERSION &&
           environment["summation"] == "rank order"));
    auto const warned = [](std::string const& text) { return text.find("W_ENV_CHANGED") != text.npos; };
    CHECK_FALSE(warned(loaded()));
    CHECK(has(loaded(1), {"W_ENV_CHANGED", "ranks was 2 and is 1"}));
    for (auto const& [field, value] : environment.items()) {
        auto changed = saved;
        changed["about"]["environment"][field] = value.is_string() ? nlohmann::json("other") : nlohmann::json(99);
        std::ofstream(manifest) << changed.dump();
        auto const text = loaded();
        CHECK(has(text, {"W_ENV_CHANGED", field + " was "}));
        CHECK((std::ranges::count(text, '\n') == 1 && text.find(", ") == text.rfind(", ")));  // of this one alone, once for all ranks
    }
    for (auto const& strange : {nlohmann::json(), nlohmann::json("x"), nlohmann::json::array({1}), nlohmann::json{{"isa", {{"a", "b"}}}}}) {
        auto changed = saved;
        changed["about"]["environment"] = strange;
        std::ofstream(manifest) << changed.dump();
        CHECK(warned(loaded()) == strange.is_object());
    }
}

namespace {

/// A state comes back into the memory where it was, and nothing that was made of the values before is used again.
template <class Precision>
void comes_back_into_place() {
    INFO(Precision::name);
    Folder folder;
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Precision, None, acc::loader::Stateful<>> accelerator;
    auto prepared = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = 0.05});
    auto& model = std::get<0>(prepared);  // bindings cannot be captured by every compiler
    auto& optimizer = std::get<1>(prepared);
    auto const x = torch::randn({8, 3});
    auto const step = [&] {
        for (int i = 0; i < 3; ++i) {
            auto const scope = accelerator.accumulate(model);
            accelerator.backward(model(x).square().mean());
            optimizer.step(), optimizer.zero_grad();
        }
    };
    auto const forward = [&] {
        torch::NoGradGuard const no_grad;
        model->eval();
        auto const y = model(x);
        model->train();
        return y;
    };
    auto const copies = [&] {
        acc::TensorMap all(optimizer.state_dict().tensors);
        for (auto const& p : model->named_parameters()) all.insert(p.key(), p.value().detach().clone());
        return all;
    };
    step();
    accelerator.save_state(folder / "c");
    auto const before = copies();
    auto const y = forward();
    auto const places = [&] {
        std::vector<void const*> all;
        for (auto const& p : model->parameters()) all.push_back(p.const_data_ptr());
        for (auto const& [name, t] : optimizer.live_state().tensors) all.push_back(t.const_data_ptr());
        return all;
    };
    auto const were = places();
    step();
    CHECK_FALSE(torch::equal(forward(), y));
    accelerator.load_state(folder / "c");
    CHECK(places() == were);
    CHECK(torch::equal(forward(), y));
    auto const after = copies();
    CHECK(after.size() == before.size());
    for (auto const& [name, t] : before) CHECK(torch::equal(after.at(name), t));

    // What cannot be had of the optimizer is found before anything is read into the model.
    auto const manifest = folder / "c/manifest.json";
    auto wrong = nlohmann::json::parse(read_text(manifest));
    wrong["tensors"]["optimizer/exp_avg.a.weight"]["dtype"] = "F64";
    std::ofstream(manifest) << wrong.dump();
    step();
    auto const now = copies();
    CHECK(has(error_of([&] { accelerator.load_state(folder / "c"); }), {"E_CK_SLICES", "exp_avg.a.weight"}));
    auto const unchanged = copies();
    for (auto const& [name, t] : now) CHECK(torch::equal(unchanged.at(name), t));
    wrong["tensors"]["optimizer/exp_avg.a.weight"]["dtype"] = "F32";
    std::ofstream(manifest) << wrong.dump();

    // Of another shape, one tensor alone: nothing is read into place.
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Precision, None, acc::loader::Stateful<>> other;
    auto [wider, other_optimizer] = other.prepare(other.template make<Net>(), acc::optim::AdamW{.lr = 0.05});
    wider->c->bias.set_data(torch::zeros({3}));
    auto const first = wider->a->weight.detach().clone();
    CHECK(has(error_of([&] { other.load_state(folder / "c"); }), {"E_CK_KEYS", "c.bias"}));
    CHECK(torch::equal(wider->a->weight, first));
}

}  // namespace

TEST_CASE("a state is read into the memory that holds it", "[same_memory][checkpoint_reader][component]") {
    comes_back_into_place<Fp32>();
    comes_back_into_place<Bf16<>>();
}

TEST_CASE("one process that is asked to stop saves in the middle of an evaluation, or of an accumulation", "[state_control]") {
    using Alone = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Fp32, None, acc::loader::Stateful<>>;
    for (bool const evaluating : {true, false}) {
        Folder folder;
        auto const begin = [&] { return Alone({.gradient_accumulation_steps = 4, .project_dir = folder.path}); };
        int64_t seen = 0;
        auto const body = [&](auto& accelerator, auto& model, auto& optimizer, auto const& batch) {
            auto const loss = [&] { return (model(batch.first) - batch.second).square().mean(); };
            if (evaluating) {
                torch::NoGradGuard const no_grad;
                loss();
            } else {
                auto const scope = accelerator.accumulate(model);
                accelerator.backward(loss());
                optimizer.step(), optimizer.zero_grad();
            }
            if (++seen == 2) ::raise(SIGUSR1);  // no step has been made; SIGTERM is the test framework's
        };
        auto const child = ::fork();  // who has been asked to stop stays asked
        if (child == 0) {
            auto accelerator = begin();
            auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Net<>>(), acc::optim::Sgd{.lr = 0.1}, acc::data::Loader{Samples(), {.batch_size = 4}});
            auto const text = error_of([&, &m = model, &o = optimizer, &l = loader] {
                for (auto const& batch : l) body(accelerator, m, o, batch);
            });
            bool const fine = text.find("E_REQUEUE") == 0 && text.find(acc::concat("signal ", SIGUSR1)) != text.npos && text.find("checkpoint_0") != text.npos;
            ::_exit(fine && seen == 2 ? 0 : 1);
        }
        int status = 0;
        REQUIRE((::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0));
        seen = 2;
        auto accelerator = begin();
        auto [model, optimizer, loader] = accelerator.prepare(std::make_shared<Net<>>(), acc::optim::Sgd{.lr = 0.1}, acc::data::Loader{Samples(), {.batch_size = 4}});
        REQUIRE(accelerator.resume());
        CHECK(loader.consumed() == 8);
        for (auto const& batch : loader) body(accelerator, model, optimizer, batch);
        CHECK(seen == 12);
    }
}

namespace {

/// Where one of two ranks is asked to stop: in an evaluation behind an epoch, in one behind or before a training body's step, in a body that
/// only begins a window.
enum class Asked { BehindEpoch, BehindStep, BeforeStep, InWindow };

struct Ended {
    std::string error;
    int64_t steps = 0, epoch = 0, consumed = 0, evaluated = 0;
    acc::TensorMap state;
};

/// One rank of a run of 14 steps, which goes on from what is in `dir`; `asks`: it is asked to stop at the first such place.
Ended stopped(acc::comm::Threads comm, fs::path const& dir, Asked where, bool asks) {
    Run<Fp32, Ddp<>> accelerator({.gradient_accumulation_steps = where == Asked::InWindow ? 4 : 1, .project_dir = dir}, comm);
    auto [model, optimizer, train, test] = accelerator.prepare(accelerator.make<Net>(), acc::optim::AdamW{.lr = 0.01}, acc::data::Loader{Samples(), {.batch_size = 2}}, acc::data::Loader{Samples(), {.batch_size = 4}});
    accelerator.resume();
    Ended end;
    auto const ask = [&] {
        if (std::exchange(asks, false)) ::raise(SIGUSR1);
    };
    auto const evaluate = [&, &m = model, &held_out = test] {
        torch::NoGradGuard const no_grad;
        m->eval();
        for (auto const& batch : held_out) {
            accelerator.gather_for_metrics(m(batch.first));
            if (++end.evaluated == 2) ask();
        }
        m->train();
    };
    end.error = error_of([&, &m = model, &o = optimizer, &l = train] {
        while (o.steps() < 14) {
            for (auto const& batch : l) {
                if (where == Asked::BeforeStep && o.steps() == 1) evaluate();
                {
                    auto const scope = accelerator.accumulate(m);
                    auto const loss = torch::mse_loss(m(batch.first), batch.second);
                    accelerator.backward(loss);
                    accelerator.reduce(loss.detach(), "mean");
                    o.step(), o.zero_grad();
                    if (where == Asked::InWindow) ask();
                }
                if (where == Asked::BehindStep && o.steps() == 2) evaluate();
                if (o.steps() == 14) break;
            }
            if (where == Asked::BehindEpoch) evaluate();
        }
    });
    end.steps = optimizer.steps(), end.epoch = train.epoch(), end.consumed = train.consumed();
    end.state = accelerator.get_state_dict(model);
    return end;
}

}  // namespace

TEST_CASE("ranks that are asked to stop in an evaluation save where all of them are, and finish what would be lost", "[state_control][loops][step_guard]") {
    struct Case {
        Asked where;
        int64_t steps, epoch, consumed, evaluated;
    };
    for (auto const& c : {Case{Asked::BehindEpoch, 12, 1, 0, 2}, Case{Asked::BehindStep, 2, 0, 8, 2}, Case{Asked::BeforeStep, 2, 0, 8, 6}, Case{Asked::InWindow, 1, 0, 16, 0}}) {
        CAPTURE(c.steps, c.evaluated);
        Folder folder, other;
        auto const both = [&](fs::path const& dir, bool asked) {
            std::vector<Ended> ends(2);
            acc::debug_launcher(2, [&](acc::comm::Threads comm) { ends[static_cast<size_t>(comm.rank())] = stopped(comm, dir, c.where, asked && comm.rank() == 1); });
            return ends;
        };
        auto const child = ::fork();  // who has been asked to stop stays asked
        if (child == 0) {
            auto const ends = both(folder.path, true);
            ::_exit(std::all_of(ends.begin(), ends.end(), [&](Ended const& e) {
                return e.error.find("E_REQUEUE") == 0 && e.steps == c.steps && e.epoch == c.epoch && e.consumed == c.consumed && e.evaluated == c.evaluated;
            }) ? 0 : 1);
        }
        int status = 0;
        REQUIRE((::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0));
        REQUIRE(fs::exists(folder / "checkpoints/checkpoint_0"));
        auto const resumed = both(folder.path, false), through = both(other.path, false);
        CHECK(resumed[0].steps == 14);
        CHECK(equal(resumed[0].state, through[0].state));
    }
}

namespace {

/// A sample that comes only when a checkpoint is there.
struct Waits : Samples {
    std::pair<torch::Tensor, torch::Tensor> operator[](size_t i) const {
        if (i == 8) {
            while (*seen < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
            std::this_thread::sleep_for(std::chrono::milliseconds(200));  // until the loop waits; without, it may stop before that, which is right too
            ::kill(::getpid(), SIGUSR1);
            for (int ms = 0; ms < 20000 && !fs::exists(checkpoint); ++ms) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
        return Samples::operator[](i);
    }
    std::atomic<int64_t>* seen = nullptr;
    fs::path checkpoint;
};

std::shared_ptr<torch::nn::LinearImpl> filled_linear() {
    auto net = std::make_shared<torch::nn::LinearImpl>(4, 2);
    torch::NoGradGuard const no_grad;
    net->weight.fill_(0.25), net->bias.fill_(0.5);
    return net;
}

}  // namespace

TEST_CASE("a checkpoint between two losses of the micro-batch that ends its window", "[window_state][backward]") {
    Folder folder;
    for (bool weighted : {false, true}) {
        auto const dir = folder / acc::concat("saved_", weighted);
        auto const x = torch::arange(12, torch::kFloat).view({3, 4}) / 12;
        acc::accelerator_options const options{.gradient_accumulation_steps = 4, .short_window = acc::ShortWindow::Rescale};
        auto const trained = [&](bool resumed) {
            Run<Fp32, None> accelerator(options);
            auto const net = filled_linear();
            auto [model, optimizer, loader] = accelerator.prepare(net, acc::optim::Sgd{.lr = 1.0}, acc::data::Loader{std::vector{x[0], x[1], x[2]}, {.batch_size = 1}});
            auto const backward = [&, &model = model](torch::Tensor const& input, double weight) {
                auto const loss = model(input).square().sum();
                if (weighted) accelerator.backward(acc::weighted(loss, weight));
                else accelerator.backward(loss);
            };
            if (resumed) accelerator.load_state(dir);
            else
                for (auto& batch : loader) {
                    auto opened = accelerator.accumulate(model);
                    backward(batch, 2);
                    if (loader.consumed() < 3) continue;
                    accelerator.save_state(dir);
                }
            backward(-x[1], 3);
            optimizer.step();
            return net->weight.detach().clone();
        };
        auto const whole = trained(false);
        CHECK(torch::equal(trained(true), whole));
        auto const by_hand = filled_linear();
        auto sum = by_hand->forward(-x[1]).square().sum();
        for (int64_t i = 0; i < 3; ++i) sum = sum + by_hand->forward(x[i]).square().sum();
        (sum / (weighted ? 9 : 3)).backward();
        CHECK(torch::allclose(by_hand->weight - by_hand->weight.grad(), whole, 1e-5, 1e-6));
    }
}

TEST_CASE("a checkpoint behind or within no_sync has the gradients that it left", "[window_state][accumulation][window]") {
    Folder folder;
    auto const x = torch::arange(12, torch::kFloat).view({3, 4}) / 12;
    auto const check_all = [&]<class Sharding>(std::type_identity<Sharding>) {
        for (bool within : {false, true}) {
            auto const dir = folder / acc::concat(Sharding::name, within);
            auto const trained = [&](bool resumed) {
                Run<Fp32, Sharding> accelerator;
                auto [model, optimizer] = accelerator.prepare(filled_linear(), acc::optim::Sgd{.lr = 1.0});
                auto const backward = [&, &model = model](int64_t i) { accelerator.backward(model(x[i].unsqueeze(0)).square().sum()); };
                auto const local = [&, &model = model](int64_t i, bool saves) {
                    auto const scope = accelerator.no_sync(model);
                    backward(i);
                    if (saves) accelerator.save_state(dir);
                };
                if (resumed) accelerator.load_state(dir);
                else local(0, within);
                if (!resumed && !within) accelerator.save_state(dir);
                local(1, false);
                backward(2);
                optimizer.step();
                return accelerator.get_state_dict(model).at("weight");
            };
            auto const whole = trained(false);
            CHECK(torch::equal(trained(true), whole));
            auto const by_hand = filled_linear();
            by_hand->forward(x).square().sum().backward();
            CHECK(torch::allclose(by_hand->weight - by_hand->weight.grad(), whole, 1e-5, 1e-6));
        }
    };
    check_all(std::type_identity<None>());
    check_all(std::type_identity<Ddp<>>());
    check_all(std::type_identity<acc::sharding::Fsdp<>>());
}

TEST_CASE("a run that goes on inside a window knows the norm of the last one", "[window_state][clipping]") {
    Folder folder;
    auto const norms = [&](int64_t from, int64_t to, bool saves) {
        Run<Fp32, None> accelerator({.gradient_accumulation_steps = 2});
        auto [model, optimizer] = accelerator.prepare(std::make_shared<torch::nn::LinearImpl>(4, 2), acc::optim::Sgd{.lr = 0.1});
        if (from > 0) accelerator.load_state(folder / "saved");
        std::vector<float> seen;
        for (int64_t i = from; i < to; ++i) {
            auto const opened = accelerator.accumulate(model);
            accelerator.backward(model(torch::full({1, 4}, 1.0 + static_cast<double>(i))).square().sum());
            seen.push_back(accelerator.clip_grad_norm(model, i == 1 ? 0.0 : 1e9).template item<float>());
            optimizer.step();
            optimizer.zero_grad();
            if (saves && i == 1) accelerator.save_state(folder / "saved");
        }
        return seen;
    };
    auto const whole = norms(0, 4, true), rest = norms(2, 4, false);
    CHECK(rest[0] == whole[1]);
    CHECK(rest[0] > 0);
    CHECK(rest[1] == whole[3]);
}

TEST_CASE("a window of weighted losses does not divide what another one has left, also behind a checkpoint", "[window_state][backward]") {
    Folder folder;
    auto const x = torch::ones({1, 4});
    for (bool resumed : {false, true}) {
        Run<Fp32, None> accelerator({.gradient_accumulation_steps = 2});
        auto [model, optimizer] = accelerator.prepare(filled_linear(), acc::optim::Sgd{.lr = 0.1});
        auto const backward = [&, &model = model] {
            auto const opened = accelerator.accumulate(model);
            accelerator.backward(acc::weighted(model(x).sum(), 3));
        };
        if (resumed) accelerator.load_state(folder / "saved");
        else {
            for (int64_t i = 0; i < 3; ++i) backward();  // a window that nobody steps, and the first half of another
            accelerator.save_state(folder / "saved");
        }
        CHECK_THROWS_WITH(backward(), contains("E_CALL_ORDER") && contains("gradients of an earlier window"));
    }
}

TEST_CASE("steps that were skipped in a row are counted on by a run that goes on", "[components][step_guard][non_finite]") {
    Folder folder;
    auto const skips = [&](acc::NonFinite policy, int64_t times, bool goes_on, auto const& behind) {
        Run<Fp32, None> accelerator({.non_finite = policy});
        auto [model, optimizer] = accelerator.prepare(filled_linear(), acc::optim::Sgd{.lr = 0.1});
        if (goes_on) accelerator.load_state(folder / "saved");
        CHECK(accelerator.optimizer_step_was_skipped() == goes_on);
        for (int64_t i = 0; i < times; ++i) {
            accelerator.backward(model(torch::full({1, 4}, std::numeric_limits<float>::infinity())).sum());
            optimizer.step();
            optimizer.zero_grad();
        }
        behind(accelerator);
    };
    auto const nothing = [](auto&) {};
    skips(acc::NonFinite::abort_after(3), 2, false, [&](auto& accelerator) { accelerator.save_state(folder / "saved"); });
    CHECK_THROWS_WITH(skips(acc::NonFinite::abort_after(3), 1, true, nothing), contains("E_NONFINITE") && contains("3 steps in a row"));
    CHECK_NOTHROW(skips(acc::NonFinite::abort_after(4), 1, true, nothing));
}

TEST_CASE("what has been found out about gradients, and which steps were allowed by it, a run that goes on knows", "[window_state][step_guard][clipping]") {
    Folder folder;
    auto const x = torch::ones({1, 4});
    auto const check_all = [&]<class Sharding>(std::type_identity<Sharding>) {
        auto const dir = folder / acc::concat(Sharding::name, "_found"), allowed = folder / acc::concat(Sharding::name, "_allowed");
        for (bool resumed : {false, true}) {
            Run<Fp32, Sharding> accelerator;
            auto [model, other, optimizer, of_other] = accelerator.prepare(filled_linear(), filled_linear(), acc::optim::Sgd{.lr = 1.0}, acc::optim::Sgd{.lr = 1.0});
            auto const backward = [&](auto& of, double factor) { accelerator.backward(of(x).sum() * factor); };
            auto const weight = [&](auto& of) { return accelerator.get_state_dict(of).at("weight").sum().template item<float>(); };
            if (resumed) accelerator.load_state(dir);
            else {
                backward(model, INFINITY);
                accelerator.clip_grad_value(model, 1.0);  // what was infinite is not any more
                accelerator.save_state(dir);
            }
            optimizer.step();
            CHECK(optimizer.step_was_skipped());
            CHECK(weight(model) == 2);
            optimizer.zero_grad();
            if (resumed) accelerator.load_state(allowed);
            else {
                backward(model, 1), backward(other, 1);
                optimizer.step(), optimizer.zero_grad();  // all is finite: the other may step, too
                accelerator.save_state(allowed);
            }
            backward(model, INFINITY);
            of_other.step();
            CHECK_FALSE(of_other.step_was_skipped());
            optimizer.step();
            CHECK(optimizer.step_was_skipped());
            CHECK(weight(model) == -6);
            CHECK(weight(other) == -6);
        }
    };
    check_all(std::type_identity<None>());
    check_all(std::type_identity<Ddp<>>());
    check_all(std::type_identity<acc::sharding::Fsdp<>>());
}

TEST_CASE("one process that is asked to stop saves while it waits for its workers", "[state_control][workers]") {
    Folder folder;
    auto const child = ::fork();
    if (child == 0) {
        std::atomic<int64_t> seen = 0;
        Waits samples;
        samples.seen = &seen, samples.checkpoint = folder / "checkpoints/checkpoint_0";
        acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Fp32, None, acc::loader::Stateful<>> accelerator({.project_dir = folder.path});
        auto loader = accelerator.prepare(acc::data::Loader{samples, {.batch_size = 4, .num_workers = 1}});
        auto const text = error_of([&] {
            for ([[maybe_unused]] auto const& batch : loader) ++seen;
        });
        ::_exit(text.find("E_REQUEUE") == 0 && seen == 2 ? 0 : 1);
    }
    int status = 0;
    REQUIRE((::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0));
    acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, Fp32, None, acc::loader::Stateful<>> accelerator({.project_dir = folder.path});
    auto loader = accelerator.prepare(acc::data::Loader{Samples(), {.batch_size = 4}});
    REQUIRE(accelerator.resume());
    CHECK(loader.consumed() == 8);
}

TEST_CASE("parameters that are called otherwise now are found, in models, optimizers and windows", "[checkpoint_reader][checkpoints]") {
    Folder folder;
    std::vector<acc::Rename> const names{acc::rename_prefix("a.", "first."), acc::rename_prefix("norm.", "normalised.")};
    std::atomic<int64_t> right = 0;
    auto const one = [&](auto&& make, auto policy, acc::comm::Threads comm, auto&& before) {
        Run<Fp32, decltype(policy)> accelerator({.gradient_accumulation_steps = 2}, comm);
        auto [model, optimizer, loader] = accelerator.prepare(make(accelerator), acc::optim::AdamW{.lr = 0.01}, acc::data::Loader{Samples(), {.batch_size = 2}});
        before(accelerator);
        std::vector<float> losses;
        int64_t body = 0;
        for (auto& batch : loader) {
            {
                auto opened = accelerator.accumulate(model);
                auto const loss = torch::mse_loss(model(batch.first), batch.second);
                accelerator.backward(loss);
                optimizer.step(), optimizer.zero_grad();
                losses.push_back(loss.template item<float>());
            }
            if (++body == 3 && !fs::exists(folder / "done")) accelerator.save_state(folder / decltype(policy)::name);
        }
        return losses;
    };
    auto const both = [&](auto policy) {
        acc::debug_launcher(2, [&](acc::comm::Threads comm) {
            auto const through = one([](auto& a) { return a.template make<Net>(); }, policy, comm, [](auto&) {});
            comm.barrier();
            if (comm.rank() == 0) std::ofstream(folder / "done") << "x";
            comm.barrier();
            auto const again = one([](auto& a) { return a.template make<Renamed>(); }, policy, comm, [&](auto& a) { a.load_state(folder / decltype(policy)::name, {.rename = names}); });
            right += again == std::vector<float>(through.begin() + 3, through.end());
            comm.barrier();
            if (comm.rank() == 0) fs::remove(folder / "done");
            comm.barrier();
            Run<Fp32, decltype(policy)> accelerator({}, comm);
            auto model = accelerator.prepare(accelerator.template make<Renamed>());
            right += has(error_of([&] { accelerator.load_state(folder / decltype(policy)::name, {.skip = {"optimizer", "loader", "model_window"}}); }), {"E_CK_KEYS", "first.weight", "missing"});
            right += has(error_of([&] { accelerator.load_state(folder / decltype(policy)::name, {.skip = {"optimizer", "loader", "model_window"}, .rename = {[](std::string const&) { return std::string("x"); }}}); }), {"E_CK_KEYS", "renamed to"});
        });
    };
    both(Ddp<>());
    CHECK(right == 6);
    both(Fsdp<>());
    CHECK(right == 12);
}

TEST_CASE("`latest` names the last checkpoint; what it may not be is no reason not to go on", "[latest][leftovers][checkpoints]") {
    Folder folder;
    Run<Fp32, Ddp<>> accelerator({.project_dir = folder.path}, acc::comm::Threads::world());
    auto model = accelerator.prepare(accelerator.make<Net>());
    for (int i = 0; i < 2; ++i) accelerator.save_state();
    auto const checkpoints = folder / "checkpoints", latest = checkpoints / "latest";
    std::ifstream in(latest);
    std::string name;
    CHECK((in >> name && name == "checkpoint_1"));
    acc::state::check_latest(checkpoints);
    for (auto const& content : {std::string("checkpoint_9\n"), std::string("/etc\n"), std::string("..\n"), std::string("../checkpoints\n"), std::string(5000, 'x'), std::string("\0\1\2", 3), std::string()}) {
        fs::remove(latest);
        std::ofstream(latest) << content;
        CHECK(code_of([&] { acc::state::check_latest(checkpoints); }) == acc::code::ck_latest);
        CHECK(accelerator.resume());
    }
    for (auto const& target : {latest, fs::path("checkpoint_0"), fs::path("/etc/passwd")}) {
        fs::remove(latest);
        fs::create_symlink(target, latest);
        CHECK(code_of([&] { acc::state::check_latest(checkpoints); }) == acc::code::ck_latest);
        CHECK(accelerator.resume());
    }

    // What killed processes of this machine have left goes; what others may still write stays.
    auto const child = ::fork();
    if (child == 0) ::_exit(0);
    int status = 0;
    ::waitpid(child, &status, 0);
    auto const hidden = [&](std::string const& host, int64_t pid) {
        auto const path = checkpoints / acc::concat(".tmp~checkpoint_5~", host, "~", pid, "~123");
        fs::create_directories(path / "in");
        return path;
    };
    auto const dead = hidden(acc::state::host_name(), child), alive = hidden(acc::state::host_name(), ::getpid()), elsewhere = hidden("elsewhere", child), strange = checkpoints / ".tmp~x";
    fs::create_directories(strange);
    CHECK(accelerator.resume());
    CHECK((!fs::exists(dead) && fs::exists(alive) && fs::exists(elsewhere) && fs::exists(strange)));
    hidden(acc::state::host_name(), child);
    accelerator.save_state();
    CHECK_FALSE(fs::exists(dead));
}

TEST_CASE("a snapshot has every tensor's values and none of its memory", "[snapshot]") {
    acc::state::Snapshot snapshot;
    for (int64_t n : {100, 300'000, 5}) {  // smaller again: the memory is kept
        acc::TensorMap tensors;
        tensors.insert("rows", torch::randn({n, 3}));
        tensors.insert("columns", torch::randn({3, n}).t());
        tensors.insert("odd", torch::randint(0, 200, {n + 1}, torch::kByte).narrow(0, 1, n));
        tensors.insert("none", torch::empty({0, 4}));
        tensors.insert("bf16", torch::randn({2, n}).to(torch::kBFloat16));
        auto const copies = snapshot.copy(tensors);
        for (auto const& [name, t] : tensors) {
            CAPTURE(n, name);
            CHECK(torch::equal(copies.at(name), t));
            CHECK_FALSE(copies.at(name).is_alias_of(t));
        }
        tensors.at("rows").zero_();
        CHECK_FALSE(torch::equal(copies.at("rows"), tensors.at("rows")));
    }
}

TEST_CASE("an asynchronous save is of the moment of the call, and training goes on", "[async_checkpoint][snapshot][pending_save]") {
    Folder folder;
    for (int64_t ranks : {1, 2}) {
        auto const dir = folder / acc::concat("here", ranks);
        torch::manual_seed(11);
        auto const through = stories<Fp32, Fsdp<>>(ranks, {}, 10, [&](auto& accelerator) { accelerator.save_state(dir, {.asynchronous = true}); });
        CHECK(fs::exists(dir));  // the accelerator has waited for it when it went
        torch::manual_seed(12);
        auto const again = stories<Fp32, Fsdp<>>(ranks, dir, -1, [](auto&) {});
        for (size_t r = 0; r < through.size(); ++r) {
            CHECK(again[r].at_stop == through[r].at_stop);
            CHECK(again[r].at_end == through[r].at_end);
        }
    }

    std::atomic<int64_t> right = 0;
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Ddp<>> accelerator({.project_dir = folder / "project", .total_limit = 2}, comm);
        auto model = accelerator.prepare(accelerator.template make<Net>());
        auto const weights = [&] { return static_cast<torch::Tensor>(model->b->weight.detach()); };
        auto const before = weights().clone();
        for (int i = 0; i < 4; ++i) {
            weights().fill_(i);
            accelerator.save_state({.asynchronous = true, .hash = i % 2 == 0 ? acc::Hash::Sha256 : acc::Hash::Xxh3});
            weights().fill_(-1);  // while it is written
        }
        accelerator.wait_for_checkpoint();
        accelerator.wait_for_checkpoint();  // nothing to wait for
        right += fs::exists(folder / "project/checkpoints/checkpoint_3") && !fs::exists(folder / "project/checkpoints/checkpoint_1");
        for (int i : {2, 3}) {
            auto const dir = folder / acc::concat("project/checkpoints/checkpoint_", i);
            acc::verify(dir);
            accelerator.load_state(dir);
            right += weights().eq(i).all().template item<bool>();
        }
        comm.barrier();

        // What fails behind the copy is the next call's error, on every rank, and leaves nothing.
        auto const dir = folder / "taken";
        if (comm.rank() == 0) {
            accelerator.register_save_state_pre_hook([&](auto&, fs::path const& to) {
                if (to == dir) fs::create_directories(dir / "in the way");
            });
        } else {
            accelerator.register_save_state_pre_hook([](auto&, fs::path const&) {});
        }
        comm.barrier();
        right += code_of([&] { accelerator.save_state(dir, {.asynchronous = true}); }) == acc::code::exists;
    });
    CHECK(right == 8);

    // The same where the thread finds out: something takes the name while it writes.
    acc::debug_launcher(2, [&](acc::comm::Threads comm) {
        Run<Fp32, Ddp<>> accelerator({.project_dir = folder / "late"}, comm);
        auto model = accelerator.prepare(accelerator.template make<Net>(512));
        auto const dir = folder / "late/name";
        accelerator.save_state(dir, {.asynchronous = true, .hash = acc::Hash::Sha256});
        if (comm.rank() == 0) fs::create_directories(dir / "in the way");
        auto const code = code_of([&] { accelerator.wait_for_checkpoint(); });
        right += code == acc::code::exists || code == accelerate::Code{"nothing was thrown"};  // whoever was first
        right += code_of([&] { accelerator.save_state(folder / "late/next", {.asynchronous = true}); }) == accelerate::Code{"nothing was thrown"};
        accelerator.wait_for_checkpoint();
        for (auto const& entry : fs::directory_iterator(folder / "late")) right += entry.path().filename().string().starts_with('.') ? 100 : 0;
    });
    CHECK(right == 12);
}

TEST_CASE("a writer rests between its pieces until somebody waits for it", "[pace][pending_save]") {
    // One that rests at all is asleep more than it computes: its own clock falls behind the world's.
    acc::state::Pace pace;
    auto const computed = [] {
        timespec t{};
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
        return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
    };
    auto const work = [&](double seconds) {
        for (auto const until = computed() + seconds; computed() < until;) pace.rest();
    };
    auto const passed = [&](auto&& body) {
        auto const begin = std::chrono::steady_clock::now();
        body();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    };
    CHECK(passed([&] { work(0.02); }) > 0.06);
    // Whoever waits ends it: these threads would never end of themselves.
    std::atomic<int> ended = 0;
    auto const until_hurried = [&](acc::state::Pace& p) {
        while (!p.hurried()) p.rest();
        ++ended;
    };
    acc::state::PendingSave waited(until_hurried);
    waited.wait();
    CHECK(ended == 1);
    { acc::state::PendingSave const dropped(until_hurried); }
    CHECK(ended == 2);
}

TEST_CASE("why a rank's writer has failed reaches rank 0", "[async_checkpoint][together]") {
    Folder folder;
    namespace detail = acc::state::detail;
    using std::chrono::milliseconds;
    acc::state::write_text(detail::told_file(folder.path, 0, ".told"), "zero");
    auto const asked = [&] { return error_of([&] { detail::told_by_all(folder.path, 2, milliseconds(200)); }); };
    CHECK(has(asked(), {"E_DEADLINE", "rank 1"}));
    acc::state::write_text(detail::told_file(folder.path, 0, ".told"), "zero");
    detail::tell_failure(folder.path, 1, {"E_NO_SPACE\nthe disk\nis full", acc::code::no_space});
    CHECK(has(asked(), {"E_NO_SPACE: the disk\nis full (rank 1)"}));
    acc::state::write_text(detail::told_file(folder.path, 0, ".told"), "zero");
    acc::state::write_text(detail::told_file(folder.path, 1, ".failed"), "");
    CHECK(has(asked(), {"E_IO", "rank 1 could not write"}));
}

TEST_CASE("a file's XXH3 is xxHash's of its bytes", "[file_hash]") {
    Folder folder;
    std::string bytes;
    for (size_t const size : std::initializer_list<size_t>{0, 1, 240, 241, 1024, 262'144, 1'000'003}) {
        while (bytes.size() < size) bytes += static_cast<char>(bytes.size() * 2654435761 >> 13);
        auto const whole = XXH3_128bits(bytes.data(), bytes.size());
        char expected[48];
        std::snprintf(expected, sizeof expected, "xxh3-128:%016llx%016llx", static_cast<unsigned long long>(whole.high64), static_cast<unsigned long long>(whole.low64));
        CHECK(acc::state::hash_of(acc::state::InputFile(folder.write("x", bytes)), acc::Hash::Xxh3) == expected);
    }
}

TEST_CASE("SHA-256 is the standard's", "[sha256][file_hash]") {
    auto const digits = [](std::string const& text, size_t piece) {
        acc::state::Sha256 hash;
        for (size_t at = 0; at < text.size(); at += piece) hash.add(text.data() + at, static_cast<int64_t>(std::min(piece, text.size() - at)));
        return hash.digits();
    };
    for (size_t const piece : std::initializer_list<size_t>{1, 7, 64, 1000}) {  // FIPS 180-4's examples
        CHECK(digits("", piece) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        CHECK(digits("abc", piece) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        CHECK(digits("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", piece) == "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    }
    CHECK(digits(std::string(1'000'000, 'a'), 4096) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    Folder folder;
    Run<Fp32, Ddp<>> accelerator({}, acc::comm::Threads::world());
    auto model = accelerator.prepare(accelerator.make<Net>());
    accelerator.save_state(folder / "sha", {.hash = acc::Hash::Sha256});
    accelerator.load_state(folder / "sha");
    auto const file = folder / "sha/rank-00000.safetensors";
    std::fstream out(file, std::ios::binary | std::ios::in | std::ios::out);
    out.seekp(-1, std::ios::end);
    out.put('x');
    out.close();
    CHECK(has(error_of([&] { accelerator.load_state(folder / "sha"); }), {"E_CK_HASH", "sha256:"}));
    accelerator.load_state(folder / "sha", {.verify = false});  // for who has asked
    CHECK(acc::state::Manifest::parse(read_text(folder / "sha/manifest.json"), "m").files[0].hash.size() == 71);
}
