// What every communicator promises, written once: `conform(way)` runs these cases on Self, on Threads and on Mpi in all its modes.
//
// A way starts ranks: `way(f)` calls `f(comm)` on every rank with a fresh communicator; `way.size()` says how many there are,
// `way.together(a, b)` whether two of them see the same memory, `way.options()` how large the pieces are in which data travels.
// Expected values come from formulas, and from ATen on the data of all ranks, which every rank can compute for itself.
#pragma once

#include <torch/torch.h>

#include "catch.hpp"  // after LibTorch, which has a CHECK of its own

#include <unistd.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/group.hpp>
#include <accelerate/comm/worker.hpp>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

namespace conformance {

namespace acc = accelerate;
using acc::concat;
using acc::comm::Reduction;
using std::chrono::milliseconds;

/// What one rank found wrong. Catch2's assertions belong to the thread that runs the case, and ranks may be threads.
class Findings {
public:
    explicit Findings(int64_t rank) : rank_(rank) {}

    void expect(bool holds, std::string const& what, int line = __builtin_LINE()) {
        ++checks;
        if (!holds) text += concat("rank ", rank_, ", line ", line, ": ", what, "\n");
    }

    /// `f` throws that error, and its message has all the words.
    template <class F>
    void fails(acc::Code const& code, std::vector<std::string> const& words, F&& f, std::string const& what = "", int line = __builtin_LINE()) {
        try {
            f();
            expect(false, concat(what, " threw nothing, expected ", code), line);
        } catch (acc::Error const& e) {
            expect(e.code() == code, concat(what, " expected ", code, ", got ", e.what()), line);
            for (auto const& word : words) expect(std::string(e.what()).find(word) != std::string::npos, concat(what, " \"", word, "\" is not in: ", e.what()), line);
        } catch (std::exception const& e) {
            expect(false, concat(what, " expected ", code, ", got something else: ", e.what()), line);
        }
    }

