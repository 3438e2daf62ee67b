// The communicators without MPI, and every part that they are made of.
#include "support/conformance.hpp"
#include "support/locale.hpp"

#include <sys/wait.h>

#include <accelerate/comm/nested.hpp>
#include <accelerate/comm/pad.hpp>
#include <accelerate/comm/process_memory.hpp>
#include <accelerate/comm/self.hpp>
#include <accelerate/comm/threads.hpp>
#include <cmath>
#include <map>
#include <random>
#include <set>

namespace acc = accelerate;
namespace comm = accelerate::comm;
using acc::concat;
using comm::Reduction;
using conformance::lacks;
using std::chrono::milliseconds;

namespace {

struct OnSelf {
    int64_t size() const { return 1; }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return comm::transport_options{.stage_bytes = 4096}.fitted(1); }
    template <class F>
    void operator()(F&& f) const {
        f(comm::Self());
    }
};

struct OnThreads {
    int64_t ranks;
    comm::transport_options given = {};

    int64_t size() const { return ranks; }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return given.fitted(ranks); }
    template <class F>
    void operator()(F&& f) const {
        comm::Threads::run(ranks, f, given);
    }
};

/// So small that nearly everything goes in several pieces.
constexpr comm::transport_options small{.stage_bytes = 1000, .pipe_bytes = 100, .small_bytes = 300};

}  // namespace

// ---- what every communicator promises ------------------------------------------------------------------------------------------

TEST_CASE("Self conforms", "[self][solo][communicator][operations]") { conformance::conform(OnSelf{}); }

TEST_CASE("Threads conform", "[threads][communicator][operations][transfer][reducer][letters][split]") {
    auto const ranks = GENERATE(1, 2, 3, 4);
    CAPTURE(ranks);
    conformance::conform(OnThreads{ranks});
}

TEST_CASE("Threads conform where everything goes in small pieces", "[threads][transfer][reducer][mailbox]") {
    auto const ranks = GENERATE(3, 4);
    CAPTURE(ranks);
    conformance::conform(OnThreads{ranks, small});
}

TEST_CASE("what is no communicator is none", "[communicator]") {
    STATIC_REQUIRE(comm::communicator<comm::Self>);
    STATIC_REQUIRE(comm::communicator<comm::Threads>);
    STATIC_REQUIRE_FALSE(comm::communicator<int>);
    STATIC_REQUIRE_FALSE(comm::communicator<comm::Worker>);
    STATIC_REQUIRE(comm::reducible_buffer<comm::Buffer>);
    STATIC_REQUIRE(comm::background_worker<comm::Threads::worker>);
    STATIC_REQUIRE_FALSE(comm::background_worker<comm::Threads>);
}

// ---- calls and fingerprints ----------------------------------------------------------------------------------------------------

namespace {

comm::Call call_of(comm::Operation o, std::vector<int64_t> const& shape = {}, at::ScalarType dtype = at::kFloat) {
    comm::Call c;
    c.operation = o, c.dtype = dtype, c.count = c10::multiply_integers(shape), c.dims = static_cast<int64_t>(shape.size());
    std::copy_n(shape.begin(), std::min<size_t>(shape.size(), c.shape.size()), c.shape.begin());
    return c;
}

}  // namespace

TEST_CASE("calls are described as they are written", "[call]") {
    using comm::Operation;
    auto c = call_of(Operation::AllReduce, {8, 3});
    c.reduction = Reduction::Mean;
    CHECK(describe(c) == "all_reduce(mean) of Float [8, 3]");
    c = call_of(Operation::Broadcast, {}, at::kLong), c.root = 2;
    CHECK(describe(c) == "broadcast(root 2) of Long []");
    c.root = -1, c.refused = true;
    CHECK(describe(c) == "broadcast(root -1) of Long [] (which that rank refused: see its own message)");
    c = call_of(Operation::Send, {4}), c.root = 1;
    CHECK(describe(c) == "send to 1 of Float [4]");
    c.operation = Operation::Recv;
    CHECK(describe(c) == "recv from 1 of Float [4]");
    CHECK(describe(call_of(Operation::AllGather, {1, 2, 3, 4, 5, 6, 7})) == "all_gather of Float [1, 2, 3, 4, 5, 6, ...] (5040 elements)");
    CHECK(describe(call_of(Operation::Barrier, {}, at::ScalarType::Undefined)) == "barrier of 1 bytes");
    c = {}, c.operation = Operation::Barrier;
    CHECK(describe(c) == "barrier");
    c.operation = Operation::AllGatherBytes, c.count = 12;
    CHECK(describe(c) == "all_gather_bytes of 12 bytes");
    c.operation = Operation::Split, c.count = 16;
    CHECK(describe(c) == "split");
    c = call_of(Operation::ReduceBuffer, {10, 90}), c.root = 3;
    CHECK(describe(c) == "all_reduce of a buffer(sum) 3 of Float [10, 90) without gather");
    CHECK(comm::name(static_cast<Operation>(200)) == "?");
    CHECK(comm::name(Operation::Split) == "split");
    CHECK((comm::as_root(0) == 0 && comm::as_root(-5) == -1 && comm::as_root(int64_t{1} << 32) == -1 && comm::as_root(7) == 7));
    int64_t rooted = 0;
    for (uint8_t o = 0; o < 18; ++o) rooted += comm::rooted(static_cast<Operation>(o));
    CHECK(rooted == 7);
}

TEST_CASE("fingerprints of different calls differ", "[fingerprint]") {
    using comm::Fingerprint;
    using comm::Operation;
    std::vector<Fingerprint> all;
    auto const add = [&](comm::Call const& c) { all.push_back(Fingerprint::of(c)); };
    // Every shape of up to 3 small dimensions: these are the ones that a weak hash confuses.
    for (int64_t a = 0; a < 10; ++a) {
        add(call_of(Operation::AllReduce, {a}));
        for (int64_t b = 0; b < 10; ++b) {
            add(call_of(Operation::AllReduce, {a, b}));
            for (int64_t c = 0; c < 10; ++c) add(call_of(Operation::AllReduce, {a, b, c}));
        }
    }
    add(call_of(Operation::AllReduce));
    add(call_of(Operation::AllReduce, {1, 1, 1, 1, 1, 1}));
    add(call_of(Operation::AllReduce, {1, 1, 1, 1, 1, 1, 1}));
    for (auto const dtype : {at::kDouble, at::kInt}) add(call_of(Operation::AllReduce, {4}, dtype));
    add(call_of(Operation::Broadcast, {4}));
    auto c = call_of(Operation::AllReduce, {4});
    for (auto const how : {Reduction::Mean, Reduction::Max, Reduction::Min}) c.reduction = how, add(c);
    c.reduction = Reduction::Sum, c.flag = true, add(c);
    c.flag = false, c.refused = true, add(c);
    c = call_of(Operation::Broadcast, {4}), c.root = 0, add(c), c.root = 1, add(c);
    std::set<std::tuple<uint64_t, uint64_t, int64_t>> distinct;
    for (auto const& f : all) distinct.insert({f.what, f.shape, f.count});
    CHECK(distinct.size() == all.size());
    CHECK(std::count_if(all.begin(), all.end(), [&](Fingerprint const& f) { return f.agrees(all[0]); }) == 1);

    // Dimension 0 is each rank's own where they gather, and only there; from a root all of it is.
    auto const agree = [](comm::Call const& a, comm::Call const& b) { return Fingerprint::of(a).agrees(Fingerprint::of(b)) && Fingerprint::of(b).agrees(Fingerprint::of(a)); };
    CHECK(agree(call_of(Operation::AllGather, {2, 3}), call_of(Operation::AllGather, {7, 3})));
    CHECK_FALSE(agree(call_of(Operation::AllGather, {2, 3}), call_of(Operation::AllGather, {2, 4})));
    CHECK_FALSE(agree(call_of(Operation::AllGather, {2, 3}), call_of(Operation::AllGather, {2, 3, 1})));
    CHECK(agree(call_of(Operation::Scatter, {2, 3}), call_of(Operation::Scatter, {5}, at::kInt)));
    auto const what = Fingerprint::of(call_of(Operation::AllReduce, {4}));
    CHECK((what.operation() == Operation::AllReduce && !what.refused() && !what.own_count()));
}

