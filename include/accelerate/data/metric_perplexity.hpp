#pragma once

#include <accelerate/data/metric_mean.hpp>
#include <cmath>

namespace accelerate::metrics {

/// exp of the mean loss of a token, over all tokens that all ranks have seen. Otherwise as `Mean`.
class Perplexity {
public:
    /// `token_losses`: [n] or [n, t], the negative log likelihood of each token in nats: cross_entropy with reduction none. `valid`:
    /// of the same shape, one element for each token, or one (or a count) for whole samples. Tokens that cross_entropy ignored have
    /// loss 0 and must be left out here, as with labels.ne(-100). Waits for a device once. Error E_DATA for other shapes.
    void update(at::Tensor const& token_losses, Valid const& valid = {}) {
        auto losses = detail::samples(token_losses, 2, who, instead), counted = valid.mask(losses.sizes(), who);
        detail::to_cpu({&losses, &counted});
        sums_.add(losses, counted);
    }
    /// A number does not say how many tokens it stands for: does not compile.
    template <detail::number Number, class... Rest>
    void update(Number const&, Rest const&...) {
        static_assert(!detail::number<Number>,
                      "metrics::Perplexity: give the loss of each token (cross_entropy with reduction none), not a mean of this rank's batch: ranks with fewer tokens would count too much");
    }

    /// As `Mean::compute`.
    double compute() const { return std::exp(sums_.compute(who)); }
    template <comm::communicator Communicator>
    double compute(Communicator const& c) const { return std::exp(sums_.compute(c, who)); }
    void reset() { sums_ = {}; }

private:
    static constexpr std::string_view who = "metrics::Perplexity";
    static constexpr std::string_view instead =
        "give the loss of each token (cross_entropy with reduction none), not a mean of this rank's batch: ranks with fewer tokens would count too much";
    detail::Quotient sums_;
};

}  // namespace accelerate::metrics