    std::string text;
    int64_t checks = 0;

private:
    int64_t rank_;
};

/// What is wrong with the message of what `f` throws: nothing when it has all the words.
template <class F>
std::string lacks(F&& f, std::vector<std::string> const& words) {
    try {
        f();
    } catch (std::exception const& e) {
        for (auto const& word : words)
            if (std::string(e.what()).find(word) == std::string::npos) return concat("\"", word, "\" is not in: ", e.what());
        return "";
    }
    return "nothing was thrown";
}

/// Where flight recorders are told to write.
inline std::filesystem::path const& dumps() {
    static auto const path = [] {
        auto const folder = std::filesystem::temp_directory_path() / "dumps";
        std::filesystem::create_directories(folder);
        return folder;
    }();
    return path;
}

/// Runs a case on every rank, and tells Catch2.
template <class Way, class Case>
void run(Way const& way, char const* name, Case&& body) {
    dumps();
    std::mutex mutex;
    std::string text;
    int64_t checks = 0;
    try {
        way([&](auto const& c) {
            c.recorder().set_directory(dumps());
            Findings found(c.rank());
            try {
                body(c, found);
            } catch (std::exception const& e) {
                found.expect(false, concat("the case ended with: ", e.what()));
            }
            std::lock_guard lock(mutex);
            text += found.text, checks += found.checks;
        });
    } catch (std::exception const& e) {
        text += concat("starting the ranks: ", e.what());
    }
    INFO(name);
    CHECK(text == "");
    CHECK(checks > 0);
}

// ---- data ----------------------------------------------------------------------------------------------------------------------

inline std::vector<at::ScalarType> const& numbers() {
    static std::vector<at::ScalarType> const all{at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kFloat8_e4m3fn, at::kFloat8_e4m3fnuz, at::kFloat8_e5m2, at::kFloat8_e5m2fnuz,
                                                 at::kComplexHalf, at::kComplexFloat, at::kComplexDouble, at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kUInt16,
                                                 at::kUInt32, at::kUInt64};
    return all;
}
/// One of each size, for operations that only move elements.
inline std::vector<at::ScalarType> const& movers() {
    static std::vector<at::ScalarType> const all{at::kBool, at::kFloat8_e5m2, at::kBFloat16, at::kUInt16, at::kFloat, at::kLong, at::kComplexDouble};
    return all;
}
inline bool is_unsigned(at::ScalarType d) { return d == at::kByte || d == at::kUInt16 || d == at::kUInt32 || d == at::kUInt64; }

/// Small integers, so that sums over a few ranks are exact in every dtype.
inline at::Tensor pattern(int64_t rank, at::IntArrayRef shape, at::ScalarType dtype) {
    auto const k = at::arange(c10::multiply_integers(shape), at::kLong) * 7 + rank * 3;
    auto const v = dtype == at::kBool ? k.remainder(3).gt(0).to(at::kLong) : is_unsigned(dtype) ? k.remainder(3) : k.remainder(5) - 2;
    auto const real = v.to(at::kFloat);
    return (c10::isComplexType(dtype) ? at::complex(real, k.remainder(3).to(at::kFloat) - 1).to(dtype) : real.to(dtype)).view(shape);
}

/// In a dtype that holds every value of the other, and for which ATen has arithmetic.
inline at::Tensor widened(at::Tensor const& t) {
    if (t.is_complex()) return t.to(at::kComplexDouble);
    if (t.is_floating_point()) return t.scalar_type() == at::kDouble ? t : t.to(at::kFloat).to(at::kDouble);
    return t.to(at::kLong);
}
template <class Data>
at::Tensor stacked(int64_t ranks, Data&& data) {
    std::vector<at::Tensor> all;
    for (int64_t r = 0; r < ranks; ++r) all.push_back(widened(data(r)));
    return at::stack(all);
}
inline at::Tensor reduced(at::Tensor const& all, Reduction how, at::ScalarType dtype) {
    if (how == Reduction::Max) return all.amax(0);
    if (how == Reduction::Min) return all.amin(0);
    if (dtype == at::kBool) return all.sum(0).gt(0).to(at::kLong);
    return how == Reduction::Mean ? all.sum(0) / all.size(0) : all.sum(0);
}
inline at::Tensor reference(int64_t ranks, at::IntArrayRef shape, at::ScalarType dtype, Reduction how) {
    return reduced(stacked(ranks, [&](int64_t r) { return pattern(r, shape, dtype); }), how, dtype);
}

/// The one value of a tensor.
inline int64_t integer(at::Tensor const& t) { return t.item<int64_t>(); }
inline double single(at::Tensor const& t) { return t.item<double>(); }
inline bool every(at::Tensor const& t) { return t.all().item<bool>(); }

/// Half a unit in the last place, relative, and some slack.
inline double precision_of(at::ScalarType d) {
    switch (d) {
        case at::kFloat8_e5m2: case at::kFloat8_e5m2fnuz: return 0.13;
        case at::kFloat8_e4m3fn: case at::kFloat8_e4m3fnuz: return 0.07;
        case at::kBFloat16: return 4e-3;
        case at::kHalf: case at::kComplexHalf: return 5e-4;
        case at::kFloat: case at::kComplexFloat: return 1e-7;
        default: return 3e-16;
    }
}
inline bool close(at::Tensor const& got, at::Tensor const& exact, at::ScalarType dtype) {
    auto const tolerance = precision_of(dtype) * at::abs(at::view_as_real(exact.to(at::kComplexDouble))) * 2;
    return every(at::abs(at::view_as_real(widened(got).to(at::kComplexDouble)) - at::view_as_real(exact.to(at::kComplexDouble))) <= tolerance);
}

inline std::string raw(at::Tensor const& t) {
    auto const dense = t.resolve_conj().resolve_neg().contiguous();
    return {static_cast<char const*>(dense.data_ptr()), dense.nbytes()};
}
/// Results that must have the same bits on every rank.
class Bits {
public:
    void add(at::Tensor const& t, std::string const& what) { all_.emplace_back(what, raw(t)); }
    /// Collective; once for many results.
    template <class C>
    void compare(C const& c, Findings& found, int line = __builtin_LINE()) const {
        std::string mine;
        for (auto const& [what, bits] : all_) mine += bits;
        for (auto const& theirs : c.all_gather_bytes(mine)) {
            size_t at = 0;
            for (auto const& [what, bits] : all_) found.expect(theirs.compare(at, bits.size(), bits) == 0, concat(what, ": ranks have different bits"), line), at += bits.size();
        }
    }

private:
    std::vector<std::pair<std::string, std::string>> all_;
};

inline std::string label(at::ScalarType d, Reduction how, int64_t n) { return concat(c10::toString(d), ' ', acc::comm::name(how), ' ', n); }

/// Numbers of elements at which something changes: vectors, the copy of small data, the end of a piece, several pieces.
inline std::vector<int64_t> sizes(acc::comm::transport_options const& o, int64_t unit) {
    auto const small = o.small_bytes / unit, stage = o.stage_bytes / unit;
    return {1, 15, 16, 17, 63, 65, small - 1, small, small + 1, stage - 1, stage, stage + 1, 2 * stage + 3};
}

// ---- cases ---------------------------------------------------------------------------------------------------------------------

template <class C>
void reduces_every_dtype(C const& c, Findings& found) {
    Bits results;
    for (auto const dtype : numbers())
        for (auto const how : {Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min}) {
            if (!acc::comm::why_not(how, dtype).empty()) continue;
            std::vector<int64_t> const shape{37, 3};
            auto const t = pattern(c.rank(), shape, dtype);
            c.all_reduce(t, how);
            auto const exact = reference(c.size(), shape, dtype, how);
            auto const what = label(dtype, how, t.numel());
            found.expect(how == Reduction::Mean ? close(t, exact, dtype) : at::equal(widened(t), exact), what);
            results.add(t, what);
        }
    results.compare(c, found);
    // Only these have no such reduction.
    for (auto const dtype : numbers()) {
        auto const integral = c10::isIntegralType(dtype, true), complex = c10::isComplexType(dtype);
        found.expect(acc::comm::why_not(Reduction::Sum, dtype).empty(), "a sum for every dtype");
        found.expect(acc::comm::why_not(Reduction::Mean, dtype).empty() == !integral, "a mean for all but integers");
        found.expect(acc::comm::why_not(Reduction::Max, dtype).empty() == !complex, "a maximum for all but complex numbers");
    }
}

template <class C>
void reduces_every_layout(C const& c, Findings& found) {
    auto const n = c.size();
    auto const check = [&](at::Tensor const& t, char const* what) {
        auto const exact = reference(n, t.sizes(), t.scalar_type(), Reduction::Sum);
        {
            torch::NoGradGuard no_grad;
            t.copy_(pattern(c.rank(), t.sizes(), t.scalar_type()));
        }
        c.all_reduce(t, Reduction::Sum);
        found.expect(at::equal(widened(t.detach().resolve_conj().resolve_neg().contiguous()), exact), what);
    };
    check(at::empty({4, 6}).t(), "transposed");
    check(at::empty({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast), "channels last");
    check(at::empty({}), "0-dim");
    check(at::empty({41}).slice(0, 1), "one float past alignment");
    check(at::empty({41}, at::kBFloat16).slice(0, 1), "one bfloat16 past alignment");
    check(at::empty({6, 7}, at::kComplexFloat).conj(), "a conjugate view");
    check(at::imag(at::zeros({6, 7}, at::kComplexFloat).conj()), "a negative view");
    check(at::empty({3, 4}).requires_grad_(), "a leaf");
    check(at::empty({3, 4}).requires_grad_().t(), "a view of a leaf");
    for (auto const& shape : std::vector<std::vector<int64_t>>{{0}, {0, 3}, {3, 0, 2}}) check(at::empty(shape), "no elements");
    auto const whole = at::full({8, 9}, 99.0);
    check(whole.slice(0, 1, 7).slice(1, 1, 8, 2), "every other column");
    found.expect(integer(whole.eq(99).sum()) >= 72 - 24, "what lies between is not touched");
}

template <class C>
void reduces_every_size(C const& c, Findings& found, acc::comm::transport_options const& options) {
    Bits results;
    for (auto const dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kByte})
        for (auto const n : sizes(options, static_cast<int64_t>(c10::elementSize(dtype)))) {
            auto const t = pattern(c.rank(), {n}, dtype);
            c.all_reduce(t, Reduction::Sum);
            found.expect(at::equal(widened(t), reference(c.size(), {n}, dtype, Reduction::Sum)), label(dtype, Reduction::Sum, n));
            results.add(t, label(dtype, Reduction::Sum, n));
        }
    results.compare(c, found);
}

/// Random numbers: the terms are added in rank order in fp32 and rounded once, where all ranks see the same memory.
template <class C>
void reduces_in_rank_order(C const& c, Findings& found, bool together) {
    Bits results;
    for (auto const dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf})
        for (int64_t const numel : {7, 1000, 3001}) {
            auto const data = [&](int64_t r) {
                auto generator = at::detail::createCPUGenerator(static_cast<uint64_t>(100 * numel + r));
                return at::empty({numel}, at::kDouble).uniform_(-1, 1, generator).to(dtype);
            };
            auto const sum = data(c.rank()), mean = data(c.rank());
            c.all_reduce(sum, Reduction::Sum);
            c.all_reduce(mean, Reduction::Mean);
            results.add(sum, label(dtype, Reduction::Sum, numel)), results.add(mean, label(dtype, Reduction::Mean, numel));
            if (together) {
                auto const wide = dtype == at::kDouble ? at::kDouble : at::kFloat;
                auto exact = data(0).to(wide);
                for (int64_t r = 1; r < c.size(); ++r) exact = exact + data(r).to(wide);
                found.expect(at::equal(sum, exact.to(dtype)), label(dtype, Reduction::Sum, numel));
                found.expect(at::equal(mean, (exact * (1.0 / static_cast<double>(c.size()))).to(dtype)), label(dtype, Reduction::Mean, numel));
            } else {
                auto const exact = stacked(c.size(), data).sum(0);
                auto const error = single(at::abs(widened(sum) - exact).max());
                found.expect(error <= 8 * precision_of(dtype) * static_cast<double>(c.size()), concat(label(dtype, Reduction::Sum, numel), ": error ", error));
            }
        }
    results.compare(c, found);
    // Rounded at every step, 256 + 1 stays 256 in bfloat16.
    auto const t = at::full({40}, c.rank() == 0 ? 256 : 1, at::kBFloat16);
    c.all_reduce(t, Reduction::Sum);
    if (together) found.expect(every(t.eq(at::full({}, static_cast<double>(255 + c.size()), at::kBFloat16))), "16-bit floats are rounded once");
}

template <class C>
void nan_wins(C const& c, Findings& found) {
    auto const nan = std::numeric_limits<double>::quiet_NaN();
    Bits results;
    for (auto const dtype : {at::kFloat, at::kDouble, at::kHalf, at::kBFloat16, at::kFloat8_e4m3fn, at::kFloat8_e5m2})
        for (auto const how : {Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min})
            for (int64_t const n : {3, 203}) {
                // A NaN of every rank in turn, at a place of its own; element 0 has none.
                auto const data = [&](int64_t r) {
                    auto t = pattern(r, {n}, at::kFloat);
                    if (r + 1 < n) t[r + 1] = nan;
                    t[n - 1] = r == c.size() - 1 ? nan : 0.0;
                    return t.to(dtype);
                };
                auto const t = data(c.rank());
                c.all_reduce(t, how);
                auto const exact = stacked(c.size(), data);
                auto const expected = exact.isnan().any(0), got = widened(t).isnan();
                found.expect(at::equal(got, expected), concat("NaN: ", label(dtype, how, n)));
                auto const numbers = expected.logical_not();
                found.expect(close(widened(t).masked_select(numbers), reduced(exact, how, dtype).masked_select(numbers), dtype), concat("beside NaN: ", label(dtype, how, n)));
                results.add(t, concat("NaN: ", label(dtype, how, n)));
            }
    results.compare(c, found);
    auto const infinite = at::full({5}, c.rank() == c.size() - 1 ? std::numeric_limits<float>::infinity() : 1.0f);
    c.all_reduce(infinite, Reduction::Sum);
    found.expect(every(infinite.isinf()), "infinity stays");
}