TEST_CASE("reductions by name, and where they are defined", "[reduction][reduce]") {
    for (auto const how : {Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min}) CHECK(comm::reduction(comm::name(how)) == how);
    CHECK(lacks([] { comm::reduction("avg"); }, {"E_CONFIG", "avg", "mean"}) == "");
    // What is said to be defined is done, for every dtype there is; the rest is refused before the ranks meet.
    for (int d = 0; d < static_cast<int>(at::ScalarType::NumOptions); ++d) {
        auto const dtype = static_cast<at::ScalarType>(d);
        CAPTURE(c10::toString(dtype));
        if (!comm::holds_numbers(dtype)) {
            CHECK_FALSE(comm::why_not(Reduction::Sum, dtype).empty());
            continue;
        }
        std::array<std::byte, 64> a{}, b{};
        void const* in[]{a.data(), a.data()};
        void* out[]{b.data()};
        for (auto const how : {Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min})
            if (comm::why_not(how, dtype).empty()) CHECK_NOTHROW(comm::reduce({out, 1, in, 2}, dtype, how, 2));
    }
    CHECK(lacks([] { comm::reduce({nullptr, 0, nullptr, 0}, at::kQInt8, Reduction::Sum, 1); }, {"QInt8"}) == "");
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------------------

namespace {

/// Bits of a dtype that are easy to get wrong: NaN, infinity, subnormals, ties of rounding, signed zero, and ordinary values.
template <class T>
std::vector<T> bits(at::ScalarType dtype, int64_t n, unsigned seed) {
    auto const special = std::vector<float>{std::nanf(""), INFINITY, -INFINITY, 1e-40f, -1e-42f, 0.0f, -0.0f, 1.00390625f, 1.01171875f, 65504, 3e38f, -3e38f, 1.0009765625f, 256, 1};
    std::mt19937 random(seed);
    std::vector<float> values;
    for (int64_t i = 0; i < n; ++i)
        values.push_back(random() % 8 == 0 ? special[random() % special.size()] : std::ldexp(static_cast<float>(random() % 4096) / 2048 - 1, static_cast<int>(random() % 20) - 10));
    auto const t = at::from_blob(values.data(), {n}, at::kFloat).to(dtype);
    std::vector<T> out(static_cast<size_t>(n));
    std::memcpy(out.data(), t.data_ptr(), t.nbytes());
    return out;
}

/// A vector kernel against the portable loop, for many lengths, alignments and numbers of arrays, also in place.
template <class Element, class T, class Factor>
void compare_kernel(at::ScalarType dtype, int64_t (*kernel)(T* const*, int64_t, T const* const*, int64_t, int64_t, Factor), int64_t width) {
    int64_t wrong = 0, cases = 0;
    for (int64_t n : {0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200})
        for (int64_t ins = 1; ins <= 5; ++ins)
            for (int64_t outs = 1; outs <= 5; ++outs)
                for (int64_t offset : {0, 1, 3}) {
                    auto const factor = (ins + outs) % 3 == 0 ? 1.0 : 1.0 / static_cast<double>(ins);
                    std::vector<std::vector<T>> a, expected;
                    for (int64_t k = 0; k < 5; ++k) a.push_back(bits<T>(dtype, n + offset + 8, static_cast<unsigned>(n * 1000 + ins * 100 + k)));
                    expected = a;
                    auto const pointers = [&](std::vector<std::vector<T>>& arrays, int64_t count) {
                        std::vector<void*> p;
                        for (int64_t k = 0; k < count; ++k) p.push_back(arrays[static_cast<size_t>(k)].data() + offset);
                        return p;
                    };
                    auto const in = pointers(a, ins), out = pointers(a, outs), in2 = pointers(expected, ins), out2 = pointers(expected, outs);
                    auto const as_in = [](std::vector<void*> const& p) { return const_cast<void const* const*>(p.data()); };
                    auto const done = kernel(reinterpret_cast<T* const*>(out.data()), outs, reinterpret_cast<T const* const*>(as_in(in)), ins, n, static_cast<Factor>(factor));
                    comm::detail::reduce_portable<Element>({out2.data(), outs, as_in(in2), ins, factor}, Reduction::Mean, 0, done);
                    ++cases;
                    wrong += done != n / width * width;
                    for (size_t k = 0; k < 5; ++k)
                        for (size_t i = 0; i < a[k].size(); ++i) {
                            // A NaN is a NaN, whichever.
                            auto const nan = [&](T v) {
                                Element e;
                                std::memcpy(&e, &v, sizeof e);
                                return std::isnan(static_cast<double>(static_cast<std::conditional_t<sizeof(T) == 8, double, float>>(e)));
                            };
                            wrong += std::memcmp(&a[k][i], &expected[k][i], sizeof(T)) != 0 && !(nan(a[k][i]) && nan(expected[k][i]));
                        }
                }
    CHECK(wrong == 0);
    CHECK(cases == 16 * 5 * 5 * 3);
}

}  // namespace

#if defined(__x86_64__)
TEST_CASE("vector kernels give the bits of the portable loop, and touch nothing else", "[kernels]") {
    namespace kernel = comm::kernel;
    auto const& cpu = kernel::Processor::get();
    if (!cpu.avx2) return;
    compare_kernel<float>(at::kFloat, kernel::sum_f32_avx2, 32);
    compare_kernel<double>(at::kDouble, kernel::sum_f64_avx2, 8);
    compare_kernel<c10::BFloat16>(at::kBFloat16, kernel::sum_bf16_avx2, 8);
    if (cpu.f16c) compare_kernel<c10::Half>(at::kHalf, kernel::sum_f16_avx2, 8);
    if (cpu.avx512) compare_kernel<float>(at::kFloat, kernel::sum_f32_avx512, 64);
}
#endif

TEST_CASE("reduce takes any number of arrays, any length, and works in place", "[reduce][kernels]") {
    for (auto const dtype : conformance::numbers())
        for (auto const how : {Reduction::Sum, Reduction::Max, Reduction::Min})
            for (int64_t const n : {1, 8, 77}) {
                if (!comm::why_not(how, dtype).empty()) continue;
                CAPTURE(c10::toString(dtype), comm::name(how), n);
                std::vector<at::Tensor> t;
                std::vector<void*> p;
                for (int64_t k = 0; k < 3; ++k) t.push_back(conformance::pattern(k, {n}, dtype)), p.push_back(t.back().data_ptr());
                auto const exact = conformance::reference(3, {n}, dtype, how);
                comm::reduce({p.data(), 3, p.data(), 3}, dtype, how, n);
                for (auto const& x : t) CHECK(at::equal(conformance::widened(x), exact));
            }
    float one = 3, two = 5;
    void const* in[]{&one, &two};
    void* out[]{&two};
    comm::reduce({out, 1, in, 2, 0.25}, at::kFloat, Reduction::Mean, 1);
    CHECK((two == 2 && one == 3));
}

TEST_CASE("more ranks than a reduction has places for on its stack", "[reducer][threads]") {
    conformance::run(OnThreads{20}, "20 ranks", [](comm::Threads const& c, conformance::Findings& found) {
        auto const n = c.size();
        for (int64_t const numel : {3, 5000}) {
            auto const t = at::full({numel}, c.rank());
            c.all_reduce(t, Reduction::Sum);
            found.expect(conformance::every(t.eq(n * (n - 1) / 2)), "sum");
        }
        auto const b = c.allocate(2000, at::kFloat);
        b.tensor().fill_(static_cast<double>(c.rank()));
        c.all_reduce(b, 0, 2000, Reduction::Mean);
        found.expect(conformance::every((b.tensor() - 9.5).abs().lt(1e-5)), "buffer");
    });
}

// ---- memory --------------------------------------------------------------------------------------------------------------------

namespace {

/// The exchange of an assembly of one.
std::vector<std::string> echo(std::string_view mine) { return {std::string(mine)}; }

}  // namespace

TEST_CASE("regions are zeroed, aligned, and live as long as anybody holds a part", "[region][memory_source]") {
    comm::Region part;
    {
        auto const whole = comm::Region::heap(10000);
        CHECK((whole && whole.bytes == 10000 && reinterpret_cast<uintptr_t>(whole.data) % 4096 == 0));
        CHECK(std::all_of(whole.data, whole.data + 10000, [](std::byte b) { return b == std::byte{0}; }));
        part = whole.part(5000, 100);
        CHECK(part.data == whole.data + 5000);
    }
    std::memset(part.data, 1, part.bytes);
    CHECK_FALSE(comm::Region{});
    CHECK(comm::Region::heap(0));
    comm::ThreadMemory source;
    auto const own = source.share(100, echo, {0}, 0);
    CHECK((own && own.bytes == 100 && own.owner.use_count() == 1));
}

TEST_CASE("slices cover a range once, on cache lines", "[buffer]") {
    for (int64_t const size : {1, 2, 3, 4, 7, 64})
        for (auto const& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 0}, {0, 1}, {5, 7}, {0, 64}, {3, 1003}, {16, 4096}, {100, 101}, {0, int64_t{3} << 31}}) {
            int64_t at = begin;
            for (int64_t r = 0; r < size; ++r) {
                auto const [lo, hi] = comm::Buffer::slice(begin, end, r, size);
                CHECK((lo == at && hi >= lo && (lo == begin || lo == end || lo % 16 == 0)));
                CHECK(hi - lo <= (end - begin) / size + 32);
                at = hi;
            }
            CHECK(at == end);
        }
    CHECK(comm::Buffer::part_bytes(0, at::kFloat) == 4096);
    CHECK(comm::Buffer::part_bytes((int64_t{1} << 31) + 1, at::kDouble) > size_t{1} << 34);
    CHECK(comm::Buffer().numel() == 0);
    at::Tensor kept;
    {
        auto const c = comm::Self();
        auto const b = c.allocate(100, at::kFloat);
        kept = b.tensor();
        CHECK_THROWS_AS(b.reduced(1), std::out_of_range);
        CHECK(b.reduced(0).data_ptr() == kept.data_ptr());
    }
    kept.fill_(3);
    CHECK(kept.sum().item<double>() == 300);
}

