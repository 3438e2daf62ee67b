#pragma once

#include <ATen/ops/arange.h>

#include <accelerate/data/metric_mean.hpp>

namespace accelerate::metrics {

/// The share of samples whose label is among the `top_k` classes with the highest scores, over all samples that all ranks have seen.
/// Of equal scores the lower class number comes first, on every device; a NaN is never a hit, and comes before all others.
class Accuracy {
public:
    /// Error E_CONFIG for a `top_k` below 1.
    explicit Accuracy(int64_t top_k = 1) : top_k_(top_k) { check(top_k >= 1, code::config, who, ": top_k is ", top_k, "; it must be at least 1"); }

    /// `predictions`: scores [n, classes] of any real dtype, or, for top_k = 1, class numbers [n]; `labels`: class numbers [n] (integers
    /// of any dtype). On any device, n may be 0. `valid`: see `Valid`; labels that do not count may be anything. Scores cost a few passes
    /// over them on their device and memory for as many bools; waits for a device once. Error E_DATA for other shapes or dtypes, fewer
    /// classes than top_k, or a label that is no class; nothing is added then.
    void update(at::Tensor const& predictions, at::Tensor const& labels, Valid const& valid = {}) {
        detail::check_classes(predictions, labels, who, instead);
        auto const scores = predictions.dim() == 2;
        check(scores || top_k_ == 1, code::data, who, ": top_k is ", top_k_, ", and predictions of shape ", predictions.sizes(),
              " name one class each; give scores [n, classes]");
        check(!scores || predictions.size(1) >= top_k_, code::data, who, ": scores for ", predictions.size(-1), " classes, and top_k is ", top_k_,
              "; there must be as many at least");
        auto said = scores ? hits(predictions.detach(), labels) : predictions, right = labels, counted = valid.mask(labels.sizes(), who);
        detail::to_cpu({&said, &right, &counted});
        right = right.to(at::kLong);
        if (scores) detail::check_range(right, counted, predictions.size(1), who, "label");
        sums_.add(scores ? said : said.to(at::kLong).eq(right), counted);
    }
    /// Numbers do not compile.
    template <detail::number Number, class... Rest>
    void update(Number const&, Rest const&...) {
        static_assert(!detail::number<Number>,
                      "metrics::Accuracy: give the prediction and the label of each sample, as tensors, not an accuracy of this rank's batch: ranks with fewer samples would count too much");
    }

    /// From 0 to 1; otherwise as `Mean::compute`.
    double compute() const { return sums_.compute(who); }
    template <comm::communicator Communicator>
    double compute(Communicator const& c) const { return sums_.compute(c, who); }
    void reset() { sums_ = {}; }

private:
    /// Whether fewer than top_k classes come before the label's. A NaN of the label's own has all classes before it. Labels that are no
    /// class are replaced, so that none is looked up.
    at::Tensor hits(at::Tensor const& scores, at::Tensor const& labels) const {
        auto const classes = scores.size(1);
        auto const label = labels.detach().to(scores.device(), at::kLong, true).clamp(0, classes - 1).unsqueeze(1);
        auto const own = scores.gather(1, label);
        auto const tied_before = scores.eq(own).logical_and(at::arange(classes, label.options()).lt(label));
        return scores.le(own).logical_not().logical_or(tied_before).sum(1).lt(top_k_);
    }

    static constexpr std::string_view who = "metrics::Accuracy";
    static constexpr std::string_view instead =
        "give the prediction and the label of each sample, as tensors, not an accuracy of this rank's batch: ranks with fewer samples would count too much";
    int64_t top_k_;
    detail::Quotient sums_;
};

}  // namespace accelerate::metrics