template <class C>
void integers_wrap(C const& c, Findings& found) {
    for (auto const dtype : {at::kChar, at::kByte, at::kShort, at::kInt, at::kLong}) {
        auto const top = [&] {
            switch (dtype) {
                case at::kChar: return int64_t{std::numeric_limits<int8_t>::max()};
                case at::kByte: return int64_t{std::numeric_limits<uint8_t>::max()};
                case at::kShort: return int64_t{std::numeric_limits<int16_t>::max()};
                case at::kInt: return int64_t{std::numeric_limits<int32_t>::max()};
                default: return std::numeric_limits<int64_t>::max();
            }
        }();
        auto exact = at::full({19}, top, dtype);
        for (int64_t r = 1; r < c.size(); ++r) exact = exact + at::full({19}, top - r, dtype);
        auto const t = at::full({19}, top - c.rank(), dtype);
        c.all_reduce(t, Reduction::Sum);
        found.expect(at::equal(t, exact), concat("overflow of ", c10::toString(dtype)));
    }
    // Signs and the top bit in comparisons.
    auto const t = at::full({4}, c.rank() == 0 ? -1 : 1, at::kLong), u = at::full({4}, c.rank() == 0 ? -1 : 1, at::kLong).view(at::kUInt64);
    c.all_reduce(t, Reduction::Max);
    c.all_reduce(u, Reduction::Max);
    found.expect(every(t.eq(c.size() == 1 ? -1 : 1)), "maximum of signed");
    found.expect(every(u.view(at::kLong).eq(-1)), "maximum of unsigned");
}

template <class C>
void broadcasts(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto dtypes = movers();
    dtypes.push_back(at::kFloat8_e8m0fnu);  // moves, though it cannot be reduced
    for (size_t i = 0; i < dtypes.size(); ++i) {
        auto const dtype = dtypes[i];
        auto const root = static_cast<int64_t>(i) % c.size();
        auto const data = [&](int64_t r) { return dtype == at::kFloat8_e8m0fnu ? pattern(r, {3, 5}, at::kByte).view(dtype) : pattern(r, {3, 5}, dtype); };
        auto const t = data(c.rank());
        c.broadcast(t, root);
        found.expect(raw(t) == raw(data(root)), concat("broadcast of ", c10::toString(dtype), " from ", root));
    }
    auto const last = c.size() - 1;
    for (auto const n : sizes(options, 1)) {
        auto const t = pattern(c.rank(), {n}, at::kByte);
        c.broadcast(t, last);
        found.expect(at::equal(t, pattern(last, {n}, at::kByte)), concat("broadcast of ", n, " bytes"));
    }
    auto const strided = pattern(c.rank(), {6, 4}, at::kFloat).t();
    c.broadcast(strided, last);
    found.expect(at::equal(strided, pattern(last, {6, 4}, at::kFloat).t()), "broadcast of a transposed tensor");
    auto const scalar = at::full({}, c.rank());
    c.broadcast(scalar, last);
    found.expect(integer(scalar) == last, "broadcast of a scalar");
    c.broadcast(at::empty({0, 3}), 0);
}

/// `rows(r)`: how many rows rank r brings.
template <class C, class Rows>
void gathers(C const& c, Findings& found, std::vector<int64_t> const& rest, at::ScalarType dtype, Rows&& rows, std::string const& what) {
    auto const data = [&](int64_t r) {
        std::vector<int64_t> shape{rows(r)};
        shape.insert(shape.end(), rest.begin(), rest.end());
        return pattern(r, shape, dtype);
    };
    std::string expected;
    int64_t total = 0;
    for (int64_t r = 0; r < c.size(); ++r) expected += raw(data(r)), total += rows(r);
    auto const check = [&](at::Tensor const& t, std::string const& how) {
        found.expect(t.dim() == 1 + static_cast<int64_t>(rest.size()) && t.size(0) == total && t.scalar_type() == dtype, concat(what, how, ": shape ", t.sizes()));
        found.expect(raw(t) == expected, concat(what, how));
    };
    check(c.all_gather(data(c.rank())), ", all_gather");
    auto const root = (total + static_cast<int64_t>(dtype)) % c.size();  // each in turn
    auto const t = c.gather(data(c.rank()), root);
    if (c.rank() == root) check(t, concat(", gather to ", root));
    else found.expect(!t.defined(), concat(what, ": only the root gets a tensor"));
}

template <class C>
void gathers_everything(C const& c, Findings& found, acc::comm::transport_options const& options) {
    for (auto const dtype : movers()) gathers(c, found, {3}, dtype, [](int64_t) { return 2; }, c10::toString(dtype));
    gathers(c, found, {2}, at::kFloat, [](int64_t r) { return r; }, "r rows of rank r, none of rank 0");
    gathers(c, found, {}, at::kLong, [&](int64_t r) { return c.size() - 1 - r; }, "none of the last rank");
    gathers(c, found, {5}, at::kHalf, [](int64_t) { return 0; }, "no rows at all");
    gathers(c, found, {0, 2}, at::kFloat, [](int64_t r) { return r + 1; }, "rows without elements");
    for (auto const n : sizes(options, 1)) gathers(c, found, {}, at::kByte, [&](int64_t r) { return r == 0 ? n : n / 3 + r; }, concat("pieces, ", n));
    auto const scalars = c.all_gather(at::full({}, 10 + c.rank()));
    found.expect(at::equal(scalars, at::arange(10, 10 + c.size())), "scalars become one dimension");
    auto const strided = c.all_gather(pattern(c.rank(), {3, 4}, at::kFloat).t());
    std::vector<at::Tensor> all;
    for (int64_t r = 0; r < c.size(); ++r) all.push_back(pattern(r, {3, 4}, at::kFloat).t());
    found.expect(at::equal(strided, at::cat(all)), "a transposed tensor");
}

template <class C>
void scatters(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto const n = c.size(), me = c.rank();
    auto const check = [&](int64_t rows, std::vector<int64_t> const& rest, at::ScalarType dtype, Reduction how, std::string const& what) {
        std::vector<int64_t> shape{rows * n};
        shape.insert(shape.end(), rest.begin(), rest.end());
        auto const mine = pattern(me, shape, dtype);
        auto const share = [&](at::Tensor const& t, int64_t r) { return t.slice(0, r * rows, (r + 1) * rows); };
        auto const reduced_share = c.reduce_scatter(mine, how);
        auto const exact = share(reference(n, shape, dtype, how), me);
        found.expect(reduced_share.sizes() == exact.sizes() && reduced_share.scalar_type() == dtype, concat("reduce_scatter, shape: ", what));
        found.expect(how == Reduction::Mean ? close(reduced_share, exact, dtype) : at::equal(widened(reduced_share), exact), concat("reduce_scatter: ", what));
        found.expect(raw(mine) == raw(pattern(me, shape, dtype)), "the argument is left alone");
        auto const root = (rows + static_cast<int64_t>(dtype)) % n;  // each in turn
        found.expect(raw(c.scatter(me == root ? mine : at::Tensor(), root)) == raw(share(pattern(root, shape, dtype), me)), concat("scatter from ", root, ": ", what));
        auto const turned = c.all_to_all(mine);
        std::string expected;
        for (int64_t r = 0; r < n; ++r) expected += raw(share(pattern(r, shape, dtype), me));
        found.expect(turned.sizes() == mine.sizes() && raw(turned) == expected, concat("all_to_all: ", what));
    };
    for (auto const dtype : movers()) check(2, {3}, dtype, Reduction::Sum, c10::toString(dtype));
    check(3, {}, at::kFloat, Reduction::Mean, "mean");
    check(3, {2}, at::kInt, Reduction::Max, "maximum");
    check(3, {2}, at::kBFloat16, Reduction::Min, "minimum");
    check(0, {4}, at::kFloat, Reduction::Sum, "no rows");
    check(2, {0}, at::kFloat, Reduction::Sum, "rows without elements");
    for (auto const size : sizes(options, 4)) check(size / n + 1, {}, at::kFloat, Reduction::Sum, concat("pieces, ", size));
    auto const strided = at::empty({4, 2 * n}).t();
    strided.copy_(pattern(me, {2 * n, 4}, at::kFloat));
    auto const summed = reference(n, {2 * n, 4}, at::kFloat, Reduction::Sum).slice(0, 2 * me, 2 * me + 2);
    found.expect(at::equal(widened(c.reduce_scatter(strided, Reduction::Sum)), summed), "reduce_scatter, transposed");
    found.expect(at::equal(c.scatter(strided, 0), pattern(0, {2 * n, 4}, at::kFloat).slice(0, 2 * me, 2 * me + 2)), "scatter, transposed");
    // The argument of the others does not count.
    found.expect(c.scatter(me == 0 ? at::ones({n, 2}, at::kDouble) : at::ones({7}, at::kInt), 0).scalar_type() == at::kDouble, "dtype and shape are the root's");
}