TEST_CASE("processes share memory that no folder shows", "[process_memory]") {
    using comm::SharedMemory;
    auto const folder = conformance::dumps() / "memory";
    std::filesystem::create_directories(folder);
    for (auto const kind : {SharedMemory::Automatic, SharedMemory::Anonymous, SharedMemory::File}) {
        comm::ProcessMemory source(kind, folder);
        auto const region = source.share(10000, echo, {0}, 0);
        REQUIRE(region);
        CHECK(std::all_of(region.data, region.data + 10000, [](std::byte b) { return b == std::byte{0}; }));
        CHECK(source.sees_processes() == (kind != SharedMemory::File));
        CHECK(std::filesystem::is_empty(folder));
    }
    comm::ProcessMemory none(SharedMemory::None);
    CHECK_FALSE(none.share(100, echo, {0}, 0));
    // No room there, whoever asks; and no such folder.
    for (auto const* where : {"/proc", "/no/such/folder"}) CHECK_FALSE(comm::ProcessMemory(SharedMemory::File, where).share(100, echo, {0}, 0));
    // A member of the assembly could not map it: nobody has it.
    auto const refused = [](std::string_view mine) { return std::vector<std::string>{std::string(mine), mine.size() == 1 ? std::string(1, '\0') : std::string(mine)}; };
    CHECK_FALSE(comm::ProcessMemory(SharedMemory::File, folder).share(100, refused, {0}, 0));
    CHECK(std::filesystem::is_empty(folder));
    // A peer is lost on the way: no file stays.
    auto const lost = [](std::string_view) -> std::vector<std::string> { throw acc::Error(acc::code::peer_lost, "on the way"); };
    CHECK_THROWS(comm::ProcessMemory(SharedMemory::File, folder).share(100, lost, {0}, 0));
    CHECK(std::filesystem::is_empty(folder));
}

