#pragma once

#include <accelerate/data/plan.hpp>

namespace accelerate::data {

/// How many of a round's `count` samples each of `size` ranks gets when one rank reads for all: `local`, or in an incomplete last round
/// equal pieces, the first samples of the epoch filling up the last one (the rule of Python's `DataLoaderDispatcher`). Under `Mask` all
/// batches have `local` samples.
inline int64_t dispatched_share(int64_t count, int64_t local, int64_t size, EndRule rule) { return rule == Mask || count == local * size ? local : (count + size - 1) / size; }

/// Which samples the rank that reads for all gives to each rank in each round.
template <class Order>
class DispatchPlan {
    using View = decltype(std::declval<Order const&>().epoch(0, 0));

public:
    /// `each` is the plan of a rank's own share; rank 0's.
    DispatchPlan(Order const& order, int64_t e, int64_t n, Shard const& each)
        : view_(order.epoch(e, n)),
          whole_{.samples = each.samples, .batch_size = each.total_batch_size(), .drop_last = each.drop_last,
                 .even_batches = each.even_batches.rule == Drop ? Drop : Ragged, .begin = each.begin},
          local_(each.local_batch_size()),
          size_(each.size),
          rule_(each.even_batches.rule) {}

    int64_t ranks() const { return size_; }
    int64_t rounds() const { return whole_.batches(); }
    /// Of that rank: where rounds stay incomplete, the last one may have nothing for it.
    int64_t batches(int64_t rank) const { return rounds() - (rule_ == Ragged && rounds() > 0 && valid(rounds() - 1, rank) == 0); }
    int64_t consumed(int64_t k) const { return whole_.consumed(k); }
    int64_t remainder() const { return whole_.remainder(); }
    int64_t valid(int64_t k, int64_t rank) const { return std::clamp<int64_t>(count(k) - rank * share(k), 0, share(k)); }
    int64_t position(int64_t k, int64_t rank, int64_t j) const {
        auto const p = rank * share(k) + j;
        if (p < count(k)) return whole_.begin + k * whole_.batch_size + p;
        return rule_ == Mask ? whole_.samples - 1 : (p - count(k)) % whole_.samples;
    }
    std::vector<int64_t> indices(int64_t k, int64_t rank) const {
        std::vector<int64_t> out(static_cast<size_t>(rule_ == Ragged ? valid(k, rank) : share(k)));
        for (size_t j = 0; j < out.size(); ++j) out[j] = entry(view_, position(k, rank, static_cast<int64_t>(j)));
        return out;
    }

private:
    int64_t count(int64_t k) const { return whole_.batch_length(k); }
    int64_t share(int64_t k) const { return dispatched_share(count(k), local_, size_, rule_); }

    View view_;
    Shard whole_;
    int64_t local_, size_;
    EndRule rule_;
};

/// The same for a batch sampler: each rank gets whole batches, as if it read for itself.
template <batch_sampler Order>
class DispatchPlan<Order> {
public:
    DispatchPlan(Order const& order, int64_t e, int64_t n, Shard each) {
        for (each.rank = 0; each.rank < each.size; ++each.rank) ranks_.emplace_back(order.batches(e, n), each);
    }

    int64_t ranks() const { return static_cast<int64_t>(ranks_.size()); }
    int64_t rounds() const { return ranks_[0].batches(); }
    int64_t batches(int64_t rank) const { return of(rank).batches(); }
    int64_t consumed(int64_t k) const { return ranks_[0].consumed(k); }
    int64_t remainder() const { return ranks_[0].remainder(); }
    int64_t valid(int64_t k, int64_t rank) const { return of(rank).valid(k); }
    int64_t position(int64_t k, int64_t rank, int64_t j) const { return of(rank).position(k, j); }
    std::vector<int64_t> indices(int64_t k, int64_t rank) const { return k < of(rank).batches() ? of(rank).indices(k) : std::vector<int64_t>(); }

private:
    using Plan = SamplerPlan<decltype(std::declval<Order const&>().batches(0, 0))>;
    Plan const& of(int64_t rank) const { return ranks_[static_cast<size_t>(rank)]; }

    std::vector<Plan> ranks_;
};

}  // namespace accelerate::data
