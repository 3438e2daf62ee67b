#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/data/context.hpp>
#include <accelerate/data/delivery.hpp>
#include <accelerate/data/fetch.hpp>
#include <accelerate/data/loader.hpp>
#include <accelerate/data/move_to.hpp>
#include <accelerate/data/plan.hpp>
#include <accelerate/data/workers.hpp>

namespace accelerate::data {

/// One rank's batches of an indexed data set. Its place in the state is the number of samples, and the data set's `hash()` where it has one.
template <class Loader>
class IndexedSource {
public:
    using batch_type = batch_of<Loader>;
    class Run;

    /// Error E_DATA when the data set is empty, E_CONFIG when its batches cannot be split over the ranks.
    IndexedSource(Loader loader, Context const& context) : IndexedSource(std::move(loader), context, {}) {}
    /// Of a data set that another rank reads, which has so many samples.
    IndexedSource(Loader loader, Context const& context, std::optional<int64_t> samples)
        : loader_(std::move(loader)), rank_(context.rank), size_(context.size), pins_(loader_.options().pin_memory && !context.device.is_cpu()),
          samples_(samples ? *samples : static_cast<int64_t>(loader_.dataset().size())) {
        check(samples_ > 0, code::data, "prepare: the data set of a Loader is empty (its size() is 0); is the path or the filter right?");
        shard(0).validate();
        check(!batch_sampler<typename Loader::order_type> || !loader_.options().split_batches, code::config,
              "data::Loader: split_batches cannot be combined with a batch sampler, whose batches differ in size; leave it off");
    }

    Loader& loader() { return loader_; }
    Loader const& loader() const { return loader_; }
    int64_t batches(int64_t epoch) const { return plan(epoch, 0).batches(); }
    int64_t total_batch_size() const { return shard(0).total_batch_size(); }
    int64_t samples() const { return samples_; }
    /// Where the epoch stands when every rank has had n batches.
    int64_t position_after(int64_t n, int64_t epoch) const { return consumed_after(n, plan(epoch, 0), positions()); }

    /// Samples of an epoch: those of the data set, unless the order draws another number.
    int64_t positions() const {
        if constexpr (requires { loader_.order().length(samples_); }) return loader_.order().length(samples_);
        else return samples_;
    }

    void save(nlohmann::json& values, Position const&) const {
        values["size"] = samples_;
        if constexpr (hashed) values["hash"] = loader_.dataset().hash();
    }
    /// Error E_DATA when it was another data set.
    void check_state(StateDict const& state, int64_t consumed) const {
        constexpr auto who = "data::Loader";
        auto const size = state.value<int64_t>("size", who);
        check(size == samples_, code::data, who, ".load_state_dict: the data set has ", samples_, " samples, it had ", size,
              " when the state was saved; use the same data set, or start the epoch anew with set_epoch");
        if constexpr (hashed) {
            auto const now = loader_.dataset().hash();
            auto const before = state.value<std::remove_const_t<decltype(now)>>("hash", who);
            check(before == now, code::data, who, ".load_state_dict: the data set's hash is ", now, ", it was ", before,
                  " when the state was saved; use the same data set, or start the epoch anew with set_epoch");
        }
        check(consumed <= positions(), code::data, who, ".load_state_dict: ", consumed, " of ", positions(), " samples consumed cannot be");
    }
    Position position_in(StateDict const&, int64_t consumed) const { return {consumed}; }

private:
    static constexpr bool hashed = requires(Loader const& l) { l.dataset().hash(); };

    /// `joined`: as `Join` wants it, which does not repeat samples to fill up batches.
    Shard shard(int64_t begin, bool joined = false) const {
        auto const& o = loader_.options();
        auto const even = joined && o.even_batches.rule == Pad ? EvenBatches(Ragged) : o.even_batches;
        return {positions(), o.batch_size, o.drop_last, even, o.split_batches, rank_, size_, begin, joined && even.rule == Ragged && size_ > 1};
    }
    auto plan(int64_t epoch, int64_t begin, bool joined = false) const { return data::plan(loader_.order(), epoch, samples_, shard(begin, joined)); }

    Loader loader_;
    int64_t rank_, size_;
    bool pins_;
    int64_t samples_;
};

/// The batches of one epoch from `begin` on, made when asked for or by workers.
template <class Loader>
class IndexedSource<Loader>::Run {
public:
    Run(std::shared_ptr<IndexedSource> source, int64_t epoch, Position const& begin, bool joined) : job_(std::make_shared<Job>(std::move(source), epoch, begin.consumed, joined)) {
        auto const& o = job_->source->loader_.options();
        if (o.num_workers > 0)
            workers_ = std::make_unique<Workers<batch_type>>(
                [job = job_](int64_t k, int64_t worker) { return k < job->batches ? std::optional(job->make(k, worker)) : std::nullopt; },
                [job = job_](int64_t worker) { return concat("sample ", job->reading[static_cast<size_t>(worker)].load(), job->by(worker).who()); }, o.num_workers,
                o.num_workers * o.prefetch_factor);
    }

    int64_t remainder() const { return job_->plan.remainder(); }
    void while_waiting(std::function<void()> f) {
        if (workers_) workers_->while_waiting(std::move(f));
    }

    std::optional<Delivery<batch_type>> next() {
        if (k_ == job_->batches) return std::nullopt;
        auto const& plan = job_->plan;
        std::optional<batch_type> batch = workers_ ? workers_->take(std::chrono::duration<double>(job_->source->loader_.options().timeout_s)) : job_->make(k_, -1);
        auto const k = k_++;
        return Delivery<batch_type>{std::move(*batch), plan.length(k), plan.valid(k), {plan.consumed(k)}, k_ == job_->batches};
    }

private:
    /// What the workers use; shared with them.
    struct Job {
        Job(std::shared_ptr<IndexedSource> s, int64_t e, int64_t begin, bool joined)
            : source(std::move(s)), plan(source->plan(e, begin, joined)), batches(plan.batches()), epoch(e), seed(source->loader_.seed()),
              reading(static_cast<size_t>(source->loader_.options().num_workers)) {}

        ReadBy by(int64_t worker) { return {seed, epoch, source->rank_, worker, worker < 0 ? nullptr : &reading[static_cast<size_t>(worker)]}; }
        batch_type make(int64_t k, int64_t worker) {
            auto batch = data::fetch(source->loader_.dataset(), source->loader_.collation(), plan.indices(k), [&](int64_t j) { return plan.position(k, j); }, by(worker));
            if (source->pins_) data::pin(batch);
            return batch;
        }

        std::shared_ptr<IndexedSource> source;
        decltype(std::declval<IndexedSource const&>().plan(0, 0)) plan;
        int64_t batches, epoch, seed;
        std::vector<std::atomic<int64_t>> reading;
    };

    std::shared_ptr<Job> job_;
    std::unique_ptr<Workers<batch_type>> workers_;
    int64_t k_ = 0;
};

}  // namespace accelerate::data
