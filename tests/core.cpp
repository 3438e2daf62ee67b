// The room that everybody knows: errors, the session, seeds, units, named tensors, and the walk over nested values.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, which has a CHECK of its own
#include "support/locale.hpp"
#include "support/stderr.hpp"

#include <accelerate/core/aggregate.hpp>
#include <accelerate/core/byte_size.hpp>
#include <accelerate/core/config.hpp>
#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/core/random_state.hpp>
#include <accelerate/core/run.hpp>
#include <accelerate/core/seed.hpp>
#include <accelerate/core/state_dict.hpp>
#include <accelerate/core/stop_signals.hpp>
#include <accelerate/core/streaming_copy.hpp>
#include <accelerate/core/units.hpp>
#include <accelerate/core/version.hpp>
#include <fcntl.h>
#include <map>
#include <numeric>
#include <set>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace acc = accelerate;

namespace {

}  // namespace

// ---- errors and the session ----------------------------------------------------------------------------------------------------

TEST_CASE("an error carries a stable code, and a message that begins with it", "[error]") {
    acc::Error const e(acc::code::data, "row 7");
    CHECK(std::string(e.what()) == "E_DATA: row 7");
    CHECK(e.code() == "E_DATA");
    CHECK(e.code() == acc::code::data);
    CHECK_FALSE(e.code() == acc::code::io);
    CHECK(acc::concat("a", 1, 'b', 2.5) == "a1b2.5");
    {
        ForeignLocale const foreign;
        CHECK(acc::concat(12345, ' ', 2.5) == "12345 2.5");
    }
    CHECK_NOTHROW(acc::check(true, acc::code::io, "never formatted"));
    CHECK_THROWS_WITH(acc::check(1 > 2, acc::code::config, "found ", 1), "E_CONFIG: found 1");
    // The documented exit codes.
    std::map<std::string_view, int> const exits{{"E_DATA", 65}, {"E_INTERNAL", 70}, {"E_PEER_LOST", 71}, {"E_DEADLINE", 71}, {"E_IO", 74}, {"E_COLLECTIVE_MISMATCH", 76}, {"E_NONFINITE", 77}, {"E_CONFIG", 78}};
    for (auto const& c : {acc::code::data, acc::code::internal, acc::code::peer_lost, acc::code::deadline, acc::code::io, acc::code::collective_mismatch, acc::code::non_finite, acc::code::config})
        CHECK(exits.at(c.name) == c.exit);
}

TEST_CASE("run turns what is thrown into exit codes and one line on the terminal", "[run]") {
    // In a child: run leaves the session, which the other cases use.
    auto const outcome = [](auto body) {
        int code = -1;
        auto const text = stderr_of([&] {
            auto const child = ::fork();
            if (child == 0) std::_Exit(acc::run(body));
            int status = 0;
            ::waitpid(child, &status, 0);
            code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        });
        return std::pair(code, text);
    };
    CHECK(outcome([] {}) == std::pair(0, std::string()));
    CHECK(outcome([] { return 3; }) == std::pair(3, std::string()));
    CHECK(outcome([]() -> int { throw acc::Error(acc::code::config, "bad option"); }) == std::pair(78, std::string("[accelerate rank 0] E_CONFIG: bad option\n")));
    CHECK(outcome([] { throw std::runtime_error("plain"); }) == std::pair(70, std::string("[accelerate rank 0] plain\n")));
    CHECK(outcome([] { throw 7; }).first == 70);
    auto const [code, text] = outcome([] { torch::ones({2}) + torch::ones({3}); });
    CHECK(code == 70);
    CHECK(text.find("size of tensor a") != std::string::npos);
    CHECK(text.find("frame #") == std::string::npos);  // LibTorch's stack trace tells a user nothing
}

TEST_CASE("notices go to stderr, from the main rank unless asked, once where once is enough", "[log][session]") {
    CHECK(stderr_of([] { acc::log::info("a", 1); }) == "[accelerate] a1\n");
    CHECK(stderr_of([] { acc::log::warning("b"); }) == "[accelerate] warning: b\n");
    CHECK(stderr_of([] {
              acc::log::warning_once("only once in the life of this process");
              acc::log::warning_once("only once in the life of this process");
          }) == "[accelerate] warning: only once in the life of this process\n");
    CHECK(stderr_of([] {
              acc::Session::ThreadRank const other(3);
              CHECK(acc::Session::instance().rank() == 3);
              std::thread([] { CHECK(acc::Session::instance().rank() == 0); }).join();
              acc::log::info("not from here");
              acc::log::warning("nor this");
              acc::log::warning(acc::log::From::Everyone, "but this");
          }) == "[accelerate] warning: but this\n");
    CHECK(acc::Session::instance().rank() == 0);
}

