// Metrics over several ranks, against formulas written in plain C++ over all samples at once.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, whose CHECK ends the process
#include "support/errors.hpp"

#include "support/plug_in_device.hpp"

#include <ATen/record_function.h>

#include <accelerate/comm/self.hpp>
#include <accelerate/comm/staged.hpp>
#include <accelerate/comm/threads.hpp>
#include <accelerate/data/metrics.hpp>
#include <algorithm>
#include <cmath>
#include <mutex>
#include <random>
#include <set>

namespace acc = accelerate;
namespace comm = accelerate::comm;
namespace metrics = accelerate::metrics;

namespace {

constexpr auto not_a_number = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t classes = 5, length = 4;  // of a sample's scores and of its tokens

/// Whether a call is refused with E_DATA and a message that has all of `parts`.
template <class F>
bool refused(F&& f, std::vector<std::string> const& parts) {
    auto const text = error_of(f);
    UNSCOPED_INFO(text);
    return text.rfind("E_DATA: metrics::", 0) == 0 &&
           std::all_of(parts.begin(), parts.end(), [&](auto const& part) { return text.find(part) != std::string::npos; });
}

/// One sample of everything that a metric looks at.
struct Sample {
    double value = 0, weight = 0;
    std::vector<double> scores, token_losses;
    std::vector<bool> token_counts;
    int64_t label = 0;

    int64_t predicted() const { return std::max_element(scores.begin(), scores.end()) - scores.begin(); }
    /// By a stable sort: of equal scores the lower class comes first.
    bool among_first(int64_t k) const {
        std::vector<int64_t> order(classes);
        for (int64_t c = 0; c < classes; ++c) order[static_cast<size_t>(c)] = c;
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)]; });
        return std::find(order.begin(), order.begin() + k, label) != order.begin() + k;
    }
};

std::vector<Sample> draw(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(3, 20);
    std::uniform_real_distribution<double> uniform(0, 5);
    std::vector<Sample> all(static_cast<size_t>(n));
    for (auto& s : all) {
        s.value = normal(random), s.weight = random() % 5 == 0 ? 0 : uniform(random);
        for (int64_t c = 0; c < classes; ++c) s.scores.push_back(static_cast<double>(random() % 7));  // with ties
        for (int64_t t = 0; t < length; ++t) s.token_losses.push_back(uniform(random)), s.token_counts.push_back(random() % 3 > 0);
        s.label = static_cast<int64_t>(random() % classes);
    }
    return all;
}

/// What is in a batch beside real samples: it must have no influence.
Sample padding() {
    return {not_a_number, -7, std::vector<double>(classes, not_a_number), std::vector<double>(length, not_a_number), std::vector<bool>(length, true), -100};
}

/// A batch as tensors, and which of its samples are real.
struct Batch {
    torch::Tensor value, weight, scores, token_losses, token_counts, label, valid;

    explicit Batch(std::vector<Sample> const& samples, std::set<size_t> const& padded = {}) {
        auto const n = static_cast<int64_t>(samples.size());
        value = torch::zeros({n}, torch::kDouble), weight = value.clone(), scores = torch::zeros({n, classes}, torch::kDouble),
        token_losses = torch::zeros({n, length}, torch::kDouble);
        token_counts = torch::zeros({n, length}, torch::kBool), label = torch::zeros({n}, torch::kLong), valid = torch::ones({n}, torch::kBool);
        for (int64_t i = 0; i < n; ++i) {
            auto const& s = samples[static_cast<size_t>(i)];
            value[i] = s.value, weight[i] = s.weight, label[i] = s.label, valid[i] = !padded.contains(static_cast<size_t>(i));
            for (int64_t c = 0; c < classes; ++c) scores[i][c] = s.scores[static_cast<size_t>(c)];
            for (int64_t t = 0; t < length; ++t)
                token_losses[i][t] = s.token_losses[static_cast<size_t>(t)], token_counts[i][t] = bool(s.token_counts[static_cast<size_t>(t)]);
        }
    }
};