template <class C>
void sends_letters(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto const n = c.size(), me = c.rank(), next = (me + 1) % n, before = (me + n - 1) % n;
    // All send first, more than any pipe holds, also to themselves where they are alone.
    for (auto const bytes : {int64_t{0}, int64_t{1}, options.pipe_bytes - 1, options.pipe_bytes + 1, 5 * options.pipe_bytes + 3, int64_t{1} << 18}) {
        c.send(pattern(me, {bytes}, at::kByte), next, 0);
        auto const t = at::zeros({bytes}, at::kByte);
        c.recv(t, before, 0);
        found.expect(at::equal(t, pattern(before, {bytes}, at::kByte)), concat("a ring of ", bytes, " bytes"));
    }
    // A chain: all but the first receive first.
    auto const token = at::zeros({3}, at::kLong);
    if (me > 0) c.recv(token, me - 1, 5);
    token.add_(1);
    if (me + 1 < n) c.send(token, me + 1, 5);
    found.expect(every(token.eq(me + 1)), "a chain");
    // Tags choose; within one the order stays.
    for (auto const tag : {3, 1, 2, 1}) c.send(at::full({2}, 10 * tag + me), next, tag);
    c.send_bytes("last", next, 1);
    for (auto const tag : {1, 2, 3, 1}) {
        auto const t = at::zeros({2}, at::kLong);
        c.recv(t, before, tag);
        found.expect(every(t.eq(10 * tag + before)), concat("tag ", tag));
    }
    found.expect(c.recv_bytes(before, 1) == "last", "bytes");
    c.send_bytes("", next, std::numeric_limits<int64_t>::max());
    found.expect(c.recv_bytes(before, std::numeric_limits<int64_t>::max()).empty(), "no bytes, a large tag");
    for (auto const dtype : movers()) {
        c.send(pattern(me, {2, 3}, dtype), next, 1);
        auto const t = at::empty({2, 3}, dtype);
        c.recv(t, before, 1);
        found.expect(raw(t) == raw(pattern(before, {2, 3}, dtype)), concat("a letter of ", c10::toString(dtype)));
    }
    c.send(pattern(me, {4, 3}, at::kFloat).t(), next, 1);
    auto const strided = at::zeros({4, 3}).t();
    c.recv(strided, before, 1);
    found.expect(at::equal(strided, pattern(before, {4, 3}, at::kFloat).t()), "a transposed letter");

    // What does not match is refused by the receiver; the letter is gone then.
    c.send(at::ones({4}), next, 9);
    auto const both = std::vector<std::string>{concat("recv from ", before, " of Float [2, 2]"), concat("send to ", me, " of Float [4]"), "tag 9"};
    found.fails(acc::code::collective_mismatch, both, [&] { c.recv(at::ones({2, 2}), before, 9); });
    c.send(at::ones({4}), next, 9);
    found.fails(acc::code::collective_mismatch, {"Int [4]", "Float [4]"}, [&] { c.recv(at::ones({4}, at::kInt), before, 9); });
    c.barrier();
    // A letter with another tag does not do, and is still there when the wait has ended.
    auto const other = c.duplicate();
    other.set_deadline(milliseconds(250));
    other.send(at::full({2}, me), next, 78);
    found.fails(acc::code::deadline, {concat("rank ", before), "same tag"}, [&] { other.recv(at::zeros({2}, at::kLong), before, 77); });
    auto const t = at::zeros({2}, at::kLong);
    other.recv(t, before, 78);
    found.expect(every(t.eq(before)), "the letter that came");
    c.barrier();
    for (int64_t const peer : {int64_t{-1}, n, int64_t{1} << 32}) {
        found.fails(acc::code::config, {concat("no rank ", peer)}, [&] { c.send(at::ones({1}), peer, 0); });
        found.fails(acc::code::config, {concat("no rank ", peer)}, [&] { c.recv(at::ones({1}), peer, 0); });
        found.fails(acc::code::config, {concat("no rank ", peer)}, [&] { c.send_bytes("x", peer); });
        found.fails(acc::code::config, {concat("no rank ", peer)}, [&] { c.recv_bytes(peer); });
    }
    found.fails(acc::code::config, {"undefined"}, [&] { c.send(at::Tensor(), next, 0); });
    found.fails(acc::code::config, {"share memory"}, [&] { c.recv(at::zeros({1}).expand({4}), before, 0); });
}

template <class C>
void moves_bytes(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto const text = [](int64_t rank, int64_t length) {
        std::string s(static_cast<size_t>(length), '\0');
        for (size_t i = 0; i < s.size(); ++i) s[i] = static_cast<char>(i * 31 + static_cast<size_t>(rank) * 7);
        return s;
    };
    for (auto const n : sizes(options, 1)) {
        auto const length = [&](int64_t r) { return r == 1 ? 0 : n + r; };
        std::vector<std::string> expected;
        for (int64_t r = 0; r < c.size(); ++r) expected.push_back(text(r, length(r)));
        auto const mine = expected[static_cast<size_t>(c.rank())];
        found.expect(c.all_gather_bytes(mine) == expected, concat("all_gather_bytes of ", n));
        auto const root = n % c.size();
        auto const got = c.gather_bytes(mine, root);
        found.expect(c.rank() == root ? got == expected : got.empty(), concat("gather_bytes of ", n, " to ", root));
        auto all = mine;
        c.broadcast_bytes(all, root);
        found.expect(all == expected[static_cast<size_t>(root)], concat("broadcast_bytes of ", n, " from ", root));
    }
}

template <class C>
void splits(C const& c, Findings& found) {
    auto const n = c.size(), me = c.rank();
    auto const sum_of = [](C const& part, int64_t value) {
        auto const t = at::full({3}, value);
        part.all_reduce(t, Reduction::Sum);
        return integer(t[0]);
    };
    // Odd and even, in reverse.
    auto const half = c.split(me % 2, -me);
    int64_t members = 0, above = 0, sum = 0;
    for (int64_t r = me % 2; r < n; r += 2) ++members, above += r > me, sum += r;
    found.expect(half.size() == members && half.rank() == above, "places after split");
    found.expect(sum_of(half, me) == sum, "a sum in half of the ranks");
    auto const order = half.all_gather(at::full({}, me));
    found.expect(order.size(0) == members && (members == 1 || integer(order[0]) > integer(order[1])), "the order of keys");
    found.expect(half.local_rank() >= 0 && half.local_rank() < half.local_size() && half.local_size() <= half.size(), "places on the node");
    // Equal keys keep the order; parts can be split again, and all live side by side.
    auto const again = half.split(0, 0), one = c.split(me, 0), all = c.duplicate();
    found.expect(again.rank() == half.rank() && again.size() == half.size(), "equal keys keep the order");
    found.expect(one.size() == 1 && one.rank() == 0 && sum_of(one, 5) == 5, "a communicator of one");
    found.expect(all.rank() == me && all.size() == n && all.local_rank() == c.local_rank() && all.local_size() == c.local_size(), "a duplicate");
    for (int64_t i = 0; i < 8; ++i) {
        found.expect(sum_of(half, me + i) == sum + i * members, "in turn: half");
        found.expect(sum_of(all, me + i) == n * (n - 1) / 2 + i * n, "in turn: duplicate");
        found.expect(sum_of(c, i) == i * n, "in turn: whole");
    }
    // A letter in one is none in another.
    all.send_bytes("a", (me + 1) % n, 1);
    c.send_bytes("c", (me + 1) % n, 1);
    found.expect(c.recv_bytes((me + n - 1) % n, 1) == "c" && all.recv_bytes((me + n - 1) % n, 1) == "a", "letters of different communicators");
}