TEST_CASE("two processes see the same memory; one that is killed leaves nothing and is known to be dead", "[process_memory][family]") {
    auto const folder = conformance::dumps() / "killed";
    std::filesystem::create_directories(folder);
    auto const kind = GENERATE(comm::SharedMemory::Anonymous, comm::SharedMemory::File);
    int up[2], down[2];
    REQUIRE((pipe(up) == 0 && pipe(down) == 0));
    auto const talk = [](int from, int to, bool first) {
        return comm::Exchange([=](std::string_view mine) {
            std::string theirs(mine.size(), '\0');
            if (write(to, mine.data(), mine.size()) != static_cast<ssize_t>(mine.size())) throw std::runtime_error("write");
            for (size_t have = 0; have < theirs.size();) {
                auto const n = read(from, theirs.data() + have, theirs.size() - have);
                if (n <= 0) throw std::runtime_error("read");
                have += static_cast<size_t>(n);
            }
            return first ? std::vector<std::string>{std::string(mine), theirs} : std::vector<std::string>{theirs, std::string(mine)};
        });
    };
    auto const child = fork();
    if (child == 0) {
        comm::ProcessMemory source(kind, folder);
        auto const region = source.share(1 << 20, talk(up[0], down[1], false), {0, 1}, 1);
        comm::Family family(region, 1, 1, 2);
        family.set_pid(getpid());
        for (;;) pause();
    }
    comm::ProcessMemory source(kind, folder);
    auto const region = source.share(1 << 20, talk(down[0], up[1], true), {0, 1}, 0);
    REQUIRE(region);
    CHECK(std::filesystem::is_empty(folder));
    comm::Family family(region, 0, 0, 2);
    auto const* const theirs = reinterpret_cast<comm::Presence*>(region.data) + 1;
    for (int i = 0; i < 5000 && theirs->pid.load() == 0; ++i) std::this_thread::sleep_for(milliseconds(1));
    CHECK(theirs->pid.load() == child);
    CHECK_FALSE(family.dead(1));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    CHECK(family.dead(1));
    CHECK_FALSE(family.gone(1));
    CHECK(std::filesystem::is_empty(folder));
    for (int const fd : {up[0], up[1], down[0], down[1]}) close(fd);
}

// ---- waiting and meeting -------------------------------------------------------------------------------------------------------

TEST_CASE("a wait pauses some 200 times, then yields, and looks around", "[wait]") {
    int64_t asked = 0, looked = 0;
    comm::wait_until([&] { return ++asked == 1; }, [&](comm::Clock::duration) { ++looked; });
    CHECK((asked == 1 && looked == 0));
    asked = 0;
    int64_t at_first_look = 0;
    comm::Clock::duration last{0};
    comm::wait_until([&] { return ++asked, last > milliseconds(30) && looked >= 3; },
                     [&](comm::Clock::duration elapsed) {
                         if (looked++ == 0) at_first_look = asked;
                         CHECK(elapsed >= last);
                         last = elapsed;
                     });
    CHECK((at_first_look > 200 && at_first_look < 400));
    CHECK_THROWS_AS(comm::wait_until([] { return false; }, [](comm::Clock::duration) { throw std::out_of_range("enough"); }), std::out_of_range);
}

TEST_CASE("pieces are copied in the way that was faster at first", "[stage_copy]") {
    for (bool const past_is_slow : {true, false}) {
        acc::comm::StageCopy copy;
        std::vector<std::byte> from((64 << 10) + 7), to(from.size());
        for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<std::byte>(i * 31);
        int past = 0;
        auto const round = [&](size_t n) {
            acc::comm::StageCopy::Round const timed(copy, n);
            past += copy.goes_past_caches();
            std::fill(to.begin(), to.end(), std::byte{0});
            copy(to.data(), from.data(), n);
            CHECK(std::equal(to.begin(), to.begin() + static_cast<std::ptrdiff_t>(n), from.begin()));
            if (copy.goes_past_caches() == past_is_slow) std::this_thread::sleep_for(std::chrono::milliseconds(5));
        };
        for (size_t const n : std::initializer_list<size_t>{0, 1, 4096}) round(n);  // too small to tell
        CHECK(past == 0);
        for (int i = 0; i < 16; ++i) round(from.size());
        CHECK(past == 8);
        for (int i = 0; i < 8; ++i) round(from.size());
        CHECK(past == (past_is_slow ? 8 : 16));
        round(3);
    }
}

TEST_CASE("a family knows who left, and only the first reason counts", "[family]") {
    auto const memory = comm::Region::heap(comm::Family::bytes(2));
    comm::Family me(memory, 0, 0, 2), other(memory, 1, 1, 2);
    CHECK_FALSE(me.gone(1));
    CHECK_FALSE(me.dead(1));
    other.leave("first");
    other.leave("second");
    CHECK(me.gone(1) == "first");
    CHECK_FALSE(me.gone(0));
    me.leave(std::string(5000, 'x'));
    CHECK(other.gone(0)->size() == comm::Presence::max_reason - 1);
}

TEST_CASE("control: who called what, and who is gone", "[control]") {
    auto const memory = comm::Region::heap(comm::Control::bytes(2)), presence = comm::Region::heap(comm::Family::bytes(2));
    auto const make = [&](int64_t me) {
        // The members are ranks 4 and 6 of a larger communicator.
        return std::make_unique<comm::Control>(memory, me, std::vector<int64_t>{4, 6}, std::vector<int64_t>{0, 1}, std::make_shared<comm::Family>(presence, me, me, 2));
    };
    auto first = make(0), second = make(1);
    first->family().recorder.set_directory(conformance::dumps());
    CHECK(first->last_call(1) == "it has made no call on this communicator");
    auto const a = call_of(comm::Operation::AllReduce, {4}), b = call_of(comm::Operation::AllReduce, {5});
    auto const meet = [&](comm::Call const& mine, comm::Call const& theirs) {
        std::thread other([&] { second->announce(theirs), second->arrive(); });
        first->announce(mine), first->arrive();
        other.join();
    };
    meet(a, a);
    CHECK((first->agreed() && second->agreed() && first->number() == 1 && first->phase() == 1));
    first->finished(), second->finished();
    CHECK(first->last_call(1) == "its last call was all_reduce(sum) of Float [4], operation 1 (finished)");
    meet(a, b);
    CHECK((!first->agreed() && !second->agreed()));
    CHECK(first->disagreement() == "rank 4 called all_reduce(sum) of Float [4]; rank 6 called all_reduce(sum) of Float [5]");
    CHECK(first->here() == "all_reduce(sum) of Float [4] on rank 4 (operation 2 of communicator 0)");
    CHECK(first->last_call(1) == "its last call was all_reduce(sum) of Float [5], operation 2 (still in it)");
    CHECK(first->lost(1, true).empty());
    first->finished();
    // Its process has ended without a word.
    auto const child = fork();
    if (child == 0) std::_Exit(0);
    waitpid(child, nullptr, 0);
    second->family().set_pid(child);
    CHECK(first->lost(1, false).empty());
    first->announce(a);
    CHECK(lacks([&] { first->arrive(); }, {"E_PEER_LOST", "rank 6 is gone: its process has ended; its last call was all_reduce(sum) of Float [5], operation 2"}) == "");
    second->family().set_pid(0);
    second.reset();
    CHECK(first->lost(1, false) == "it has dropped this communicator");
    first->announce(a);
    CHECK(lacks([&] { first->arrive(); }, {"E_PEER_LOST", "rank 6 is gone: it has dropped this communicator", "operation 4"}) == "");
    first->abandon(acc::Error(acc::code::peer_lost, "as said"));
    CHECK(lacks([&] { first->announce(a); }, {"E_PEER_LOST: as said"}) == "");
}

namespace {

/// A communicator over a group that was put together by hand.
struct Hand : comm::Operations<Hand> {
    explicit Hand(std::shared_ptr<comm::Group> g) : Operations(std::move(g)) {}
    using Operations::group;
};

/// The other node, as the test wants it.
struct Scripted final : comm::Bridge {
    std::function<std::vector<std::string>(std::string const&)> answer = [](std::string const& mine) { return std::vector<std::string>{mine, mine}; };
    std::string bar, said;
    int64_t exchanges = 0;

