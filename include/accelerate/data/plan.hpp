#pragma once

#include <accelerate/data/order.hpp>
#include <accelerate/data/sampler.hpp>
#include <accelerate/data/shard.hpp>
#include <algorithm>
#include <utility>
#include <vector>

namespace accelerate::data {

/// `view[position]`, also of those that count in a type of their own, as `std::vector` does.
template <class View>
decltype(auto) entry(View const& view, int64_t position) {
    if constexpr (requires { typename View::size_type; }) return view[static_cast<typename View::size_type>(position)];
    else return view[position];
}

/// Which samples one rank's batches of one epoch hold, where an order says how samples follow each other.
template <class View>
class OrderPlan {
public:
    OrderPlan(View view, Shard const& shard) : view_(std::move(view)), shard_(shard), batches_(shard.batches()) {}

    int64_t batches() const { return batches_; }
    /// Samples of batch k.
    int64_t length(int64_t k) const { return shard_.batch_length(k); }
    /// Those of them that are no repetitions; they come first.
    int64_t valid(int64_t k) const { return shard_.valid(k); }
    /// Positions of the epoch that all ranks have consumed with batch k.
    int64_t consumed(int64_t k) const { return shard_.consumed(k); }
    int64_t remainder() const { return shard_.remainder(); }
    int64_t position(int64_t k, int64_t j) const { return shard_.position(k, j); }
    std::vector<int64_t> indices(int64_t k) const {
        std::vector<int64_t> out(static_cast<size_t>(length(k)));
        for (size_t j = 0; j < out.size(); ++j) out[j] = entry(view_, shard_.position(k, static_cast<int64_t>(j)));
        return out;
    }

private:
    View view_;
    Shard shard_;
    int64_t batches_;
};

/// The same where a batch sampler makes whole batches: rank r takes batches r, r + size, ... of it. What is missing in the last round
/// is whole batches from the beginning (Python Accelerate's rule for batches that differ in size).
template <class View>
class SamplerPlan {
public:
    /// Error E_DATA when the position that `shard` begins at lies inside a batch.
    SamplerPlan(View view, Shard const& shard) : view_(std::move(view)), shard_(shard), starts_{0} {
        for (int64_t g = 0; g < static_cast<int64_t>(view_.size()); ++g) starts_.push_back(starts_.back() + static_cast<int64_t>(entry(view_, g).size()));
        auto const found = std::lower_bound(starts_.begin(), starts_.end(), shard.begin);
        check(found != starts_.end() && *found == shard.begin, code::data, "data::Loader: sample ", shard.begin,
              " of the epoch is not the first of a batch of this batch sampler; the position was saved with another sampler");
        first_ = found - starts_.begin();
    }

    int64_t batches() const {
        auto const rest = left() % shard_.size;
        return left() / shard_.size + (rest > 0 && !drops() && (shard_.even_batches.rule != Ragged || shard_.joined || shard_.rank < rest));
    }
    int64_t length(int64_t k) const { return starts_[at(reused(k) + 1)] - starts_[at(reused(k))]; }
    int64_t valid(int64_t k) const { return global(k) < count() ? length(k) : 0; }
    int64_t consumed(int64_t k) const { return starts_[at(std::min(count(), first_ + (k + 1) * shard_.size))]; }
    int64_t remainder() const { return drops() ? 0 : starts_.back() - starts_[at(count() - left() % shard_.size)]; }
    int64_t position(int64_t k, int64_t j) const { return starts_[at(reused(k))] + j; }
    std::vector<int64_t> indices(int64_t k) const {
        auto const& batch = entry(view_, reused(k));
        return {batch.begin(), batch.end()};
    }
    /// Samples that all batches hold.
    int64_t samples() const { return starts_.back(); }

private:
    static size_t at(int64_t i) { return static_cast<size_t>(i); }
    int64_t count() const { return static_cast<int64_t>(starts_.size()) - 1; }
    int64_t left() const { return count() - first_; }
    bool drops() const { return shard_.drop_last || shard_.even_batches.rule == Drop; }
    int64_t global(int64_t k) const { return first_ + k * shard_.size + shard_.rank; }
    int64_t reused(int64_t k) const { return global(k) < count() ? global(k) : (global(k) - count()) % count(); }

    View view_;
    Shard shard_;
    std::vector<int64_t> starts_;
    int64_t first_ = 0;
};

/// Of an epoch of `positions`, those that are consumed when every rank has had its first n batches of a plan.
template <class Plan>
int64_t consumed_after(int64_t n, Plan const& plan, int64_t positions) {
    return n <= 0 ? 0 : plan.consumed(std::min(n, positions) - 1);
}

/// The plan of epoch e over a data set of n samples. `shard` counts positions of the epoch where there is an order.
template <class Order>
auto plan(Order const& order, int64_t e, int64_t n, Shard const& shard) {
    if constexpr (batch_sampler<Order>) return SamplerPlan(order.batches(e, n), shard);
    else return OrderPlan(order.epoch(e, n), shard);
}

}  // namespace accelerate::data