/// One thread computes and communicates, another one communicates for it: each in its own communicator.
template <class C>
void two_threads(C const& c, Findings& found) {
    auto const own = c.duplicate();
    acc::comm::Worker worker;
    std::vector<at::Tensor> tensors;
    std::vector<acc::comm::Worker::Handle> handles;
    for (int64_t i = 0; i < 40; ++i) {
        tensors.push_back(at::full({500 + i}, i + c.rank()));
        handles.push_back(worker.submit([&own, t = tensors.back()] { own.all_reduce(t, Reduction::Sum); }));
        auto const here = at::full({3}, c.rank());
        c.all_reduce(here, Reduction::Max);
        found.expect(integer(here[0]) == c.size() - 1, "on the rank's thread");
    }
    for (auto const& h : handles) h.wait();
    for (int64_t i = 0; i < 40; ++i)
        found.expect(every(tensors[static_cast<size_t>(i)].eq(i * c.size() + c.size() * (c.size() - 1) / 2)), "on the worker's thread");
}

template <class C>
void buffers(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto const n = c.size(), me = c.rank();
    Bits results;
    for (auto const dtype : {at::kFloat, at::kBFloat16, at::kLong}) {
        auto const unit = static_cast<int64_t>(c10::elementSize(dtype));
        auto const few = dtype != at::kFloat;
        for (int64_t const numel : {int64_t{0}, int64_t{1}, int64_t{100}, options.small_bytes / unit, options.small_bytes / unit + 1, options.stage_bytes / unit + 77}) {
            if (few && numel <= options.small_bytes / unit) continue;
            auto const what = label(dtype, Reduction::Sum, numel);
            auto const b = c.allocate(numel, dtype);
            auto const t = b.tensor();
            found.expect(b.numel() == numel && t.numel() == numel && t.dim() == 1 && t.scalar_type() == dtype, concat("allocate: ", what));
            found.expect(every(t.eq(0)), "zero at first");
            found.expect(numel == 0 || reinterpret_cast<uintptr_t>(t.data_ptr()) % 64 == 0, "aligned");
            c.barrier();  // nobody writes before all have looked
            auto const fill = [&] { t.copy_(pattern(me, {numel}, dtype)); };
            fill();
            c.all_reduce(b, 0, numel, Reduction::Sum);
            auto const exact = reference(n, {numel}, dtype, Reduction::Sum);
            found.expect(at::equal(widened(t), exact), concat("all of it: ", what));
            results.add(t, what);
            for (auto const& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, numel}, {3, numel - 5}, {numel / 2, numel / 2}, {17, std::min<int64_t>(numel, 19)}}) {
                if (begin > end || end > numel || begin < 0 || (few && begin != 3)) continue;
                auto const range = [&, from = begin, to = end](at::Tensor const& whole) { return whole.slice(0, from, to); };
                auto const where = concat(what, " [", begin, ", ", end, ")");
                fill();
                c.all_reduce(b, begin, end, Reduction::Max);
                found.expect(at::equal(widened(range(t)), range(reference(n, {numel}, dtype, Reduction::Max))), concat("in place: ", where));
                auto outside = pattern(me, {numel}, dtype);
                range(outside).copy_(range(t));
                found.expect(at::equal(t, outside), concat("the rest is left alone: ", where));
                c.barrier();
                fill();
                c.all_reduce(b, begin, end, Reduction::Sum, false);
                for (int64_t r = 0; r < n; ++r) {
                    auto const [lo, hi] = C::buffer::slice(begin, end, r, n);
                    found.expect(at::equal(widened(b.reduced(r).slice(0, lo, hi)), exact.slice(0, lo, hi)), concat("slice of rank ", r, ": ", where));
                }
                c.release(b);
            }
            auto const copy = b;
            if (numel > 0) {
                copy.tensor()[0] = 1;
                found.expect(single(t[0]) == 1, "copies mean the same memory");
            }
        }
    }
    results.compare(c, found);
    // Several at once, and a tensor that outlives its buffer.
    std::vector<at::Tensor> kept;
    for (int64_t i = 0; i < 3; ++i) {
        auto const b = c.allocate(1000, at::kFloat), other = c.allocate(10, at::kLong);
        b.tensor().fill_(static_cast<double>(i)), other.tensor().fill_(me);
        c.all_reduce(other, 0, 10, Reduction::Sum);
        c.all_reduce(b, 0, 1000, Reduction::Mean);
        found.expect(every(other.tensor().eq(n * (n - 1) / 2)), "two buffers");
        kept.push_back(b.tensor());
    }
    for (int64_t i = 0; i < 3; ++i) found.expect(single(at::abs(kept[static_cast<size_t>(i)] - i).max()) < 1e-6, "the tensor outlives the buffer");
}

template <class C>
void barrier_waits(C const& c, Findings& found) {
    auto const now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };  // one clock for all processes of a machine
    for (int64_t late = 0; late < c.size(); ++late) {
        if (c.rank() == late) std::this_thread::sleep_for(milliseconds(5));
        int64_t const before = now();
        c.barrier();
        int64_t const after = now();
        auto const times = c.all_gather(at::tensor({before, after}, at::kLong).view({1, 2}));
        found.expect(integer(times.select(1, 0).max()) <= integer(times.select(1, 1).min()), "nobody leaves before all have come");
    }
}

/// Ranks of different speed: whoever is an operation ahead must not disturb what the others still read.
template <class C>
void runs_ahead(C const& c, Findings& found, acc::comm::transport_options const& options) {
    auto const n = c.size(), me = c.rank();
    auto const b = c.allocate(3000, at::kFloat);
    auto const other = c.duplicate();
    for (int64_t i = 0; i < 150; ++i) {
        if ((i * 5 + me * 3) % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds((i * 37 + me * 11) % 90));
        auto const total = n * (n - 1) / 2 + n * i;  // the sum of me + i
        auto const numel = 1 + i * 53 % (options.stage_bytes / 4 + 9);
        auto const t = at::full({numel}, me + i, at::kInt);
        auto const& use = i % 3 == 0 ? other : c;
        switch (i * 7 % 11) {
            case 0: use.all_reduce(t, Reduction::Sum), found.expect(every(t.eq(total)), "all_reduce"); break;
            case 1: use.broadcast(t, i % n), found.expect(every(t.eq(i % n + i)), "broadcast"); break;
            case 2: {
                int64_t sum = 0;
                for (int64_t r = 0; r < n; ++r) sum += (r + i) * std::min(1 + r, numel);
                found.expect(integer(use.all_gather(t.slice(0, 0, 1 + me)).sum()) == sum, "all_gather");
                break;
            }
            case 3: found.expect(every(use.reduce_scatter(at::full({2 * n}, me + i, at::kInt), Reduction::Sum).eq(total)), "reduce_scatter"); break;
            case 4: found.expect(integer(use.scatter(me == i % n ? at::arange(n, at::kInt) + i : at::Tensor(), i % n)) == me + i, "scatter"); break;
            case 5: found.expect(integer(use.all_to_all(at::full({n}, me + i, at::kInt)).sum()) == total, "all_to_all"); break;
            case 6:
            case 7: {
                auto const begin = i % 40, end = i % 2 ? begin + i : 3000 - i;
                b.tensor().fill_(static_cast<double>(me + i));
                c.all_reduce(b, begin, end, Reduction::Sum, true);
                found.expect(every(b.tensor().slice(0, begin, end).eq(total)), "all_reduce of a buffer");
                break;
            }
            case 8:
                b.tensor().fill_(static_cast<double>(me + i));
                c.all_reduce(b, 0, 3000, Reduction::Sum, false);
                for (int64_t r = 0; r < n; ++r) {
                    auto const [lo, hi] = C::buffer::slice(0, 3000, r, n);
                    found.expect(every(b.reduced(r).slice(0, lo, hi).eq(total)), "all_reduce of a buffer without gather");
                }
                c.release(b);
                break;
            case 9: {
                auto text = concat(me, ' ', i);
                use.broadcast_bytes(text, i % n);
                found.expect(text == concat(i % n, ' ', i), "broadcast_bytes");
                break;
            }
            default: {
                use.send(t, (me + 1) % n, i);
                auto const from = (me + n - 1) % n;
                use.recv(t, from, i);
                found.expect(every(t.eq(from + i)), "letters");
            }
        }
    }
}