    std::string_view barred() const override { return bar; }
    std::vector<std::string> exchange(std::string const& mine, Deadline) override { return ++exchanges, answer(mine); }
    void farewell(std::string_view why) noexcept override { said = why; }
    void all_reduce(void*, int64_t, at::ScalarType, Reduction, Deadline) override {}
    void broadcast(void*, int64_t, int64_t, Deadline) override {}
    void all_gather(void const*, void*, std::span<int64_t const>, Deadline) override {}
    void gather(void const*, void*, std::span<int64_t const>, int64_t, Deadline) override {}
    void scatter(void const*, void*, int64_t, int64_t, Deadline) override {}
    void all_to_all(void const*, void*, int64_t, Deadline) override {}
    void send(int64_t, comm::Envelope const&, void const*, std::function<void()> const&, Deadline) override {}
    std::optional<std::pair<int64_t, comm::Message>> poll() override { return {}; }
    std::unique_ptr<Bridge> split(int64_t, std::vector<int64_t> const&, int64_t) override { return nullptr; }
};

/// Two ranks of one node, and a third on another one that is only scripted.
template <class Script, class F>
void on_a_node(Script&& script, F&& f) {
    auto const options = comm::transport_options{}.fitted(2);
    auto const memory = comm::Region::heap(comm::Group::bytes(2, options)), presence = comm::Region::heap(comm::Family::bytes(2));
    auto const rank = [&](int64_t me) {
        comm::Group::Parts parts;
        parts.who = {.rank = me, .size = 3, .local_rank = me, .local_size = 2, .nodes = {0, 0, 1}, .hosts = {0, 0, 1}, .ranks = {0, 1}, .me = me};
        parts.members = {0, 1};
        parts.family = std::make_shared<comm::Family>(presence, me, me, 3);
        parts.family->recorder.set_directory(conformance::dumps());
        parts.memory = memory, parts.options = options, parts.source = std::make_shared<comm::ThreadMemory>();
        auto bridge = std::make_unique<Scripted>();
        auto* const scripted = bridge.get();
        script(*scripted);
        parts.bridge = std::move(bridge);
        f(Hand(std::make_shared<comm::Group>(std::move(parts))), *scripted);
    };
    std::thread other([&] { rank(1); });
    rank(0);
    other.join();
}

}  // namespace

TEST_CASE("what goes wrong between nodes reaches every rank of the node", "[group][bridge]") {
    std::mutex mutex;
    std::string wrong;
    auto const expect = [&](std::string const& what) {
        std::lock_guard lock(mutex);
        if (!what.empty()) wrong += what + "\n";
    };
    SECTION("all agree") {
        on_a_node([](Scripted&) {}, [&](Hand const& c, Scripted& bridge) {
            for (int i = 0; i < 5; ++i) c.barrier();
            expect(bridge.exchanges == (c.rank() == 0 ? 5 : 0) ? "" : "only the leader speaks");
        });
    }
    SECTION("nobody comes") {
        on_a_node([](Scripted& b) { b.answer = [n = 0](std::string const& mine) mutable -> std::vector<std::string> {
                      if (n++ == 0) return {mine, mine};
                      throw acc::Error(acc::code::deadline, "waited long");
                  }; },
                  [&](Hand const& c, Scripted& bridge) {
                      c.barrier();
                      auto const here = concat("all_reduce(sum) of Float [4] on rank ", c.rank());
                      auto const words = std::vector<std::string>{"E_DEADLINE", here, "waited long", "the last call that all joined was barrier, operation 1"};
                      expect(lacks([&] { c.all_reduce(at::ones({4})); }, words));
                      expect(lacks([&] { c.barrier(); }, words));  // what was cut short stays so
                      expect(bridge.exchanges == (c.rank() == 0 ? 2 : 0) ? "" : "exchanges");
                      expect((c.rank() == 0) == (bridge.said.find("waited long") != std::string::npos) ? "" : "the leader says farewell");
                  });
    }
    SECTION("a fault that is no Error") {
        on_a_node([](Scripted& b) { b.answer = [](std::string const&) -> std::vector<std::string> { throw std::runtime_error("cable cut"); }; },
                  [&](Hand const& c, Scripted&) { expect(lacks([&] { c.barrier(); }, {"E_INTERNAL", "cable cut", concat("on rank ", c.rank())})); });
    }
    SECTION("the other node disagrees") {
        on_a_node([](Scripted& b) { b.answer = [](std::string const& mine) {
                      auto theirs = mine;
                      theirs[0] = static_cast<char>(theirs[0] + 1);  // the operation is the first byte of the fingerprint
                      return std::vector<std::string>{mine, theirs};
                  }; },
                  [&](Hand const& c, Scripted& bridge) {
                      for (int i = 0; i < 2; ++i) expect(lacks([&] { c.barrier(); }, {"E_COLLECTIVE_MISMATCH", "called barrier"}));
                      expect(bridge.said.empty() ? "" : "a mismatch is no farewell");
                  });
    }
    SECTION("a rank refuses, leader or not") {
        for (int64_t const who : {0, 1})
            on_a_node([](Scripted&) {}, [&](Hand const& c, Scripted&) {
                auto const bad = [&] { c.all_reduce(at::Tensor()); };
                expect(c.rank() == who ? lacks(bad, {"E_CONFIG", "undefined"}) : lacks([&] { c.all_reduce(at::ones({4})); }, {"E_COLLECTIVE_MISMATCH", "refused"}));
                expect(lacks(bad, {"E_CONFIG", "undefined"}));
                c.barrier();
            });
    }
    SECTION("a thread that may not speak") {
        on_a_node([](Scripted& b) { b.bar = "not from this thread"; }, [&](Hand const& c, Scripted&) { expect(lacks([&] { c.barrier(); }, {"E_CONFIG", "not from this thread"})); });
    }
    SECTION("leaving") {
        on_a_node([](Scripted&) {}, [&](Hand const& c, Scripted& bridge) {
            c.barrier();
            c.leave("done");
            expect(bridge.said == (c.rank() == 0 ? "E_PEER_LOST: rank 0 is gone: done" : "") ? "" : bridge.said);
        });
    }
    CHECK(wrong == "");
}

TEST_CASE("errors travel as text", "[bridge]") {
    for (auto const& c : acc::code::general) {
        auto const e = comm::error_from(acc::Error(c, "text: more").what());
        CHECK(e.code() == c);
        CHECK(std::string(e.what()) == concat(c, ": text: more"));
    }
    CHECK(std::string(comm::error_from("no code").what()) == "E_INTERNAL: no code");
    CHECK(std::string(comm::error_from("E_IO").what()) == "E_IO: ");
}

