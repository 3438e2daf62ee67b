#pragma once

#include <accelerate/data/delivery.hpp>
#include <accelerate/data/dispatch_plan.hpp>
#include <accelerate/data/fetch.hpp>
#include <accelerate/data/loader.hpp>
#include <accelerate/data/stream_slices.hpp>

namespace accelerate::data {

/// What one round is for one rank.
template <class Batch>
struct Share {
    std::optional<Batch> batch = {};
    int64_t length = 0, valid = 0;
    bool last = false;  ///< it has none in later rounds
};

/// The batches of all ranks that one rank has read.
template <class Batch>
struct DispatchedRound {
    std::vector<Share<Batch>> shares = {};
    Position position = {};  ///< of the epoch, with them
    int64_t remainder = 0;
    bool last = false;
};

/// Makes rounds of an indexed data set, in any order, on several threads at once.
template <class Loader>
class IndexedRounds {
    using Plan = DispatchPlan<typename Loader::order_type>;

public:
    using round_type = DispatchedRound<batch_of<Loader>>;

    /// `loader` must outlive this.
    IndexedRounds(Loader& loader, int64_t epoch, Plan plan, int64_t threads)
        : loader_(&loader),
          plan_(std::move(plan)),
          epoch_(epoch),
          seed_(loader.seed()),
          reading_(static_cast<size_t>(threads)) {}

    int64_t remainder() const { return plan_.remainder(); }
    std::string reading(int64_t worker) { return concat("sample ", reading_[static_cast<size_t>(worker)].load(), by(worker).who()); }

    std::optional<round_type> make(int64_t k, int64_t worker) {
        if (k >= plan_.rounds()) return std::nullopt;
        round_type round{.position = {plan_.consumed(k)}, .remainder = plan_.remainder(), .last = k + 1 == plan_.rounds()};
        for (int64_t r = 0; r < plan_.ranks(); ++r) {
            auto const indices = plan_.indices(k, r);
            auto& share = round.shares.emplace_back();
            share.length = static_cast<int64_t>(indices.size()), share.valid = plan_.valid(k, r), share.last = k + 1 >= plan_.batches(r);
            if (!indices.empty()) share.batch = data::fetch(loader_->dataset(), loader_->collation(), indices, [&](int64_t j) { return plan_.position(k, r, j); }, by(worker));
        }
        return round;
    }

private:
    ReadBy by(int64_t worker) { return {seed_, epoch_, 0, worker, &reading_[static_cast<size_t>(worker)]}; }

    Loader* loader_;
    Plan plan_;
    int64_t epoch_, seed_;
    std::vector<std::atomic<int64_t>> reading_;
};

/// Makes rounds of a stream, one after the other.
template <class Loader, class Stream>
class StreamRounds {
    using Sample = typename Loader::sample_type;
    struct Listed {  // rounds as lists of samples, which each rank's batch is collated from
        std::vector<Sample> operator()(std::vector<Sample>&& samples) const { return std::move(samples); }
    };

public:
    using round_type = DispatchedRound<batch_of<Loader>>;

    /// `each`: a rank's own share, of which sizes and rule count; its `begin` samples were given out before.
    StreamRounds(Loader& loader, Stream stream, int64_t epoch, Shard const& each, EndRule rule, bool at_beginning)
        : loader_(&loader),
          size_(each.size),
          local_(each.local_batch_size()),
          rule_(rule),
          consumed_(each.begin),
          reading_(each.begin),
          by_{loader.seed(), epoch, 0, 0, &reading_},
          slices_(std::forward<Stream>(stream), listed_, Slice{total(), 0, total(), rule == Drop ? Drop : Ragged, each.begin, rule == Pad ? size_ : 0}, at_beginning,
                  by_) {}

    int64_t remainder() const { return 0; }
    std::string reading(int64_t) const { return concat("sample ", reading_.load(), " of the stream", by_.who()); }

    std::optional<round_type> make(int64_t k, int64_t) {
        if (k == 0) ahead_ = slices_.next();
        auto now = std::exchange(ahead_, std::nullopt);
        if (!now) return std::nullopt;
        ahead_ = slices_.next();
        consumed_ += now->given;
        auto& samples = *now->batch;
        fill(samples);
        round_type round{.position = {consumed_, now->offsets}, .remainder = !ahead_ && now->given < total() ? now->given : 0, .last = !ahead_};
        auto const share = dispatched_share(now->given, local_, size_, rule_), held = static_cast<int64_t>(samples.size());
        auto const left = !ahead_ ? 0 : rule_ == Ragged ? ahead_->given : total(), next_share = dispatched_share(left, local_, size_, rule_);
        for (int64_t r = 0; r < size_; ++r) {
            auto const from = samples.begin() + std::min(held, r * share), to = samples.begin() + std::min(held, (r + 1) * share);
            auto& out = round.shares.emplace_back();
            out.valid = std::clamp<int64_t>(now->given - r * share, 0, share), out.length = to - from, out.last = r * next_share >= left;
            if (from == to) continue;
            out.batch = detail::with_context([&] { return loader_->collation()(std::vector<Sample>(std::move_iterator(from), std::move_iterator(to))); },
                                             [&] { return concat("data::Loader: collating samples ", consumed_ - now->given, " to ", consumed_ - 1, " of the stream", by_.who()); });
        }
        return round;
    }

private:
    int64_t total() const { return local_ * size_; }

    /// Completes an incomplete round, so that each rank's share is of one size.
    void fill(std::vector<Sample>& samples) {
        auto const given = static_cast<int64_t>(samples.size()), wanted = dispatched_share(given, local_, size_, rule_) * size_;
        if (rule_ == Ragged || given == wanted) return;
        if constexpr (std::copy_constructible<Sample>) {
            auto const last = samples.back();
            for (int64_t i = 0; given + i < wanted; ++i) samples.push_back(rule_ == Mask ? last : slices_.first()[static_cast<size_t>(i) % slices_.first().size()]);
        } else throw Error(code::config, "data::Loader: samples that cannot be copied cannot fill up the last batches; set even_batches = Drop or Ragged");
    }

    Loader* loader_;
    int64_t size_, local_;
    EndRule rule_;
    int64_t consumed_;
    std::atomic<int64_t> reading_;
    ReadBy by_;
    Listed listed_;
    StreamSlices<Stream, Listed> slices_;
    std::optional<StreamRound<std::vector<Sample>>> ahead_;
};

}  // namespace accelerate::data