// ---- misuse --------------------------------------------------------------------------------------------------------------------

template <class C>
struct Clash {
    std::function<void(C const&)> usual, odd;
    std::vector<std::string> words;  ///< of the message, on every rank
    bool root_only = false;          ///< only a mistake of the last rank, the root, counts
};

/// The last rank calls something else: every rank hears what both sides called, and the communicator works on.
template <class C>
void names_both_sides(C const& c, Findings& found) {
    auto const n = c.size();
    auto const first = c.allocate(64, at::kFloat), second = c.allocate(64, at::kFloat);
    auto const reduce = [](std::vector<int64_t> shape, at::ScalarType dtype = at::kFloat, Reduction how = Reduction::Sum) {
        return [=](C const& x) { x.all_reduce(at::ones(shape, dtype), how); };
    };
    auto const share = [](int64_t rows, Reduction how) { return [=](C const& x) { x.reduce_scatter(at::ones({rows}), how); }; };
    auto const range = [=](auto const& b, int64_t begin, int64_t end, Reduction how, bool gather) { return [=](C const& x) { x.all_reduce(b, begin, end, how, gather); }; };
    auto const bytes = [](int64_t root) {
        return [=](C const& x) {
            std::string text = "abc";
            x.broadcast_bytes(text, root);
        };
    };
    std::vector<Clash<C>> const clashes{
        {[](C const& x) { x.barrier(); }, reduce({4}), {"called barrier", "all_reduce(sum) of Float [4]"}},
        {reduce({4}), reduce({5}), {"Float [4]", "Float [5]"}},
        {reduce({4}), reduce({2, 2}), {"Float [4]", "Float [2, 2]"}},
        {reduce({3}), reduce({3, 1}), {"Float [3]", "Float [3, 1]"}},
        {reduce({1}), reduce({}), {"Float [1]", "Float []"}},
        {reduce({0}), reduce({0, 2}), {"Float [0]", "Float [0, 2]"}},
        {reduce({2, 3, 4}), reduce({2, 4, 3}), {"Float [2, 3, 4]", "Float [2, 4, 3]"}},
        {reduce({4}), reduce({4}, at::kInt), {"Float [4]", "Int [4]"}},
        {reduce({4}), reduce({4}, at::kFloat, Reduction::Mean), {"all_reduce(sum)", "all_reduce(mean)"}},
        {reduce({4}, at::kFloat, Reduction::Max), reduce({4}, at::kFloat, Reduction::Min), {"all_reduce(max)", "all_reduce(min)"}},
        {reduce({4}), [](C const& x) { x.broadcast(at::ones({4}), 0); }, {"all_reduce(sum) of Float [4]", "broadcast(root 0) of Float [4]"}},
        {[](C const& x) { x.broadcast(at::ones({4}), 0); }, [](C const& x) { x.broadcast(at::ones({4}), 1); }, {"root 0", "root 1"}},
        {[](C const& x) { x.broadcast(at::ones({4}), 0); }, [](C const& x) { x.broadcast(at::ones({6}), 0); }, {"[4]", "[6]"}},
        {[](C const& x) { x.all_gather(at::ones({2, 3})); }, [](C const& x) { x.all_gather(at::ones({2, 4})); }, {"all_gather of Float [2, 3]", "all_gather of Float [2, 4]"}},
        {[](C const& x) { x.all_gather(at::ones({2})); }, [](C const& x) { x.all_gather(at::ones({2}, at::kHalf)); }, {"Float [2]", "Half [2]"}},
        {[](C const& x) { x.gather(at::ones({2}), 0); }, [](C const& x) { x.gather(at::ones({2}), 1); }, {"gather(root 0)", "gather(root 1)"}},
        {[](C const& x) { x.gather(at::ones({2}), 0); }, [](C const& x) { x.all_gather(at::ones({2})); }, {"called gather(root 0)", "called all_gather"}},
        {share(n, Reduction::Sum), share(2 * n, Reduction::Sum), {"reduce_scatter(sum)"}},
        {share(n, Reduction::Sum), share(n, Reduction::Mean), {"reduce_scatter(sum)", "reduce_scatter(mean)"}},
        {[n](C const& x) { x.scatter(at::ones({n}), 0); }, [n](C const& x) { x.scatter(at::ones({n}), 1); }, {"scatter(root 0)", "scatter(root 1)"}},
        {[n](C const& x) { x.all_to_all(at::ones({n})); }, [n](C const& x) { x.all_to_all(at::ones({n, 2})); }, {"all_to_all"}},
        {[](C const& x) { x.all_gather_bytes("abc"); }, [](C const& x) { x.gather_bytes("abc", 0); }, {"all_gather_bytes of 3 bytes", "gather_bytes(root 0) of 3 bytes"}},
        {[](C const& x) { x.gather_bytes("abc", 0); }, [](C const& x) { x.gather_bytes("abc", 1); }, {"gather_bytes(root 0)", "gather_bytes(root 1)"}},
        {bytes(0), bytes(1), {"broadcast_bytes(root 0)", "broadcast_bytes(root 1)"}},
        {[](C const& x) { x.allocate(10, at::kFloat); }, [](C const& x) { x.allocate(11, at::kFloat); }, {"allocate of Float [10]", "allocate of Float [11]"}},
        {[](C const& x) { x.allocate(10, at::kFloat); }, [](C const& x) { x.allocate(10, at::kHalf); }, {"Float [10]", "Half [10]"}},
        {range(first, 0, 64, Reduction::Sum, true), range(first, 0, 32, Reduction::Sum, true), {"[0, 64)", "[0, 32)"}},
        {range(first, 0, 32, Reduction::Sum, true), range(first, 32, 64, Reduction::Sum, true), {"[0, 32)", "[32, 64)"}},
        {range(first, 0, 64, Reduction::Sum, true), range(second, 0, 64, Reduction::Sum, true), {"all_reduce of a buffer(sum) 1 ", "all_reduce of a buffer(sum) 2 "}},
        {range(first, 0, 64, Reduction::Sum, true), range(first, 0, 64, Reduction::Sum, false), {"without gather"}},
        {range(first, 0, 64, Reduction::Sum, true), range(first, 0, 64, Reduction::Mean, true), {"(sum)", "(mean)"}},
        {[=](C const& x) { x.release(first); }, [=](C const& x) { x.release(second); }, {"release 1", "release 2"}},
        {[](C const& x) { x.duplicate(); }, [](C const& x) { x.barrier(); }, {"called split", "called barrier"}},
    };
    if (n == 1) return found.expect(true, "nobody to disagree with");
    for (size_t i = 0; i < clashes.size(); ++i) {
        auto const& clash = clashes[i];
        auto const what = concat("clash ", i);
        auto words = clash.words;
        words.push_back(concat("rank ", n - 1, " called"));
        words.push_back(concat("on rank ", c.rank()));
        found.fails(acc::code::collective_mismatch, words, [&] { (c.rank() == n - 1 ? clash.odd : clash.usual)(c); }, what);
        auto const t = at::full({3}, c.rank());
        c.all_reduce(t, Reduction::Sum);
        found.expect(every(t.eq(n * (n - 1) / 2)), concat(what, ": the communicator works on"));
    }
}