TEST_CASE("areas fit any number of ranks and any options", "[group]") {
    comm::transport_options const tiny{.stage_bytes = 1, .pipe_bytes = 1, .small_bytes = 100}, wrong{.stage_bytes = -5, .pipe_bytes = 0, .small_bytes = -1};
    for (int64_t const n : {1, 2, 3, 64, 100, 1000})
        for (auto const& given : {comm::transport_options{}, tiny, wrong}) {
            auto const o = given.fitted(n);
            CHECK((o.stage_bytes % 64 == 0 && o.pipe_bytes % 64 == 0 && o.pipe_bytes >= 64));
            CHECK(o.stage_bytes >= 16 * n);  // an element of every dtype for each rank
            CHECK((o.small_bytes >= 0 && o.small_bytes <= o.stage_bytes));
            if (n <= 100) CHECK(comm::Group::bytes(n, o) < size_t{48} << 20);  // within a /dev/shm of 64 MB
        }
    struct Peek : Hand {
        explicit Peek(comm::Threads const&) : Hand(comm::solo()) {}
    };
    CHECK(Peek(comm::Threads::world()).group()->deadline() == std::chrono::seconds(600));
}

TEST_CASE("an operation that is cut short in its middle ends the communicator for all, soon", "[group][transfer]") {
    conformance::run(OnThreads{3}, "cut short", [](comm::Threads const& c, conformance::Findings& found) {
        auto const other = c.duplicate();
        struct Reach : comm::Threads {
            explicit Reach(comm::Threads const& t) : Threads(t) {}
            using Threads::group;
        };
        auto& g = *Reach(other).group();
        auto const call = call_of(comm::Operation::AllGatherBytes, {});
        auto const f = [&] {
            g.operation(call, {}, [&] {
                comm::transfer::gather(g, "x", 1, 1, -1, [&](std::vector<int64_t> const&) -> void* {
                    if (c.rank() == 1) throw std::bad_alloc();
                    static std::array<char, 64> room;
                    return room.data();
                });
            });
        };
        if (c.rank() == 1) {
            try {
                f();
                found.expect(false, "nothing was thrown");
            } catch (std::bad_alloc const&) {
            }
            found.fails(acc::code::internal, {"bad_alloc"}, [&] { other.barrier(); });
        } else {
            found.fails(acc::code::peer_lost, {"rank 1 is gone", "gave up"}, [&] { f(), other.barrier(); });
        }
        c.barrier();
    });
}

TEST_CASE("a call that is carried out elsewhere is agreed upon here", "[operations][recorder][transfer]") {
    conformance::run(OnThreads{3}, "elsewhere", [](comm::Threads const& c, conformance::Findings& found) {
        auto const before = c.recorder().count();
        auto const call = comm::described(comm::Operation::AllGather, at::ones({c.rank(), 2}));
        std::array<int64_t, 100> mine{};
        mine.fill(c.rank() + 7);
        auto const all = c.agree_before(call, mine);
        found.expect(c.recorder().count() == before, "what goes before a call is not recorded");
        for (int64_t r = 0; r < c.size(); ++r) found.expect(all[static_cast<size_t>(r)].front() == r + 7 && all[static_cast<size_t>(r)].back() == r + 7, "every rank's, in order");

        auto ragged = call;
        ragged.count = c.rank();
        found.expect(c.announce_ragged(ragged) == std::vector<int64_t>{0, 1, 2}, "every rank's count");
        c.announce(comm::described(comm::Operation::Broadcast, at::ones({4}), 1));
        found.expect(c.recorder().count() == before + 2, "calls are recorded");

        // One rank's tensor is on a device, the others' are not.
        found.fails(acc::code::collective_mismatch, {"rank 1 called all_reduce(sum) of Float [4] on a device", "ranks 0, 2 called all_reduce(sum) of Float [4]"}, [&] {
            c.rank() == 1 ? c.announce(comm::described(comm::Operation::AllReduce, at::ones({4}))) : c.all_reduce(at::ones({4}));
        });
        found.fails(acc::code::collective_mismatch, {"rank 2 called barrier"}, [&] {
            if (c.rank() == 2) c.barrier();
            else c.agree_before(call, mine);
        });
        found.fails(acc::code::config, {"it does not fit"}, [&] { c.announce_ragged(ragged, "it does not fit"); });
        auto const late = c.duplicate();
        late.set_deadline(std::chrono::milliseconds(200));
        if (c.rank() != 0) found.fails(acc::code::deadline, {"all_gather of Float", "rank 0 has not arrived"}, [&] { late.agree_before(call, mine); });
        c.barrier();
        std::filesystem::remove(c.recorder().path());
    });
}

TEST_CASE("places in a part of a communicator", "[split]") {
    // Six ranks: two machines, of which each pretends to be nodes of two and one.
    comm::Membership whole;
    whole.rank = 4, whole.size = 6, whole.nodes = {0, 0, 2, 3, 3, 5}, whole.hosts = {0, 0, 0, 3, 3, 3};
    auto const part = comm::part_of(whole, {5, 4, 3, 1});
    CHECK((part.rank == 1 && part.size == 4));
    CHECK(part.nodes == std::vector<int64_t>{5, 3, 3, 0});
    CHECK((part.local_size == 3 && part.local_rank == 1));
    CHECK(part.ranks == std::vector<int64_t>{1, 2});
    CHECK(part.me == 0);
}

// ---- letters -------------------------------------------------------------------------------------------------------------------

TEST_CASE("letters go through pipes of any size, in order, and a broken pipe says so", "[mailbox]") {
    for (auto const capacity : std::vector<size_t>{64, 128, 4096}) {
        auto const memory = comm::Region::heap(comm::Mailbox::bytes(2, capacity));
        comm::Mailbox a(memory.data, capacity, 0, {7, 9}), b(memory.data, capacity, 1, {7, 9});
        // The receiver empties its pipe whenever the sender waits.
        auto const wait = [&](auto&& ready) {
            while (!ready()) b.take_in();
        };
        auto const text = [](size_t n) {
            std::string s(n, ' ');
            for (size_t i = 0; i < n; ++i) s[i] = static_cast<char>('a' + i % 23);
            return s;
        };
        for (auto const n : std::vector<size_t>{0, 1, 63, 64, 65, 1000, 20000}) {
            auto const s = text(n);
            a.send(1, {.tag = static_cast<int64_t>(n % 2), .bytes = static_cast<int64_t>(n), .call = {}}, s.data(), wait);
        }
        b.take_in();
        CHECK_FALSE(b.take(7, 5));
        CHECK_FALSE(b.take(9, 0));
        for (auto const n : std::vector<size_t>{1, 63, 65, 0, 64, 1000, 20000}) {
            auto const m = b.take(7, static_cast<int64_t>(n % 2));
            REQUIRE(m);
            CHECK(std::string(reinterpret_cast<char const*>(m->payload.data()), m->payload.size()) == text(n));
        }
        a.send(0, {.tag = 1, .bytes = 2, .call = {}}, "me", wait);
        CHECK(a.take(7, 1));
        auto const s = text(100000);
        CHECK_THROWS_AS(a.send(1, {.tag = 1, .bytes = 100000, .call = {}}, s.data(), [](auto&&) { throw std::out_of_range("no more"); }), std::out_of_range);
        CHECK(lacks([&] { a.send(1, {.tag = 1, .bytes = 1, .call = {}}, s.data(), wait); }, {"E_PEER_LOST", "rank 9", "cut short"}) == "");
    }
}