/// All metrics, fed with batches.
struct All {
    metrics::Mean mean;
    metrics::WeightedMean weighted;
    metrics::Accuracy top1, top3{3}, by_number;
    metrics::ConfusionMatrix confusion{classes};
    metrics::Perplexity perplexity, of_samples;

    void update(Batch const& b, metrics::Valid const& valid) {
        mean.update(b.value, valid);
        weighted.update(b.value, b.weight, valid);
        top1.update(b.scores, b.label, valid), top3.update(b.scores, b.label, valid);
        by_number.update(b.scores.argmax(1), b.label, valid);
        confusion.update(b.scores, b.label, valid);
        perplexity.update(b.token_losses, b.token_counts.logical_and(b.valid.unsqueeze(1)));
        of_samples.update(b.token_losses, valid);
    }

    /// All results as numbers, the matrix last.
    template <class... Comm>
    std::vector<double> results(Comm const&... c) const {
        std::vector<double> out{mean.compute(c...),      weighted.compute(c...),   top1.compute(c...),      top3.compute(c...),
                                by_number.compute(c...), perplexity.compute(c...), of_samples.compute(c...)};
        auto const matrix = confusion.compute(c...);
        out.push_back(metrics::ConfusionMatrix::accuracy(matrix));
        for (auto const& each : {metrics::ConfusionMatrix::precision(matrix), metrics::ConfusionMatrix::recall(matrix), metrics::ConfusionMatrix::f1(matrix),
                                 matrix.to(torch::kDouble).flatten()})
            out.insert(out.end(), each.template const_data_ptr<double>(), each.template const_data_ptr<double>() + each.numel());
        return out;
    }
};

/// The same by the formulas, over all samples at once.
std::vector<double> expected(std::vector<Sample> const& all) {
    double values = 0, weights = 0, weighted = 0, hits = 0, hits3 = 0, losses = 0, tokens = 0, all_losses = 0;
    std::vector<std::vector<double>> matrix(classes, std::vector<double>(classes));
    for (auto const& s : all) {
        values += s.value, weights += s.weight, weighted += s.weight * s.value;
        hits += s.predicted() == s.label, hits3 += s.among_first(3);
        for (size_t t = 0; t < length; ++t) {
            all_losses += s.token_losses[t];
            if (s.token_counts[t]) losses += s.token_losses[t], tokens += 1;
        }
        matrix[static_cast<size_t>(s.label)][static_cast<size_t>(s.predicted())] += 1;
    }
    auto const n = static_cast<double>(all.size());
    std::vector<double> out{values / n, weighted / weights, hits / n, hits3 / n, hits / n, std::exp(losses / tokens), std::exp(all_losses / (n * length)),
                            hits / n};
    std::vector<double> precision, recall, f1, flat;
    for (size_t c = 0; c < classes; ++c) {
        double row = 0, column = 0;
        for (size_t k = 0; k < classes; ++k) row += matrix[c][k], column += matrix[k][c], flat.push_back(matrix[c][k]);
        auto const p = column > 0 ? matrix[c][c] / column : 0, r = row > 0 ? matrix[c][c] / row : 0;
        precision.push_back(p), recall.push_back(r), f1.push_back(p + r > 0 ? 2 * p * r / (p + r) : 0);
    }
    for (auto const& each : {precision, recall, f1, flat}) out.insert(out.end(), each.begin(), each.end());
    return out;
}

bool same(std::vector<double> const& a, std::vector<double> const& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i) {
        UNSCOPED_INFO("result " << i << ": " << a[i] << " and " << b[i]);
        if (!(std::abs(a[i] - b[i]) <= 1e-12 * std::max(1.0, std::abs(b[i])))) return false;
    }
    return true;
}

enum class Mask { Tensor, Count, Broken };

