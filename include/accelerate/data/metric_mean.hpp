#pragma once

#include <ATen/ops/empty.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/data/metric_inputs.hpp>
#include <limits>

namespace accelerate::metrics {

namespace detail {

/// Two sums over samples whose quotient is a metric. Adds up over batches and ranks, where a mean of means would not.
class Quotient {
public:
    void add(double above, double below) { above_ += above, below_ += below; }
    /// Values and which of them count; both on the CPU, of one shape.
    void add(at::Tensor const& values, at::Tensor const& counted) {
        add(values.to(at::kDouble).masked_fill(counted.logical_not(), 0).sum().item<double>(), static_cast<double>(counted.sum().item<int64_t>()));
    }

    double compute(std::string_view who) const { return divided(above_, below_, who); }

    template <comm::communicator Communicator>
    double compute(Communicator const& c, std::string_view who) const {
        auto const sums = at::empty({2}, at::TensorOptions(at::kDouble));
        auto* const sum = sums.template mutable_data_ptr<double>();
        sum[0] = above_, sum[1] = below_;
        c.all_reduce(sums, comm::Reduction::Sum);
        return divided(sum[0], sum[1], who);
    }

private:
    static double divided(double above, double below, std::string_view who) {
        check(below > 0, code::data, who, ".compute: no sample was counted; call update first, and look whether `valid` (or a weight) leaves any");
        return above / below;
    }

    double above_ = 0, below_ = 0;
};

}  // namespace detail

/// The mean of one value for each sample, over all samples that all ranks have seen:
///   metrics::Mean loss;
///   for (auto& batch : validation) loss.update(cross_entropy(model(batch.input), batch.target, Options().reduction(torch::kNone)));
///   double const mean = loss.compute(accelerator.comm());
/// Sums are kept in fp64 on the CPU. Copies are independent. NaN and infinite values that count show in the result.
class Mean {
public:
    /// `values`: [n], real (also bool or integers), on any device, n may be 0; a graph is left alone. `valid`: see `Valid`. Waits for
    /// a device once. Error E_DATA for other shapes; nothing is added then.
    void update(at::Tensor const& values, Valid const& valid = {}) {
        auto of_samples = detail::samples(values, 1, who, instead), counted = valid.mask(of_samples.sizes(), who);
        detail::to_cpu({&of_samples, &counted});
        sums_.add(of_samples, counted);
    }
    /// A number does not say how many samples it stands for: does not compile.
    template <detail::number Number, class... Rest>
    void update(Number const&, Rest const&...) {
        static_assert(!detail::number<Number>,
                      "metrics::Mean: give one value for each sample (for example a loss with reduction none), not a mean of this rank's batch: ranks with fewer samples would count too much");
    }

    /// Of what this rank has seen. Error E_DATA when that was nothing.
    double compute() const { return sums_.compute(who); }
    /// Of what all ranks have seen, on every rank. Collective: one all_reduce of two numbers. Error E_DATA, on every rank, when that
    /// was nothing; a rank that saw nothing takes part as well.
    template <comm::communicator Communicator>
    double compute(Communicator const& c) const { return sums_.compute(c, who); }
    /// As if nothing had been seen.
    void reset() { sums_ = {}; }

private:
    static constexpr std::string_view who = "metrics::Mean";
    static constexpr std::string_view instead =
        "give one value for each sample (for example a loss with reduction none), not a mean of this rank's batch: ranks with fewer samples would count too much";
    detail::Quotient sums_;
};

/// The mean of one value for each sample, weighted: sum(weight * value) / sum(weight) over all ranks. Otherwise as `Mean`.
class WeightedMean {
public:
    /// `values` and `weights`: [n], as for `Mean`. Weights are finite and not negative; 0 leaves a sample out, whatever its value.
    /// Waits for a device once. Error E_DATA for other shapes or weights; nothing is added then.
    void update(at::Tensor const& values, at::Tensor const& weights, Valid const& valid = {}) {
        auto v = detail::samples(values, 1, who, instead), w = detail::samples(weights, 1, who, instead), counted = valid.mask(v.sizes(), who);
        check(v.sizes() == w.sizes(), code::data, who, ": the values have shape ", v.sizes(), ", the weights ", w.sizes(), "; give one weight for each value");
        detail::to_cpu({&v, &w, &counted});
        w = w.to(at::kDouble).masked_fill(counted.logical_not(), 0);
        if (auto const wrong = w.ge(0).logical_and(w.lt(std::numeric_limits<double>::infinity())).logical_not(); wrong.any().item<bool>())
            throw Error(code::data,
                        concat(who, ": a weight is ", w.masked_select(wrong).select(0, 0).item<double>(), "; weights must be finite and at least 0"));
        sums_.add(v.to(at::kDouble).masked_fill(w.eq(0), 0).mul(w).sum().item<double>(), w.sum().item<double>());
    }
    /// Numbers in place of a tensor do not compile.
    template <detail::number Number, class... Rest>
    void update(Number const&, Rest const&...) { refuse<Number>(); }
    template <detail::number Number, class... Rest>
    void update(at::Tensor const&, Number const&, Rest const&...) { refuse<Number>(); }

    /// As `Mean::compute`.
    double compute() const { return sums_.compute(who); }
    template <comm::communicator Communicator>
    double compute(Communicator const& c) const { return sums_.compute(c, who); }
    void reset() { sums_ = {}; }

private:
    template <class Number>
    static void refuse() {
        static_assert(!detail::number<Number>,
                      "metrics::WeightedMean: give one value and one weight for each sample, as tensors (for example a loss with reduction none), not a mean of this rank's batch: ranks with fewer samples would count too much");
    }
    static constexpr std::string_view who = "metrics::WeightedMean";
    static constexpr std::string_view instead =
        "give one value and one weight for each sample, as tensors (for example a loss with reduction none), not a mean of this rank's batch: ranks with fewer samples would count too much";
    detail::Quotient sums_;
};

}  // namespace accelerate::metrics