TEST_CASE("the last letter of a rank that leaves is not lost", "[letters]") {
    for (int i = 0; i < 12; ++i)
        conformance::run(OnThreads{2}, "last letter", [&](comm::Threads const& c, conformance::Findings& found) {
            if (c.rank() == 0) {
                std::this_thread::sleep_for(milliseconds(22) + std::chrono::microseconds(20 * i));  // the other one sleeps between looks by then
                c.send_bytes("farewell", 1, 3);
                return found.expect(true, "sent");
            }
            found.expect(c.recv_bytes(0, 3) == "farewell", "the letter");
            found.fails(acc::code::peer_lost, {"rank 0 is gone", "recv from 0"}, [&] { c.recv_bytes(0, 4); });
        });
}

TEST_CASE("letters and collectives of one communicator may come from different threads", "[letters]") {
    conformance::run(OnThreads{3}, "two threads", [](comm::Threads const& c, conformance::Findings& found) {
        std::string wrong;
        std::thread letters([&] {
            for (int64_t i = 0; i < 100; ++i) {
                c.send_bytes(concat(c.rank(), ' ', i), (c.rank() + 1) % 3, i % 2);
                auto const from = (c.rank() + 2) % 3;
                if (c.recv_bytes(from, i % 2) != concat(from, ' ', i)) wrong = "letter";
            }
        });
        for (int64_t i = 0; i < 100; ++i) {
            auto const t = at::full({2000}, i);
            c.all_reduce(t);
            found.expect(conformance::every(t.eq(3 * i)), "sum");
        }
        letters.join();
        found.expect(wrong.empty(), wrong);
    });
}

// ---- ranks as threads ----------------------------------------------------------------------------------------------------------

TEST_CASE("ranks that are threads: who they are, and what they throw", "[threads][solo]") {
    CHECK(comm::Threads::world().size() == 1);
    CHECK(comm::Self::world().size() == 1);
    std::array<int64_t, 3> ranks{}, named{};
    comm::Threads::run(3, [&](comm::Threads const& c) {
        auto const world = comm::Threads::world();
        ranks[static_cast<size_t>(c.rank())] = world.rank() + 10 * world.size();
        named[static_cast<size_t>(c.rank())] = acc::Session::instance().rank();
    });
    CHECK(ranks == std::array<int64_t, 3>{30, 31, 32});
    CHECK(named == std::array<int64_t, 3>{0, 1, 2});
    CHECK(comm::Threads::world().size() == 1);
    CHECK(lacks([] { comm::Threads::run(0, [](comm::Threads const&) {}); }, {"E_CONFIG"}) == "");

    // The first that was thrown comes out; peers hear of it, whoever waits for what.
    std::array<std::string, 3> heard;
    CHECK(lacks([&] {
              comm::Threads::run(3, [&](comm::Threads const& c) {
                  c.recorder().set_directory(conformance::dumps());
                  if (c.rank() == 1) throw std::runtime_error("the dog ate it");
                  auto const wait = [&] { c.rank() == 0 ? c.barrier() : static_cast<void>(c.recv_bytes(1)); };
                  heard[static_cast<size_t>(c.rank())] = lacks(wait, {"E_PEER_LOST", "rank 1 is gone: it threw: the dog ate it"});
              });
          },
                {"the dog ate it"}) == "");
    CHECK((heard[0].empty() && heard[2].empty()));
    CHECK_THROWS_AS(comm::Threads::run(2, [](comm::Threads const& c) { if (c.rank() == 0) throw 7; }), int);
    // It came to its end; nobody need wait.
    comm::Threads::run(2, [&](comm::Threads const& c) {
        c.recorder().set_directory(conformance::dumps());
        if (c.rank() == 0) heard[0] = lacks([&] { c.barrier(); }, {"E_PEER_LOST", "rank 1 is gone: it has dropped this communicator", "no call"});
    });
    CHECK(heard[0] == "");
}

// ---- the flight recorder -------------------------------------------------------------------------------------------------------

TEST_CASE("the recorder is dumped while it is written, and never throws", "[recorder]") {
    comm::Recorder recorder(3, 4);
    recorder.set_directory(conformance::dumps());
    ForeignLocale const foreign;
    std::atomic<bool> stop = false;
    std::thread writer([&] {
        for (uint64_t i = 0; !stop; ++i) {
            comm::Recorder::Entry entry(recorder, call_of(comm::Operation::AllReduce, {static_cast<int64_t>(i % 9), 2}), i, 1);
            if (i % 3 != 0) entry.finished();
        }
    });
    for (int i = 0; i < 20; ++i) {
        auto const path = recorder.dump("test");
        CHECK(path == conformance::dumps() / concat("accelerate-flight-", getpid(), "-rank3.json"));
        CHECK(path == recorder.path());
        auto const j = conformance::parsed(path);
        CHECK((j.is_object() && j["rank"] == 3 && j["size"] == 4));
    }
    stop = true;
    writer.join();
    recorder.set_directory("/no/such/folder");
    CHECK(recorder.dump("test").empty());
    // Nor for want of a folder for temporary files.
    std::string const before = std::getenv("TMPDIR");
    setenv("TMPDIR", "/no/such/folder", 1);
    CHECK(comm::Recorder(0, 1).path().parent_path() == "/tmp");
    setenv("TMPDIR", before.c_str(), 1);
}

TEST_CASE("SIGUSR2 is left to an application that wants it", "[recorder_signal]") {
    auto const self = comm::Self();  // here the library has it, and a child inherits that
    auto const status_of = [](auto&& body) {
        auto const child = fork();
        if (child == 0) std::_Exit(body());
        int status = 0;
        waitpid(child, &status, 0);
        return status;
    };
    // A forked child has no thread that would write; the signal does nothing there.
    CHECK(status_of([] { return raise(SIGUSR2), 5; }) == 5 << 8);
    struct sigaction now {};
    REQUIRE(sigaction(SIGUSR2, nullptr, &now) == 0);
    CHECK(now.sa_handler != SIG_DFL);
    // Two runs in one process have files of their own, and both are written.
    auto const other = comm::Self();
    std::vector<std::filesystem::path> paths;
    for (auto const& c : {self, other}) c.recorder().set_directory(conformance::dumps()), paths.push_back(c.recorder().path()), std::filesystem::remove(paths.back());
    CHECK(paths[0].filename() == concat("accelerate-flight-", getpid(), "-rank0.json"));
    CHECK(paths[1].filename() == concat("accelerate-flight-", getpid(), "-rank0-1.json"));
    raise(SIGUSR2);
    for (auto const& path : paths) {
        for (int i = 0; i < 500 && !conformance::parsed(path).is_object(); ++i) std::this_thread::sleep_for(milliseconds(10));
        CHECK(conformance::parsed(path)["reason"] == "SIGUSR2");
    }
    // Recorders that are gone are not dumped: nothing to see here but that it does not crash.
    for (int i = 0; i < 20; ++i) {
        std::thread maker([] { comm::Self().recorder().set_directory(conformance::dumps()); });
        raise(SIGUSR2);
        maker.join();
    }
}