TEST_CASE("a session ends once", "[session]") {
    // In a child, because there is one session a process.
    auto const child = ::fork();
    if (child == 0) {
        auto& session = acc::Session::instance();
        int finalised = 0, aborted = 0;
        session.connect(2, 4, 2, [&](int code) { aborted = code; }, [&] { ++finalised; });
        bool const known = session.rank() == 2 && session.size() == 4 && session.local_size() == 2;
        session.abort(9);
        session.finalise();
        session.finalise();
        session.abort(10);
        std::_Exit(known && finalised == 1 && aborted == 9 ? 0 : 1);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}

// ---- small values --------------------------------------------------------------------------------------------------------------

TEST_CASE("counts know what they count", "[units]") {
    constexpr acc::OptimizerSteps a{100}, b{20};
    static_assert((a + b).value == 120 && (a - b).value == 80 && a > b && a == acc::OptimizerSteps{100} && acc::OptimizerSteps{}.value == 0);
    static_assert(!std::is_convertible_v<int64_t, acc::Samples> && !std::is_constructible_v<acc::Samples, acc::OptimizerSteps>);
    static_assert(sizeof(acc::Tokens) == sizeof(int64_t));
}

TEST_CASE("streams of one seed are unrelated, stable, and shared by the ranks where they must be", "[seed]") {
    std::set<int64_t> seen;
    for (int64_t seed = 0; seed < 100; ++seed) {
        acc::Seed const s(seed);
        for (auto value : {s.data(), s.weights(), s.augment(0), s.augment(1), s.dropout(0), s.dropout(1), s.stream("mine", 0)}) {
            CHECK(value >= 0);
            seen.insert(value);
        }
    }
    CHECK(seen.size() == 700);
    CHECK(acc::Seed(7).data() == acc::Seed(7).data());
    // Neighbouring seeds differ in about half of their bits.
    double bits = 0;
    for (int64_t seed = 0; seed < 1000; ++seed) bits += __builtin_popcountll(static_cast<uint64_t>(acc::Seed(seed).data() ^ acc::Seed(seed + 1).data()));
    CHECK(bits / 1000 == Approx(31.5).margin(0.5));
    // The finaliser of splitmix64: its published first outputs for the state 0 (Vigna, prng.di.unimi.it/splitmix64.c).
    CHECK(acc::mix(0, 0) == 0xE220A8397B1DCDAFull);
    CHECK(acc::mix(0, 1) == 0x6E789E6AA1B965F4ull);
}

TEST_CASE("set_seed seeds LibTorch, by rank if asked", "[seed]") {
    auto const drawn = [](acc::seed_options how, int64_t rank) {
        acc::set_seed(5, how, rank);
        return torch::randn({4});
    };
    torch::manual_seed(5);
    auto const expected = torch::randn({4});
    CHECK(torch::equal(drawn({}, 0), expected));
    CHECK(torch::equal(drawn({}, 3), expected));
    CHECK(torch::equal(drawn({.device_specific = true}, 0), expected));
    torch::manual_seed(8);
    auto const third = torch::randn({4});
    CHECK(torch::equal(drawn({.device_specific = true}, 3), third));
    acc::set_seed(5, {.deterministic = true});
    CHECK(at::globalContext().deterministicAlgorithms());
    at::globalContext().setDeterministicAlgorithms(false, false);
}

TEST_CASE("the version is that of the macros", "[version][config]") {
    CHECK(acc::version.major == ACCELERATE_VERSION_MAJOR);
    CHECK(acc::version.minor == ACCELERATE_VERSION_MINOR);
    CHECK(acc::version.patch == ACCELERATE_VERSION_PATCH);
    CHECK((ACCELERATE_WITH_MPI == 0 || ACCELERATE_WITH_MPI == 1));
}

// ---- named tensors -------------------------------------------------------------------------------------------------------------

TEST_CASE("tensors by name keep their order and read like a map", "[tensor_map]") {
    acc::TensorMap map{{"b", torch::ones({1})}, {"a", torch::ones({2})}};
    map["c"] = torch::ones({3});
    map.insert("b", torch::ones({4}));  // in its place
    std::vector<std::string> names;
    std::vector<int64_t> sizes;
    for (auto const& [name, tensor] : map) names.push_back(name), sizes.push_back(tensor.numel());
    CHECK(names == std::vector<std::string>{"b", "a", "c"});
    CHECK(sizes == std::vector<int64_t>{4, 2, 3});
    CHECK((map.contains("a") && map.count("a") == 1 && map.find("a") != map.end() && map.find("a")->second.numel() == 2));
    CHECK((!map.contains("x") && map.count("x") == 0 && map.find("x") == map.end()));
    CHECK_THROWS_WITH(map.at("x"), contains("E_DATA") && contains("\"x\""));
    CHECK((map.size() == 3 && !map.empty() && acc::TensorMap().empty()));

    torch::nn::Linear linear(2, 3);
    acc::TensorMap const of_module(linear->named_parameters());
    CHECK((of_module.size() == 2 && of_module.at("weight").is_same(linear->weight)));
    acc::TensorMap const of_map(std::map<std::string, torch::Tensor>{{"z", torch::ones({1})}, {"y", torch::ones({1})}});
    CHECK(of_map.begin()->first == "y");
}

namespace {
struct Counter {
    int64_t n = 0;
    acc::StateDict state_dict() const {
        acc::StateDict s;
        s.values["n"] = n;
        return s;
    }
    void load_state_dict(acc::StateDict const& s) { n = s.value<int64_t>("n", "Counter"); }
};
}  // namespace

TEST_CASE("a state is tensors and JSON values; what is missing is named", "[state_dict]") {
    static_assert(acc::stateful<Counter> && !acc::stateful<int>);
    Counter a{7}, b;
    b.load_state_dict(a.state_dict());
    CHECK(b.n == 7);
    CHECK_THROWS_WITH(b.load_state_dict({}), contains("E_DATA: Counter.load_state_dict") && contains("\"n\""));
    acc::StateDict wrong;
    wrong.values["n"] = "seven";
    CHECK_THROWS_WITH(b.load_state_dict(wrong), contains("wrong type"));
    CHECK(b.n == 7);
}

// ---- nested values -------------------------------------------------------------------------------------------------------------

namespace {

struct Pair {
    torch::Tensor input, target;
};
struct Nested {
    Pair pair;
    std::array<torch::Tensor, 2> views;
    std::map<std::string, torch::Tensor> extra;
};
struct Everything {
    bool a;
    float b;
    std::string c;
    std::vector<int64_t> d;
    std::optional<torch::Tensor> e;
    std::vector<bool> f;
    Nested g;
};
struct One {
    torch::Tensor x;
};
struct Sixteen {
    torch::Tensor a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p;
};
struct WithConstructor {
    explicit WithConstructor(int);
    torch::Tensor x;
};
/// Hides its tensor from whoever is not told.
class Closed {
public:
    explicit Closed(torch::Tensor t) : hidden_(std::move(t)) {}

private:
    torch::Tensor hidden_;
};

}  // namespace

namespace other {
class Output {
public:
    Output(torch::Tensor logits, std::vector<torch::Tensor> states) : logits_(std::move(logits)), states_(std::move(states)) {}
    friend void for_each_tensor(Output& o, auto&& f) {
        acc::for_each_tensor(o.logits_, f);
        acc::for_each_tensor(o.states_, f);
    }

private:
    torch::Tensor logits_;
    std::vector<torch::Tensor> states_;
};
}  // namespace other

TEST_CASE("plain structs are taken apart without registration", "[aggregate]") {
    static_assert(acc::decomposable<One> && acc::decomposable<Everything> && acc::decomposable<Sixteen> && acc::decomposable<Nested>);
    static_assert(!acc::decomposable<WithConstructor> && !acc::decomposable<torch::Tensor> && !acc::decomposable<int> && !acc::decomposable<std::string>);
    static_assert(std::tuple_size_v<decltype(acc::fields(std::declval<Everything&>()))> == 7);
    static_assert(std::is_same_v<decltype(acc::fields(std::declval<Pair const&>())), std::tuple<torch::Tensor const&, torch::Tensor const&>>);
    Pair p{torch::ones(2), torch::zeros(3)};
    auto [input, target] = acc::fields(p);
    CHECK((&input == &p.input && &target == &p.target));
    Sixteen s;
    auto all = acc::fields(s);
    CHECK(&std::get<15>(all) == &s.p);
}

TEST_CASE("every tensor of a value is found, in order", "[for_each_tensor]") {
    auto const sizes = [](auto value) {
        std::vector<int64_t> seen;
        acc::for_each_tensor(value, [&](at::Tensor& t) { seen.push_back(t.numel()); });
        return seen;
    };
    using Sizes = std::vector<int64_t>;
    auto const t = [](int64_t n) { return torch::ones({n}); };
    CHECK(sizes(t(1)) == Sizes{1});
    CHECK(sizes(torch::Tensor()).empty());
    CHECK((sizes(3).empty() && sizes(std::string("text")).empty() && sizes(nullptr).empty() && sizes(std::vector<double>{1, 2}).empty()));
    CHECK(sizes(std::vector<torch::Tensor>{t(1), {}, t(2)}) == Sizes{1, 2});
    CHECK(sizes(std::array{t(1), t(2)}) == Sizes{1, 2});
    CHECK(sizes(std::optional(t(4))) == Sizes{4});
    CHECK(sizes(std::optional<torch::Tensor>()).empty());
    CHECK(sizes(std::tuple(t(1), std::pair(2, std::vector{t(2), t(3)}), std::optional(std::tuple(t(4))))) == Sizes{1, 2, 3, 4});
    CHECK(sizes(std::map<std::string, torch::Tensor>{{"a", t(1)}, {"b", t(2)}}) == Sizes{1, 2});
    CHECK(sizes(acc::TensorMap{{"b", t(1)}, {"a", t(2)}}) == Sizes{1, 2});
    CHECK(sizes(Everything{true, 1, "x", {1, 2}, t(1), {true}, {{t(2), t(3)}, {t(4), t(5)}, {{"k", t(6)}}}}) == Sizes{1, 2, 3, 4, 5, 6});
    CHECK(sizes(other::Output(t(1), {t(2), t(3)})) == Sizes{1, 2, 3});
    CHECK(sizes(std::vector<other::Output>{{t(1), {t(2)}}, {t(3), {}}}) == Sizes{1, 2, 3});

    std::pair<torch::Tensor, int> value(t(1), 1);
    acc::for_each_tensor(value, [](at::Tensor& x) { x = x * 5; });
    CHECK(value.first.item<int>() == 5);
    auto const& constant = value;
    acc::for_each_tensor(constant, [](at::Tensor const& x) { CHECK(x.item<int>() == 5); });

    std::pair<Closed, torch::Tensor> half(Closed(t(1)), t(2));
    int64_t found = 0;
    acc::for_each_known_tensor(half, [&](at::Tensor& x) { found += x.numel(); });
    CHECK(found == 2);
}

TEST_CASE("random numbers come again from a state", "[random_state]") {
    torch::manual_seed(3);
    auto const state = acc::random_state(at::kCPU);
    auto const first = torch::randn({5});
    torch::manual_seed(4);
    acc::set_random_state(at::kCPU, state);
    CHECK(torch::equal(torch::randn({5}), first));
    CHECK_FALSE(torch::equal(torch::randn({5}), first));
}

TEST_CASE("the first signal asks to stop, the second ends the process", "[stop_signals]") {
    auto const in_child = [](auto&& f) {
        auto const child = ::fork();
        if (child == 0) {
            ::close(STDERR_FILENO);
            f();
            ::_exit(acc::StopSignals::requested());
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    };
    CHECK(in_child([] {
              acc::StopSignals const one;
              { acc::StopSignals const two; }
              ::raise(SIGUSR1);
          }) == SIGUSR1);
    CHECK(in_child([] {
              acc::StopSignals const one;
              ::raise(SIGUSR1);
              ::raise(SIGUSR1);
          }) == -SIGUSR1);
    CHECK(in_child([] {
              { acc::StopSignals const one; }
              ::raise(SIGUSR1);  // nobody asks any more
          }) == -SIGUSR1);
    CHECK(in_child([] {
              ::signal(SIGUSR1, SIG_IGN);
              acc::StopSignals const one;
              ::raise(SIGUSR1);
          }) == 0);
}

TEST_CASE("sizes are written as people write them", "[byte_size]") {
    std::vector<std::pair<std::string, int64_t>> const valid{{"0B", 0}, {"7B", 7}, {"10KB", 10'000}, {"1.5GB", 1'500'000'000}, {"1.5 GiB", 1'610'612'736}, {"2MiB", 2'097'152}, {"3kB", 3000}, {"1TB", 1'000'000'000'000}, {"1TiB", 1'099'511'627'776}};
    for (auto const& [text, bytes] : valid) {
        INFO(text);
        CHECK(acc::ByteSize(text).value == bytes);
    }
    CHECK(acc::ByteSize(12).value == 12);
    CHECK(acc::ByteSize(acc::Bytes{12}).value == 12);
    for (auto const* text : {"", "GB", "5", "5 G", "5Gb", "-1GB", "5PB", "5GBs", "5iB", "nanGB", "infGB", "1e30GB", "5 TiBB", "0x5GB", "5G iB"}) {
        INFO(text);
        CHECK_THROWS_WITH(acc::ByteSize(text), contains("E_CONFIG") && contains("10GB"));
    }
}

TEST_CASE("a streaming copy is a copy, whatever the alignment", "[streaming_copy]") {
    std::vector<std::byte> from(70'000), to(70'100);
    for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 7 + i / 251);
    for (size_t const offset : std::initializer_list<size_t>{0, 1, 16})
        for (size_t const n : {size_t{0}, size_t{1}, size_t{16'383}, size_t{16'384}, size_t{16'450}, size_t{69'999}}) {
            std::fill(to.begin(), to.end(), std::byte{255});
            acc::kernel::streaming_copy(to.data() + offset, from.data() + 1, n);
            CHECK(std::equal(from.begin() + 1, from.begin() + 1 + static_cast<std::ptrdiff_t>(n), to.begin() + static_cast<std::ptrdiff_t>(offset)));
            CHECK(to[offset + n] == std::byte{255});
        }
}