/// Feeds this rank's samples in batches of `size`: the last one is padded, and with a mask every other batch also in between.
void feed(All& metrics, std::vector<Sample> const& mine, size_t size, Mask how) {
    for (size_t begin = 0; begin < mine.size(); begin += size) {
        std::vector<Sample> batch(mine.begin() + static_cast<std::ptrdiff_t>(begin),
                                  mine.begin() + static_cast<std::ptrdiff_t>(std::min(begin + size, mine.size())));
        auto const real = batch.size();
        std::set<size_t> padded;
        if (how != Mask::Count && begin / size % 2 == 1) batch.insert(batch.begin() + 1, how == Mask::Broken ? batch.front() : padding()), padded.insert(1);
        while (batch.size() < size + 1) padded.insert(batch.size()), batch.push_back(how == Mask::Broken ? batch.front() : padding());
        Batch const b(batch, padded);
        if (how == Mask::Tensor) metrics.update(b, b.valid);
        else if (how == Mask::Count) metrics.update(b, real);
        else metrics.update(b, {});
    }
}

/// The results of `ranks` ranks whose shares have the given sizes, which must be the same on all.
std::vector<double> over_ranks(std::vector<Sample> const& all, std::vector<size_t> const& shares, size_t batch, Mask how) {
    std::mutex mutex;
    std::vector<std::vector<double>> results;
    comm::Threads::run(static_cast<int64_t>(shares.size()), [&](comm::Threads const& c) {
        auto const rank = static_cast<size_t>(c.rank());
        size_t begin = 0;
        for (size_t r = 0; r < rank; ++r) begin += shares[r];
        All metrics;
        feed(metrics, {all.begin() + static_cast<std::ptrdiff_t>(begin), all.begin() + static_cast<std::ptrdiff_t>(begin + shares[rank])}, batch, how);
        auto const found = metrics.results(c);
        std::lock_guard lock(mutex);
        results.push_back(found);
    });
    for (auto const& r : results) CHECK(r == results.front());
    return results.front();
}

/// Copies between the plug-in device and the CPU while `f` runs, except those inside LibTorch's CPU fallback.
template <class F>
int64_t copies(F&& f) {
    struct Call : at::ObserverContext {};
    static thread_local int64_t count, inside;
    count = inside = 0;
    static constexpr auto is_fallback = [](at::RecordFunction const& call) { return std::string_view(call.name()) == "aten::_to_cpu"; };
    auto begin = [](at::RecordFunction const& call) -> std::unique_ptr<at::ObserverContext> {
        inside += is_fallback(call);
        count += inside == 0 && std::string_view(call.name()) == "aten::_copy_from";
        return std::make_unique<Call>();
    };
    auto end = [](at::RecordFunction const& call, at::ObserverContext*) { inside -= is_fallback(call); };
    auto const handle = at::addThreadLocalCallback(at::RecordFunctionCallback(begin, end).scopes({at::RecordScope::FUNCTION}));
    f();
    at::removeCallback(handle);
    return count;
}

}  // namespace

// ---- over ranks ----------------------------------------------------------------------------------------------------------------

TEST_CASE("metrics over ranks are what one process computes that saw all samples",
          "[metrics][metric_inputs][metric_mean][metric_perplexity][metric_accuracy][metric_confusion]") {
    auto const all = draw(101, 1);
    auto const one = expected(all);
    auto const how = GENERATE(Mask::Tensor, Mask::Count);
    auto const batch = GENERATE(size_t{7}, size_t{64});
    for (auto const& shares : std::vector<std::vector<size_t>>{{101}, {60, 41}, {1, 100}, {50, 34, 17}, {101, 0, 0}}) {
        CAPTURE(shares, batch, how == Mask::Count);
        CHECK(same(over_ranks(all, shares, batch, how), one));
    }
    All local;
    feed(local, all, batch, how);
    CHECK(same(local.results(), one));
    CHECK(same(local.results(comm::Self()), one));
}