// ---- the worker ----------------------------------------------------------------------------------------------------------------

TEST_CASE("the worker does its jobs in order, on one thread, under its maker's name", "[worker]") {
    std::vector<int> order;
    std::set<std::thread::id> threads;
    int64_t named = -1;
    {
        acc::Session::ThreadRank const name(5);
        comm::Worker worker;
        std::vector<comm::Worker::Handle> handles;
        for (int i = 0; i < 100; ++i)
            handles.push_back(worker.submit([&, i] { order.push_back(i), threads.insert(std::this_thread::get_id()), named = acc::Session::instance().rank(); }));
        for (auto const& h : handles) h.wait();
        for (auto const& h : handles) CHECK(h.finished());
    }
    CHECK((order.size() == 100 && std::is_sorted(order.begin(), order.end())));
    CHECK((threads.size() == 1 && !threads.count(std::this_thread::get_id())));
    CHECK(named == 5);
    comm::Worker::Handle const none;
    CHECK(none.finished());
    none.wait();
}

TEST_CASE("a job's exception comes out of every wait, and later jobs are still done", "[worker]") {
    comm::Worker::Handle bad, good;
    auto held = std::make_shared<int>(1);
    std::weak_ptr<int> const watched = held;
    {
        comm::Worker worker;
        bad = worker.submit([held = std::move(held)] { throw std::out_of_range("too far"); });
        good = worker.submit([] {});
        CHECK_THROWS_AS(bad.wait(), std::out_of_range);
        good.wait();
        CHECK(watched.expired());  // what a job holds is let go with it
    }
    CHECK_THROWS_AS(bad.wait(), std::out_of_range);  // also after the worker
    CHECK((good.finished() && bad.finished()));
}

TEST_CASE("the worker's end does what was submitted", "[worker]") {
    int done = 0;
    comm::Worker::Handle last;
    {
        comm::Worker worker;
        worker.submit([] { std::this_thread::sleep_for(milliseconds(10)); });
        for (int i = 0; i < 50; ++i) last = worker.submit([&] { ++done; });
        CHECK_FALSE(last.finished());
    }
    CHECK((done == 50 && last.finished()));
    // Several waiters of one job, who sleep by then.
    comm::Worker worker;
    auto const slow = worker.submit([] { std::this_thread::sleep_for(milliseconds(20)); });
    std::vector<std::thread> waiters;
    for (int i = 0; i < 3; ++i) waiters.emplace_back([&] { slow.wait(); });
    for (auto& w : waiters) w.join();
    CHECK(slow.finished());
}

// ---- nested values -------------------------------------------------------------------------------------------------------------

namespace {

struct Scores {
    at::Tensor loss;
    std::vector<at::Tensor> parts;
    std::map<std::string, std::pair<at::Tensor, double>> named;
    std::optional<at::Tensor> maybe, none;
    int64_t id = 0;
    std::string text;
};

}  // namespace

TEST_CASE("collectives on structs, vectors and maps", "[nested]") {
    auto const ranks = GENERATE(1, 3);
    conformance::run(OnThreads{ranks}, "nested", [](comm::Threads const& c, conformance::Findings& found) {
        auto const n = c.size(), me = c.rank();
        auto const make = [](int64_t r) {
            return Scores{.loss = at::full({}, static_cast<double>(r)), .parts = {at::full({r + 1, 2}, r), at::full({2}, 10 + r)}, .named = {{"a", {at::full({1}, r), 0.5}}},
                          .maybe = at::full({2}, -r), .none = {}, .id = r, .text = concat("rank ", r)};
        };
        auto const mine = make(me);
        auto const g = comm::gather(c, mine);
        found.expect(at::equal(g.loss, at::arange(n).to(at::kFloat)), "a scalar becomes one dimension");
        std::vector<at::Tensor> rows;
        for (int64_t r = 0; r < n; ++r) rows.push_back(at::full({r + 1, 2}, r));
        found.expect(at::equal(g.parts[0], at::cat(rows)), "rows of different numbers");
        found.expect(g.parts[1].size(0) == 2 * n && at::equal(g.named.at("a").first, at::arange(n)) && g.maybe->size(0) == 2 * n && !g.none, "the rest");
        found.expect(g.id == me && g.text == concat("rank ", me) && g.named.at("a").second == 0.5, "what is no tensor stays");
        found.expect(mine.loss.dim() == 0 && mine.parts[0].size(0) == me + 1, "the argument is left alone");

        auto const same = [](int64_t r) { return std::pair(at::full({3}, static_cast<float>(r)), std::vector<at::Tensor>{at::full({2}, r)}); };
        auto const value = same(me);
        auto const sum = comm::reduce(c, value, "sum"), most = comm::reduce(c, value, "max");
        found.expect(conformance::every(sum.first.eq(n * (n - 1) / 2)) && conformance::every(sum.second[0].eq(n * (n - 1) / 2)), "sum");
        found.expect(conformance::every(most.first.eq(n - 1)), "max");
        found.expect(conformance::every(value.first.eq(me)), "a reduced copy");
        found.fails(acc::code::config, {"median"}, [&] { comm::reduce(c, value, "median"); });
        auto leaf = at::ones({2}).requires_grad_();
        found.expect(!comm::reduce(c, leaf, "sum").requires_grad() && conformance::every(leaf.eq(1)), "a leaf is copied");

        auto b = make(me);
        b.parts[0] = at::full({2, 2}, me);  // in place: the same shapes everywhere
        comm::broadcast(c, b, n - 1);
        found.expect(conformance::single(b.loss) == static_cast<double>(n - 1) && conformance::every(b.parts[0].eq(n - 1)), "broadcast");
        found.expect(conformance::every(b.maybe->eq(1 - n)) && b.id == me, "broadcast: the rest");

        at::Tensor undefined;
        found.fails(acc::code::config, {"undefined"}, [&] { comm::gather(c, undefined); });
        found.fails(acc::code::config, {"undefined"}, [&] { comm::reduce(c, undefined, "sum"); });
        found.fails(acc::code::config, {"undefined"}, [&] { comm::broadcast(c, undefined, 0); });
        found.fails(acc::code::config, {"undefined"}, [&] { comm::pad_across_processes(c, undefined, -1); });
        std::vector const absent{undefined};
        found.expect(!comm::gather(c, absent)[0].defined() && !comm::pad_across_processes(c, absent)[0].defined(), "an absent member stays absent");
        // On one rank alone it is no wait of its peers.
        if (n > 1) {
            auto const lone = me == 0 ? undefined : at::ones({2});
            auto const code = me == 0 ? acc::code::config : acc::code::collective_mismatch;
            found.fails(code, {me == 0 ? "undefined" : "refused"}, [&] { comm::gather(c, lone); });
            found.fails(code, {me == 0 ? "undefined" : "refused"}, [&] { comm::pad_across_processes(c, lone); });
        }
    });
}