/// The last rank's own arguments cannot work: it gets E_CONFIG, and its peers hear of it. The same when all ranks make the mistake.
template <class C>
void refuses(C const& c, Findings& found) {
    auto const n = c.size();
    auto const b = c.allocate(64, at::kFloat), integers = c.allocate(64, at::kInt);
    auto const reduce = [](at::Tensor t, Reduction how = Reduction::Sum) { return [=](C const& x) { x.all_reduce(t, how); }; };
    auto const sparse = at::ones({4, 4}).to_sparse();
    std::vector<Clash<C>> clashes{
        {reduce(at::ones({4})), reduce(at::Tensor()), {"undefined"}},
        {reduce(at::ones({4})), reduce(at::empty({4}, at::kMeta)), {"on the CPU"}},
        {reduce(at::ones({4, 4})), reduce(sparse), {"dense"}},
        {reduce(at::ones({4})), reduce(at::ones({1}).expand({4})), {"share memory"}},
        {reduce(at::ones({4}, at::kInt)), reduce(at::ones({4}, at::kInt), Reduction::Mean), {"mean of integers"}},
        {reduce(at::ones({4}, at::kComplexFloat)), reduce(at::ones({4}, at::kComplexFloat), Reduction::Max), {"no order"}},
        {reduce(at::ones({4})), reduce(at::empty({4}, at::kFloat8_e8m0fnu)), {"no numbers"}},
        {[](C const& x) { x.all_gather(at::ones({2})); }, [](C const& x) { x.all_gather(at::Tensor()); }, {"undefined"}},
        {[](C const& x) { x.gather(at::ones({4, 4}), 0); }, [=](C const& x) { x.gather(sparse, 0); }, {"dense"}},
        {[n](C const& x) { x.reduce_scatter(at::ones({2 * n}), Reduction::Sum); }, [](C const& x) { x.reduce_scatter(at::ones({}), Reduction::Sum); }, {"dimension 0"}},
        {[n](C const& x) { x.reduce_scatter(at::ones({2 * n}), Reduction::Sum); }, [](C const& x) { x.reduce_scatter(at::Tensor(), Reduction::Sum); }, {"undefined"}},
        {[n](C const& x) { x.all_to_all(at::ones({2 * n})); }, [](C const& x) { x.all_to_all(at::ones({})); }, {"dimension 0"}},
        {[n](C const& x) { x.all_to_all(at::ones({2 * n})); }, [](C const& x) { x.all_to_all(at::Tensor()); }, {"undefined"}},
        {[n](C const& x) { x.scatter(at::ones({n}), x.size() - 1); }, [](C const& x) { x.scatter(at::Tensor(), x.size() - 1); }, {"undefined"}, true},
        {[=](C const& x) { x.all_reduce(b, 0, 64, Reduction::Sum); }, [=](C const& x) { x.all_reduce(b, 0, 65, Reduction::Sum); }, {"does not lie in the buffer"}},
        {[=](C const& x) { x.all_reduce(b, 0, 64, Reduction::Sum); }, [=](C const& x) { x.all_reduce(b, -1, 64, Reduction::Sum); }, {"does not lie in the buffer"}},
        {[=](C const& x) { x.all_reduce(b, 0, 64, Reduction::Sum); }, [=](C const& x) { x.all_reduce(b, 9, 8, Reduction::Sum); }, {"does not lie in the buffer"}},
        {[=](C const& x) { x.all_reduce(b, 0, 64, Reduction::Sum); }, [=](C const& x) { x.all_reduce(typename C::buffer(), 0, 0, Reduction::Sum); }, {"not allocated"}},
        {[=](C const& x) { x.all_reduce(integers, 0, 64, Reduction::Sum); }, [=](C const& x) { x.all_reduce(integers, 0, 64, Reduction::Mean); }, {"mean of integers"}},
        {[](C const& x) { x.allocate(4, at::kFloat); }, [](C const& x) { x.allocate(-4, at::kFloat); }, {"negative"}},
        {[](C const& x) { x.allocate(4, at::kFloat); }, [](C const& x) { x.allocate(4, at::kQInt8); }, {"no numbers"}},
    };
    auto const share = [](int64_t rows) { return [=](C const& x) { x.reduce_scatter(at::ones({rows}), Reduction::Sum); }; };
    if (n > 1) clashes.push_back({share(n), share(n + 1), {"divisible"}});
    for (int64_t const root : {int64_t{-1}, n, int64_t{1} << 32}) {
        auto const words = std::vector<std::string>{concat("no rank ", root, " among ", n)};
        clashes.push_back({[](C const& x) { x.broadcast(at::ones({4}), 0); }, [=](C const& x) { x.broadcast(at::ones({4}), root); }, words});
        clashes.push_back({[](C const& x) { x.gather(at::ones({4}), 0); }, [=](C const& x) { x.gather(at::ones({4}), root); }, words});
        clashes.push_back({[n](C const& x) { x.scatter(at::ones({n}), 0); }, [=](C const& x) { x.scatter(at::ones({n}), root); }, words});
        clashes.push_back({[](C const& x) { x.gather_bytes("abc", 0); }, [=](C const& x) { x.gather_bytes("abc", root); }, words});
        auto const bytes = [](int64_t from) {
            return [=](C const& x) {
                std::string text = "abc";
                x.broadcast_bytes(text, from);
            };
        };
        clashes.push_back({bytes(0), bytes(root), words});
    }
    for (size_t i = 0; i < clashes.size(); ++i) {
        auto const& clash = clashes[i];
        auto const what = concat("refusal ", i);
        if (c.rank() == n - 1) found.fails(acc::code::config, clash.words, [&] { clash.odd(c); }, what);
        else found.fails(acc::code::collective_mismatch, {concat("rank ", n - 1, " called"), "refused"}, [&] { clash.usual(c); }, what);
        if (clash.root_only) continue;
        found.fails(acc::code::config, clash.words, [&] { clash.odd(c); }, concat(what, " by all"));
    }
    c.barrier();  // works on
    for (auto const ms : {0, -5}) found.fails(acc::code::config, {"set_deadline"}, [&] { c.set_deadline(milliseconds(ms)); });
}

/// A rank does not come: the others say so in time, and what it did last.
template <class C, class Together>
void keeps_the_deadline(C const& c, Findings& found, Together&& together) {
    auto const n = c.size();
    c.set_deadline(milliseconds::max());  // does not overflow
    c.barrier();
    auto const late = c.duplicate();
    late.barrier();
    late.set_deadline(milliseconds(300));
    if (n == 1) return late.barrier(), found.expect(true, "nobody to wait for");
    auto const missing = n - 1;
    if (c.rank() != missing) {
        std::vector<std::string> words{concat("all_reduce(sum) of Float [5] on rank ", c.rank()), "waited"};
        // Who sees its memory knows what it did, and tells the other nodes.
        bool seen = false;
        for (int64_t r = 0; r < missing; ++r) seen = seen || together(r, missing);
        words.push_back(seen ? concat("rank ", missing, " has not arrived, its last call was barrier, operation 1 (finished)") : concat("led by ranks ", missing, ";"));
        if (!seen) words.push_back("the last call that all joined was barrier, operation 1");
        auto const begin = std::chrono::steady_clock::now();
        found.fails(acc::code::deadline, words, [&] { late.all_reduce(at::ones({5}), Reduction::Sum); });
        found.expect(std::chrono::steady_clock::now() - begin >= milliseconds(290), "not before its time");
        // What was cut short stays so.
        found.fails(acc::code::deadline, {}, [&] { late.barrier(); });
    }
    c.barrier();
    // Whoever comes now is told at once; the deadline is not waited for again.
    if (c.rank() == missing) {
        late.set_deadline(std::chrono::hours(1));
        try {
            for (int i = 0; i < 2; ++i) late.all_reduce(at::ones({5}), Reduction::Sum);
            found.expect(false, "a late rank went on alone");
        } catch (acc::Error const& e) {
            found.expect(e.code() == acc::code::peer_lost || e.code() == acc::code::deadline, concat("a late rank got ", e.what()));
        }
    }
    c.barrier();
}

template <class C>
void tells_who_left(C const& c, Findings& found) {
    auto const n = c.size();
    auto const other = c.duplicate();
    if (c.rank() == n - 1) {
        c.leave("out of coffee");
        c.leave("a second reason");
        return found.expect(true, "left");
    }
    found.fails(acc::code::peer_lost, {concat("rank ", n - 1, " is gone"), "out of coffee"}, [&] { c.barrier(); });
    found.fails(acc::code::peer_lost, {"out of coffee"}, [&] { c.barrier(); }, "again");
}

// ---- the flight recorder -------------------------------------------------------------------------------------------------------

template <class C>
std::filesystem::path dump_of(C const& c) { return c.recorder().path(); }

inline nlohmann::json parsed(std::filesystem::path const& path) {
    std::ifstream file(path);
    return nlohmann::json::parse(file, nullptr, false);
}