TEST_CASE("without its mask padding would count", "[metrics][metric_inputs]") {
    auto const all = draw(101, 2);
    auto const one = expected(all), broken = over_ranks(all, {60, 41}, 7, Mask::Broken);  // padding repeats samples, as a loader does
    for (size_t i : {size_t{0}, size_t{1}, size_t{2}, size_t{3}, size_t{6}, size_t{7}}) CHECK(std::abs(broken[i] - one[i]) > 1e-6);
    // NaN as padding, and a mask with one wrong element.
    metrics::Mean right, wrong;
    auto const values = torch::tensor({1.0, 2.0, not_a_number});
    right.update(values, torch::tensor({true, true, false}));
    wrong.update(values, torch::tensor({true, false, true}));
    CHECK(right.compute() == 1.5);
    CHECK(std::isnan(wrong.compute()));
}

TEST_CASE("metrics do not depend on how samples are cut up", "[metrics][metric_mean]") {
    // Counts are exact, and sums of integers too.
    std::vector<double> found;
    for (int64_t const size : {1, 3, 10, 1000}) {
        metrics::Mean mean;
        for (int64_t begin = 0; begin < 1000; begin += size) mean.update(torch::arange(begin, std::min(begin + size, int64_t{1000})));
        found.push_back(mean.compute());
    }
    CHECK(found == std::vector<double>(4, 499.5));
    // The mean of means is another one.
    metrics::Mean exact;
    exact.update(torch::tensor({1.0, 2.0, 3.0})), exact.update(torch::tensor({10.0}));
    CHECK(exact.compute() == 4);
    // fp16 values are added up in fp64.
    metrics::Mean halves;
    halves.update(torch::full({100'000}, 1.5, torch::kHalf));
    CHECK(halves.compute() == 1.5);
}

TEST_CASE("a rank that saw nothing takes part, and where none saw anything all are told", "[metrics][metric_mean][metric_accuracy][metric_confusion]") {
    for (int64_t const ranks : {1, 2, 3}) {
        std::mutex mutex;
        std::vector<std::string> errors;
        comm::Threads::run(ranks, [&](comm::Threads const& c) {
            metrics::Mean mean;
            metrics::Accuracy accuracy;
            metrics::ConfusionMatrix confusion(3);
            metrics::Perplexity perplexity;
            metrics::WeightedMean weighted;
            mean.update(torch::empty({0})), accuracy.update(torch::empty({0, 3}), torch::empty({0}, torch::kLong)), perplexity.update(torch::ones({2, 3}), 0);
            weighted.update(torch::ones({2}), torch::zeros({2}));
            for (auto const& text : {error_of([&] { mean.compute(c); }), error_of([&] { accuracy.compute(c); }), error_of([&] { confusion.compute(c); }),
                                     error_of([&] { perplexity.compute(c); }), error_of([&] { weighted.compute(c); })}) {
                std::lock_guard lock(mutex);
                errors.push_back(text);
            }
        });
        CHECK(errors.size() == static_cast<size_t>(5 * ranks));
        for (std::string const name : {"Mean", "WeightedMean", "Accuracy", "ConfusionMatrix", "Perplexity"})
            CHECK(std::count_if(errors.begin(), errors.end(),
                                [&](auto const& e) { return e.rfind("E_DATA: metrics::" + name + ".compute: no sample was counted", 0) == 0; }) == ranks);
    }
}

// ---- what they take ------------------------------------------------------------------------------------------------------------

TEST_CASE("metrics take every dtype, layout and graph", "[metrics][metric_inputs]") {
    auto const base = torch::tensor({3.0, -0.0, 5.0, 1.0, 2.0, 7.0});
    for (auto const dtype : {torch::kHalf, torch::kBFloat16, torch::kFloat, torch::kDouble, torch::kLong, torch::kInt, torch::kShort, torch::kChar,
                             torch::kByte, torch::kUInt16, torch::kUInt32}) {
        CAPTURE(c10::toString(dtype));
        metrics::Mean mean;
        mean.update(base.to(dtype), torch::tensor({true, true, true, true, true, false}));
        CHECK(mean.compute() == 2.2);
        metrics::WeightedMean weighted;
        weighted.update(base.to(dtype), base.to(dtype));
        CHECK(weighted.compute() == Approx(88.0 / 18));
        metrics::Perplexity perplexity;
        perplexity.update(base.to(dtype).view({2, 3}), 1);
        CHECK(perplexity.compute() == Approx(std::exp(8.0 / 3)));
    }
    for (auto const dtype : {torch::kHalf, torch::kBFloat16, torch::kFloat, torch::kDouble, torch::kLong, torch::kByte}) {
        CAPTURE(c10::toString(dtype));
        auto const scores = torch::tensor({{1.0, 2.0, 3.0}, {3.0, 3.0, 0.0}, {0.0, 3.0, 3.0}}).to(dtype);
        for (auto const of_label : {torch::kLong, torch::kInt, torch::kByte}) {
            metrics::Accuracy accuracy, top2(2);
            metrics::ConfusionMatrix confusion(3);
            auto const labels = torch::tensor({2, 0, 2}).to(of_label);
            accuracy.update(scores, labels), top2.update(scores, labels), confusion.update(scores, labels);
            CHECK(accuracy.compute() == Approx(2.0 / 3));  // of equal scores the lower class comes first
            CHECK(top2.compute() == 1);
            CHECK(torch::equal(confusion.compute(), torch::tensor({{1, 0, 0}, {0, 0, 0}, {0, 1, 1}})));
        }
    }
    metrics::Mean mean;
    auto const grid = torch::arange(12, torch::kFloat).view({3, 4});
    auto const graph = grid.clone().requires_grad_();
    mean.update(grid.select(1, 1)), mean.update(graph.select(1, 1) * 1), mean.update(torch::tensor(5.0).expand({3}), torch::tensor(true).expand({3})),
        mean.update(torch::tensor({true, false, true}));
    CHECK(mean.compute() == Approx((15.0 + 15 + 15 + 2) / 12));
    metrics::Accuracy strided;
    auto const scores = torch::tensor({{0.0, 5.0}, {9.0, 1.0}, {3.0, 7.0}});
    strided.update(scores.t().contiguous().t(), torch::tensor({1, 8, 0, 8, 0, 8}).view({3, 2}).select(1, 0),
                   torch::tensor({true, true, false, true, true, true}).slice(0, 0, 6, 2));
    CHECK(strided.compute() == 0.5);
    strided.update(graph, torch::tensor({3, 3, 3}));
    CHECK(strided.compute() == 0.8);
}

TEST_CASE("a NaN is never a hit", "[metrics][metric_accuracy]") {
    metrics::Accuracy one, two(2);
    auto const scores = torch::tensor({{not_a_number, 1.0, 2.0}, {not_a_number, 1.0, 2.0}, {not_a_number, not_a_number, not_a_number}});
    auto const labels = torch::tensor({0, 2, 0});
    one.update(scores, labels), two.update(scores, labels);
    CHECK(one.compute() == 0);
    CHECK(two.compute() == Approx(1.0 / 3));
    metrics::Accuracy all(3);
    all.update(scores, labels);
    CHECK(all.compute() == Approx(1.0 / 3));
}

TEST_CASE("a weight of 0 leaves a sample out", "[metrics][metric_mean]") {
    metrics::WeightedMean weighted;
    weighted.update(torch::tensor({not_a_number, 4.0, 1.0, not_a_number}), torch::tensor({0.0, 1.0, 3.0, not_a_number}), 3);
    CHECK(weighted.compute() == 1.75);
}

TEST_CASE("copies are independent, and reset forgets", "[metrics][metric_mean][metric_accuracy][metric_confusion]") {
    auto const all = draw(30, 3);
    All metrics;
    metrics.update(Batch(all), {});
    auto const before = metrics;
    auto const matrix = metrics.confusion.compute();
    metrics.update(Batch(draw(9, 4)), {});
    CHECK(same(before.results(), expected(all)));
    CHECK(matrix.sum().item<int64_t>() == 30);
    metrics.mean.reset(), metrics.weighted.reset(), metrics.top1.reset(), metrics.top3.reset(), metrics.by_number.reset(), metrics.confusion.reset(),
        metrics.perplexity.reset(), metrics.of_samples.reset();
    CHECK(refused([&] { metrics.mean.compute(); }, {"no sample"}));
    CHECK(refused([&] { metrics.confusion.compute(); }, {"no sample"}));
    metrics.update(Batch(all), {});
    CHECK(same(metrics.results(), expected(all)));
    // Results over ranks leave what a rank has seen as it was.
    metrics.results(comm::Self());
    CHECK(same(metrics.results(), expected(all)));
}

TEST_CASE("a class without samples or predictions has 0", "[metrics][metric_confusion]") {
    metrics::ConfusionMatrix confusion(3);
    confusion.update(torch::tensor({0, 0, 1}), torch::tensor({0, 1, 1}));
    auto const m = confusion.compute();
    CHECK(m.scalar_type() == torch::kLong);
    CHECK(torch::equal(m, torch::tensor({{1, 0, 0}, {1, 1, 0}, {0, 0, 0}})));
    CHECK(torch::equal(confusion.precision(m), torch::tensor({0.5, 1.0, 0.0}, torch::kDouble)));
    CHECK(torch::equal(confusion.recall(m), torch::tensor({1.0, 0.5, 0.0}, torch::kDouble)));
    CHECK(torch::allclose(confusion.f1(m), torch::tensor({2.0 / 3, 2.0 / 3, 0.0}, torch::kDouble)));
    CHECK(confusion.accuracy(m) == Approx(2.0 / 3));
    CHECK(refused([&] { metrics::ConfusionMatrix::accuracy(torch::zeros({2, 2}, torch::kLong)); }, {"no sample"}));
}

// ---- what they refuse ----------------------------------------------------------------------------------------------------------

TEST_CASE("a number for a whole batch is refused", "[metrics][metric_inputs]") {
    STATIC_REQUIRE(metrics::detail::number<double>);
    STATIC_REQUIRE(metrics::detail::number<int>);
    STATIC_REQUIRE(metrics::detail::number<c10::Half>);
    STATIC_REQUIRE(metrics::detail::number<at::Scalar>);
    STATIC_REQUIRE_FALSE(metrics::detail::number<at::Tensor>);
    STATIC_REQUIRE_FALSE(metrics::detail::number<std::vector<double>>);
    STATIC_REQUIRE_FALSE(std::constructible_from<metrics::Valid, double>);
    STATIC_REQUIRE_FALSE(std::constructible_from<metrics::Valid, bool>);
    auto const loss = torch::tensor(0.5), some = torch::ones({3});
    CHECK(error_of([&] { metrics::Mean().update(loss); }) ==
          "E_DATA: metrics::Mean: give one value for each sample (for example a loss with reduction none), not a mean of this rank's batch: ranks with fewer "
          "samples would count too much");
    CHECK(refused([&] { metrics::WeightedMean().update(loss, some); },
                  {"WeightedMean: give one value and one weight", "ranks with fewer samples would count too much"}));
    CHECK(refused([&] { metrics::WeightedMean().update(some, loss); }, {"WeightedMean: give one value and one weight"}));
    CHECK(refused([&] { metrics::Perplexity().update(loss); }, {"Perplexity: give the loss of each token", "ranks with fewer tokens would count too much"}));
    CHECK(refused([&] { metrics::Accuracy().update(loss, some); }, {"Accuracy: give the prediction and the label of each sample"}));
    CHECK(refused([&] { metrics::ConfusionMatrix(2).update(some, loss); }, {"ConfusionMatrix: give the prediction and the label of each sample"}));
}

TEST_CASE("shapes and dtypes that do not fit are refused, and nothing is added", "[metrics][metric_inputs][metric_mean][metric_accuracy][metric_confusion]") {
    auto const some = torch::ones({3}), labels = torch::zeros({3}, torch::kLong), scores = torch::ones({3, 4});
    metrics::Mean mean;
    mean.update(some);
    CHECK(refused([&] { mean.update(torch::Tensor()); }, {"metrics::Mean", "undefined"}));
    CHECK(refused([&] { mean.update(scores); }, {"metrics::Mean", "[n]", "[3, 4]"}));
    CHECK(refused([&] { mean.update(some.to(torch::kComplexFloat)); }, {"metrics::Mean", "ComplexFloat"}));
    CHECK(refused([&] { mean.update(some, torch::ones({2}, torch::kBool)); }, {"metrics::Mean", "valid", "[2]", "[3]"}));
    CHECK(refused([&] { mean.update(some, torch::tensor(true)); }, {"metrics::Mean", "valid", "[]", "[3]"}));
    CHECK(refused([&] { mean.update(some, some); }, {"metrics::Mean", "bool", "Float", "WeightedMean"}));
    CHECK(refused([&] { mean.update(some, 4); }, {"metrics::Mean", "4 valid samples", "3"}));
    CHECK(refused([&] { mean.update(some, -1); }, {"metrics::Mean", "-1 valid samples"}));
    mean.update(some * 3, 0);
    mean.update(some * 3, torch::Tensor());
    CHECK(mean.compute() == 2);

    metrics::WeightedMean weighted;
    weighted.update(some, some);
    CHECK(refused([&] { weighted.update(some, torch::ones({2})); }, {"WeightedMean", "[3]", "[2]"}));
    CHECK(refused([&] { weighted.update(some * 9, torch::tensor({1.0, -2.0, 1.0})); }, {"WeightedMean", "a weight is -2"}));
    CHECK(refused([&] { weighted.update(some * 9, torch::tensor({1.0, not_a_number, 1.0})); }, {"WeightedMean", "a weight is nan"}));
    CHECK(refused([&] { weighted.update(some * 9, torch::tensor({1.0, 1.0, HUGE_VAL})); }, {"WeightedMean", "a weight is inf"}));
    CHECK(weighted.compute() == 1);

    metrics::Perplexity perplexity;
    CHECK(refused([&] { perplexity.update(torch::ones({2, 3, 4})); }, {"Perplexity", "[2, 3, 4]", "[n, t]"}));
    CHECK(refused([&] { perplexity.update(torch::ones({2, 3}), torch::ones({3}, torch::kBool)); }, {"Perplexity", "[3]", "[2, 3]"}));
    CHECK(refused([&] { perplexity.update(torch::ones({2, 3}), torch::ones({3, 2}, torch::kBool)); }, {"Perplexity", "[3, 2]", "[2, 3]"}));

    metrics::Accuracy accuracy;
    metrics::ConfusionMatrix confusion(4);
    auto const both = [&](torch::Tensor const& p, torch::Tensor const& l, std::vector<std::string> const& parts) {
        return refused([&] { accuracy.update(p, l); }, parts) && refused([&] { confusion.update(p, l); }, parts);
    };
    CHECK(both(scores, torch::zeros({2}, torch::kLong), {"[3, 4]", "[2]"}));
    CHECK(both(labels, torch::zeros({2}, torch::kLong), {"[3]", "[2]"}));
    CHECK(both(torch::ones({3, 2, 4}), torch::zeros({3, 2}, torch::kLong), {"[3, 2, 4]", "[3, 2]", "flatten"}));
    CHECK(both(scores, torch::zeros({3, 1}, torch::kLong), {"[3, 4]", "[3, 1]"}));
    CHECK(both(scores, some, {"integers", "labels of Float"}));
    CHECK(both(some, labels, {"integers", "predictions of Float", "score.gt(0.5)"}));
    CHECK(both(torch::Tensor(), labels, {"undefined"}));
    CHECK(both(scores, labels.fill_(7), {"label 7", "4 classes"}));
    CHECK(both(scores, labels.fill_(-1), {"label -1", "4 classes"}));
    CHECK(refused([&] { confusion.update(torch::ones({3, 5}), labels); }, {"[3, 5]", "4 classes"}));
    CHECK(refused([&] { confusion.update(torch::tensor({0, 1, 4}), torch::tensor({0, 1, 2})); }, {"prediction 4 of sample 2", "4 classes"}));
    CHECK(refused([&] { metrics::Accuracy(5).update(scores, labels); }, {"4 classes", "top_k is 5"}));
    CHECK(refused([&] { metrics::Accuracy(2).update(labels, labels); }, {"top_k is 2", "scores [n, classes]"}));
    CHECK(error_of([] { metrics::Accuracy(0); }).find("E_CONFIG: metrics::Accuracy: top_k is 0") == 0);
    CHECK(error_of([] { metrics::ConfusionMatrix(0); }).find("E_CONFIG: metrics::ConfusionMatrix: 0 classes") == 0);
    CHECK(refused([&] { accuracy.compute(); }, {"no sample"}));
    CHECK(refused([&] { confusion.compute(); }, {"no sample"}));
    // Labels of padding are not looked at.
    accuracy.update(scores, torch::tensor({0, 9, -100}), 1), confusion.update(scores, torch::tensor({-1, 1, 9}), torch::tensor({false, true, false}));
    CHECK(accuracy.compute() == 1);
    CHECK(confusion.compute()[1][0].item<int64_t>() == 1);
}

// ---- on a device ---------------------------------------------------------------------------------------------------------------

TEST_CASE("values on a device are waited for once a call", "[metrics][metric_inputs]") {
    auto const device = at::Device(plug_in::type, 0);
    auto const all = draw(23, 5);
    Batch const here(all, {3, 22});
    auto away = here;
    for (auto* t : {&away.value, &away.weight, &away.scores, &away.token_losses, &away.token_counts, &away.label, &away.valid}) *t = t->to(device);
    away.value = away.value.to(torch::kFloat), away.weight = away.weight.to(torch::kHalf);
    auto rounded = here;
    rounded.value = here.value.to(torch::kFloat), rounded.weight = here.weight.to(torch::kHalf);
    All on_cpu, on_device, with_cpu_mask;
    on_cpu.update(rounded, here.valid), on_device.update(away, away.valid);
    CHECK(on_device.results() == on_cpu.results());
    away.label = here.label;  // labels and masks may stay where the loader made them
    auto mixed = away;
    mixed.valid = here.valid.to(device);
    with_cpu_mask.update(mixed, here.valid);
    CHECK(with_cpu_mask.results() == on_cpu.results());
    CHECK(on_device.results(comm::Staged<comm::Self, plug_in::type>(comm::Self())) == on_cpu.results());

    auto const labels = here.label.to(device);
    All fresh;
    CHECK(copies([&] { fresh.mean.update(away.value); }) == 1);
    CHECK(copies([&] { fresh.mean.update(away.value, away.valid); }) == 1);
    CHECK(copies([&] { fresh.weighted.update(away.value, away.weight, away.valid); }) == 1);
    CHECK(copies([&] { fresh.top3.update(away.scores, labels, away.valid); }) == 1);
    CHECK(copies([&] { fresh.top1.update(away.scores, here.label, here.valid); }) == 2);  // the labels go there, the hits come back
    CHECK(copies([&] { fresh.by_number.update(labels, labels, 5); }) == 1);
    CHECK(copies([&] { fresh.confusion.update(away.scores, labels, away.valid); }) == 1);
    CHECK(copies([&] { fresh.perplexity.update(away.token_losses, away.token_counts); }) == 1);
    CHECK(copies([&] { away.value.cpu(), away.label.cpu(), away.valid.cpu(); }) == 2);  // one is there already
    fresh.mean.update(torch::empty({0}).to(device), torch::empty({0}, torch::kBool).to(device));
}
