#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/data/ahead.hpp>
#include <accelerate/data/context.hpp>
#include <accelerate/data/fetch.hpp>
#include <accelerate/data/loader.hpp>
#include <accelerate/data/move_to.hpp>
#include <accelerate/data/shard.hpp>
#include <iterator>
#include <optional>

namespace accelerate::data {

/// A loader that an accelerator prepared, for one rank: a range-for over it runs one epoch, `for (auto& batch : train)`.
/// After its end `epoch()` has advanced; after a `break` the next range-for starts the epoch again; after `load_state_dict` the
/// first one goes on behind the last batch that was consumed. Its state is {seed, epoch, consumed, size}, so that resuming takes
/// no time and may be on another number of ranks. Can be moved, also while a loop runs; not copied.
template <class Loader>
class Prepared {
    struct Core;
    class Iterator;

public:
    using batch_type = batch_of<Loader>;

    /// Error E_DATA when the data set is empty, E_CONFIG when its batches cannot be split over the ranks.
    explicit Prepared(Loader loader, Context context = {}) : core_(std::make_shared<Core>(std::move(loader), std::move(context))) {}
    Prepared(Prepared&&) = default;
    Prepared& operator=(Prepared&&) = default;

    /// Starts an epoch, or goes on with the one whose state was loaded.
    Iterator begin() { return Iterator(core_); }
    std::default_sentinel_t end() const { return {}; }

    /// Epochs finished; while a loop runs, the one it runs.
    int64_t epoch() const { return core_->epoch; }
    /// The next range-for runs epoch e from its beginning. The epoch that is current already is not disturbed, so that a state may
    /// be loaded before. A loop that runs now ends with the batch at hand.
    void set_epoch(int64_t e) {
        check(e >= 0, code::config, "data::Loader: set_epoch(", e, "); epochs are counted from 0");
        if (e != core_->epoch) core_->go_to(e, 0);
    }

    /// Samples of this epoch that all ranks together have consumed: counted when a batch is handed to the loop body.
    int64_t consumed() const { return core_->consumed; }
    /// Batches of this rank in a whole epoch.
    int64_t size() const { return core_->shard(0).batches(); }
    /// Samples that all ranks together get at once.
    int64_t total_batch_size() const { return core_->shard(0).total_batch_size(); }

    auto& dataset() { return core_->loader.dataset(); }
    data::options const& options() const { return core_->loader.options(); }

    StateDict state_dict() const {
        StateDict s;
        s.values = {{"seed", core_->seed()}, {"epoch", core_->epoch}, {"consumed", core_->consumed}, {"size", core_->samples}};
        return s;
    }
    /// Error E_DATA when the state is not a loader's, or the data set has changed its size. A running loop ends with the batch at
    /// hand. The seed comes from the state, so that the epoch goes on in the order in which it began.
    void load_state_dict(StateDict const& s) {
        constexpr auto who = "data::Loader";
        auto const seed = s.value<int64_t>("seed", who), e = s.value<int64_t>("epoch", who);
        auto const consumed = s.value<int64_t>("consumed", who), size = s.value<int64_t>("size", who);
        check(size == core_->samples, code::data, who, ".load_state_dict: the data set has ", core_->samples, " samples, it had ", size,
              " when the state was saved; use the same data set, or start the epoch anew with set_epoch");
        check(e >= 0 && consumed >= 0 && consumed <= size, code::data, who, ".load_state_dict: epoch ", e, " with ", consumed, " of ", size,
              " samples consumed cannot be");
        core_->set_seed(seed);
        core_->go_to(e, consumed);
        core_->resume = true;
    }

private:
    struct Core {
        Core(Loader l, Context c) : loader(std::move(l)), context(std::move(c)), samples(static_cast<int64_t>(loader.dataset().size())) {
            check(samples > 0, code::data, "prepare: the data set of a Loader is empty (its size() is 0); is the path or the filter right?");
            shard(0).validate();
        }

        Shard shard(int64_t begin) const {
            auto const& o = loader.options();
            return {samples, o.batch_size, o.drop_last, o.even_batches, o.split_batches, context.rank, context.size, begin};
        }
        void go_to(int64_t e, int64_t position) {
            epoch = e, consumed = position;
            resume = false;
            ++jumps;
        }
        int64_t seed() {
            if constexpr (requires { loader.order().seed; }) return loader.order().seed;
            else return 0;
        }
        void set_seed(int64_t seed) {
            if constexpr (requires { loader.order().seed; }) loader.order().seed = seed;
        }

        Loader loader;
        Context context;
        int64_t samples;
        int64_t epoch = 0, consumed = 0;
        int64_t jumps = 0;    ///< how often the position was set from outside: running loops notice
        bool resume = false;  ///< the next loop goes on at `consumed`
    };

    /// One loop over one epoch. Leaves the accelerator's list of loops at the epoch's end, or when the loop is left.
    class Iterator {
    public:
        using value_type = batch_type;
        using difference_type = std::ptrdiff_t;
        using iterator_concept = std::input_iterator_tag;

        explicit Iterator(std::shared_ptr<Core> core) : core_(std::move(core)) {
            if (!std::exchange(core_->resume, false)) core_->consumed = 0;
            run_ = std::make_unique<Run const>(*core_);
            if (core_->loader.options().num_workers > 0)
                ahead_ = std::make_unique<Ahead<batch_type>>([core = core_.get(), run = run_.get()](int64_t k) { return run->make(*core, k); }, run_->batches);
            entry_.emplace(core_->context.loops, run_->shard.remainder());
            next();
        }

        batch_type& operator*() const { return *batch_; }
        batch_type* operator->() const { return &*batch_; }
        Iterator& operator++() {
            ++k_;
            next();
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(Iterator const& i, std::default_sentinel_t) { return !i.entry_; }

    private:
        /// What does not change during the epoch.
        struct Run {
            explicit Run(Core& core)
                : shard(core.shard(core.consumed)),
                  batches(shard.batches()),
                  order(core.loader.order().epoch(core.epoch, core.samples)),
                  epoch(core.epoch),
                  jumps(core.jumps) {}

            batch_type make(Core& core, int64_t k) const {
                std::vector<int64_t> indices(static_cast<size_t>(shard.batch_length(k)));
                for (size_t j = 0; j < indices.size(); ++j) indices[j] = order[shard.position(k, static_cast<int64_t>(j))];
                return fetch(core.loader.dataset(), core.loader.collation(), indices);
            }

            Shard shard;
            int64_t batches;
            decltype(std::declval<typename Loader::order_type const&>().epoch(0, 0)) order;
            int64_t epoch, jumps;
        };

        void next() {
            batch_.reset();  // before the next one is made: it often gets the same memory
            if (core_->jumps != run_->jumps) return stop();
            if (k_ == run_->batches) {
                core_->epoch = run_->epoch + 1;
                core_->consumed = 0;
                return stop();
            }
            batch_.emplace(ahead_ ? ahead_->take() : run_->make(*core_, k_));
            move_to(*batch_, core_->context.device);
            core_->consumed = run_->shard.consumed(k_);
            entry_->at_last_batch(k_ + 1 == run_->batches);
        }
        void stop() {
            entry_.reset();
            ahead_.reset();
        }

        std::shared_ptr<Core> core_;
        std::unique_ptr<Run const> run_;            // stays where it is when the iterator moves
        std::unique_ptr<Ahead<batch_type>> ahead_;  // destroyed before what its thread uses
        mutable std::optional<batch_type> batch_;
        std::optional<Loops::Entry> entry_;
        int64_t k_ = 0;
    };

    std::shared_ptr<Core> core_;
};

}  // namespace accelerate::data