/// The dump is JSON that names the rank, the reason, and the last operations in order; gives them.
template <class C>
nlohmann::json dumped(C const& c, Findings& found, std::string const& reason, int line = __builtin_LINE()) {
    nlohmann::json const j = parsed(dump_of(c));
    found.expect(j.is_object() && j.contains("operations"), concat(reason, ": no JSON in ", dump_of(c)), line);
    if (!j.is_object()) return nlohmann::json::array();
    found.expect(j["rank"] == c.recorder().rank() && j["pid"] == getpid() && j["reason"] == reason && j["size"].is_number(), concat(reason, ": head: ", j["reason"].dump()), line);
    nlohmann::json const& operations = j["operations"];
    found.expect(operations.size() <= 256, "at most 256 operations", line);
    int64_t before = std::numeric_limits<int64_t>::min();
    for (nlohmann::json const& o : operations) {
        found.expect(o["begin_us"].get<int64_t>() >= before && (o["end_us"].is_null() || o["end_us"].get<int64_t>() >= o["begin_us"].get<int64_t>()), concat("times: ", o.dump()), line);
        found.expect(o["begin_us"].get<int64_t>() <= j["now_us"].get<int64_t>() + 1000, concat("from the future: ", o.dump()), line);
        before = o["begin_us"].get<int64_t>();
    }
    std::filesystem::remove(dump_of(c));
    return operations;
}

template <class C>
void records(C const& c, Findings& found) {
    auto const n = c.size();
    std::filesystem::remove(dump_of(c));
    for (int i = 0; i < 150; ++i) c.send_bytes("to myself", c.rank()), c.recv_bytes(c.rank());
    c.broadcast_bytes(*std::make_unique<std::string>("abc"), 0);
    c.all_gather(at::ones({2, 3}));
    auto const count = c.recorder().count();
    c.barrier();
    found.expect(c.recorder().count() == count + 1, "every operation is counted once");
    auto const last = [](nlohmann::json const& operations, size_t i) { return operations.at(operations.size() - i); };

    // A mismatch, or where nobody can disagree a dump by hand.
    if (n == 1) c.recorder().dump("mismatch");
    else found.fails(acc::code::collective_mismatch, {}, [&] { c.all_reduce(at::ones({7, c.rank() == 0 ? 2 : 3}, at::kHalf), Reduction::Mean); });
    nlohmann::json operations = dumped(c, found, "mismatch");
    found.expect(operations.size() == 256, "the last 256 operations");
    if (n > 1) {
        nlohmann::json const o = last(operations, 1);
        auto const width = c.rank() == 0 ? 2 : 3;
        found.expect(o["operation"] == "all_reduce" && o["dtype"] == "Half" && o["count"] == 7 * width && o["shape"] == nlohmann::json({7, width}), o.dump());
        found.expect(o["call"] == concat("all_reduce(mean) of Half [7, ", width, "]") && o["end_us"].is_null(), o.dump());
        operations.erase(operations.size() - 1);
        c.recorder().dump("later");
        found.expect(last(dumped(c, found, "later"), 1)["end_us"].is_null(), "what failed has no end");
    }
    nlohmann::json const gathered = last(operations, 2);
    found.expect(gathered["call"] == "all_gather of Float [2, 3]" && !gathered["end_us"].is_null(), gathered.dump());
    nlohmann::json const met = last(operations, 1);
    found.expect(met["operation"] == "barrier" && met["number"] == gathered["number"].get<int64_t>() + 1 && met["group"] == gathered["group"], "numbers");
    found.expect(last(operations, 3)["operation"] == "broadcast_bytes", last(operations, 3).dump());

    // A letter that does not come: on the deadline.
    auto const other = c.duplicate();
    other.set_deadline(milliseconds(100));
    found.fails(acc::code::deadline, {}, [&] { other.recv(at::ones({2}), (c.rank() + 1) % n, 4); });
    nlohmann::json const waiting = last(dumped(c, found, "deadline"), 1);
    found.expect(waiting["call"] == concat("recv from ", (c.rank() + 1) % n, " of Float [2]") && waiting["end_us"].is_null() && waiting["group"] != gathered["group"], waiting.dump());

    // The signal: whatever the rank's thread does. Ranks may be threads of one process.
    c.barrier();
    auto const pids = c.all_gather(at::full({}, static_cast<int64_t>(getpid())));
    auto const first = integer(pids.eq(static_cast<int64_t>(getpid())).nonzero()[0][0]);
    if (first == c.rank()) kill(getpid(), SIGUSR2);
    nlohmann::json j;
    for (int i = 0; i < 500 && !(j.is_object() && j.contains("operations")); ++i) {
        std::this_thread::sleep_for(milliseconds(10));
        if (std::filesystem::exists(dump_of(c))) j = parsed(dump_of(c));
    }
    nlohmann::json const at_signal = dumped(c, found, "SIGUSR2");
    found.expect(!at_signal.empty() && last(at_signal, 1)["operation"] == "all_gather", "the last operation at the signal");
    c.barrier();
}

// ---- all of it -----------------------------------------------------------------------------------------------------------------

template <class Way>
void conform(Way const& way) {
    auto const options = way.options();
    auto const together = [&](int64_t a, int64_t b) { return way.together(a, b); };
    bool all_together = true;
    for (int64_t r = 1; r < way.size(); ++r) all_together = all_together && way.together(0, r);

    run(way, "ranks", [&](auto const& c, Findings& found) {
        found.expect(c.size() == way.size() && c.rank() >= 0 && c.rank() < c.size(), "rank and size");
        found.expect(c.local_rank() >= 0 && c.local_rank() < c.local_size() && c.local_size() <= c.size(), "rank and size on the node");
        found.expect(c.all_gather(at::full({}, c.node())).eq(c.node()).sum().template item<int64_t>() == c.local_size(), "as many ranks call their node so as there are on it");
        auto const ranks = c.all_gather(at::full({}, c.rank()));
        found.expect(at::equal(ranks, at::arange(c.size())), "every rank once, in order");
        auto const copy = c;
        found.expect(copy.rank() == c.rank() && copy.size() == c.size(), "a copy speaks for the same rank");
        copy.barrier();
    });
    run(way, "all_reduce: dtypes", [](auto const& c, Findings& found) { reduces_every_dtype(c, found); });
    run(way, "all_reduce: layouts", [](auto const& c, Findings& found) { reduces_every_layout(c, found); });
    run(way, "all_reduce: sizes", [&](auto const& c, Findings& found) { reduces_every_size(c, found, options); });
    run(way, "all_reduce: order", [&](auto const& c, Findings& found) { reduces_in_rank_order(c, found, all_together); });
    run(way, "all_reduce: NaN", [](auto const& c, Findings& found) { nan_wins(c, found); });
    run(way, "all_reduce: overflow", [](auto const& c, Findings& found) { integers_wrap(c, found); });
    run(way, "broadcast", [&](auto const& c, Findings& found) { broadcasts(c, found, options); });
    run(way, "gather", [&](auto const& c, Findings& found) { gathers_everything(c, found, options); });
    run(way, "scatter", [&](auto const& c, Findings& found) { scatters(c, found, options); });
    run(way, "letters", [&](auto const& c, Findings& found) { sends_letters(c, found, options); });
    run(way, "bytes", [&](auto const& c, Findings& found) { moves_bytes(c, found, options); });
    run(way, "split", [](auto const& c, Findings& found) { splits(c, found); });
    run(way, "two threads", [](auto const& c, Findings& found) { two_threads(c, found); });
    run(way, "buffers", [&](auto const& c, Findings& found) { buffers(c, found, options); });
    run(way, "barrier", [](auto const& c, Findings& found) { barrier_waits(c, found); });
    run(way, "ahead", [&](auto const& c, Findings& found) { runs_ahead(c, found, options); });
    run(way, "mismatch", [](auto const& c, Findings& found) { names_both_sides(c, found); });
    run(way, "refusal", [](auto const& c, Findings& found) { refuses(c, found); });
    run(way, "deadline", [&](auto const& c, Findings& found) { keeps_the_deadline(c, found, together); });
    run(way, "leave", [](auto const& c, Findings& found) { tells_who_left(c, found); });
    run(way, "recorder", [](auto const& c, Findings& found) { records(c, found); });
}

}  // namespace conformance
