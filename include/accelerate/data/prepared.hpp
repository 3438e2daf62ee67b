#pragma once

#include <ATen/ops/arange.h>

#include <accelerate/data/source.hpp>
#include <deque>
#include <iterator>

namespace accelerate::data {

/// A loader that an accelerator prepared, for one rank: a range-for over it runs one epoch, `for (auto& batch : train)`.
/// After its end `epoch()` has advanced; after a `break` the next range-for starts the epoch again; after `load_state_dict` the
/// first one goes on behind the last batch that was consumed. Its state is {seed, epoch, consumed} and what its source adds, so that
/// resuming an indexed data set takes no time and may be on another number of ranks. Can be moved, also while a loop runs; not copied.
template <class Loader, class Source = source_of<Loader>>
class Prepared {
    struct Core;
    class Iterator;

public:
    using batch_type = typename Source::batch_type;

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
        if (e != core_->epoch) core_->go_to(e, {});
    }
    /// The next range-for begins behind the first n batches of this epoch, without reading an indexed data set's samples; later ones
    /// are whole. With n at or past the end it finds nothing left, and the epoch is over.
    Prepared& skip_first_batches(int64_t n) {
        core_->go_to(core_->epoch, {core_->source->position_after(n, core_->epoch)});
        core_->resume = true;
        return *this;
    }

    /// Samples of this epoch that all ranks together have consumed: counted when a batch is handed to the loop body.
    int64_t consumed() const { return core_->position.consumed; }
    /// Batches of this rank in a whole epoch. With a batch sampler its table is made for that.
    int64_t size() const
        requires requires(Source const& s) { s.batches(int64_t{}); }
    {
        return core_->source->batches(core_->epoch);
    }
    /// Samples that all ranks together get at once.
    int64_t total_batch_size() const { return core_->source->total_batch_size(); }

    // ---- about the batch at hand ------------------------------------------------------------------------------------------

    /// It is this epoch's last one on this rank.
    bool end_of_dataloader() const { return core_->last; }
    /// Samples of the epoch's last round over all ranks, where that is not full; else 0. Of a stream it is known in that round.
    int64_t remainder() const { return core_->remainder; }
    /// Its first so many samples are real; the others are repetitions that fill it up.
    int64_t valid() const { return core_->valid; }
    /// The same as a bool tensor [samples of the batch] on the batch's device.
    at::Tensor mask() const { return at::arange(core_->length, at::TensorOptions(at::kLong).device(core_->context.device)).lt(core_->valid); }
    /// What this epoch has cost so far, or the last one.
    data::Statistics const& statistics() const { return core_->statistics; }

    auto& dataset() { return core_->source->loader().dataset(); }
    data::options const& options() const { return core_->source->loader().options(); }

    StateDict state_dict() const {
        auto const& position = core_->goes_on_at();
        StateDict s;
        s.values = {{"seed", core_->source->loader().seed()}, {"epoch", core_->epoch}, {"consumed", position.consumed}};
        core_->source->save(s.values, position);
        return s;
    }
    /// Error E_DATA when the state is not a loader's, or the data set is another one. A running loop ends with the batch at
    /// hand. The seed comes from the state, so that the epoch goes on in the order in which it began.
    void load_state_dict(StateDict const& s) {
        check_state_dict(s);
        take(s);
    }
    /// Throws what `load_state_dict` would, and changes nothing.
    void check_state_dict(StateDict const& s) const {
        constexpr auto who = "data::Loader";
        static_cast<void>(s.value<int64_t>("seed", who));
        auto const e = s.value<int64_t>("epoch", who), consumed = s.value<int64_t>("consumed", who);
        check(e >= 0 && consumed >= 0, code::data, who, ".load_state_dict: epoch ", e, " with ", consumed, " samples consumed cannot be");
        core_->source->check_state(s, consumed);
    }

    /// Saves and restores this loader as long as somebody has it. Its state says also in which order the samples came: inside an epoch
    /// another one would give some twice and others never.
    class Handle {
    public:
        explicit Handle(Prepared const& loader) : core_(loader.core_) {}

        bool gone() const { return core_.expired(); }
        StateDict state_dict() const {
            auto s = Prepared(core_.lock()).state_dict();
            s.values["order"] = order();
            return s;
        }
        /// Of a state that `check_state_dict` has found to fit: a data set's hash may cost a pass over it.
        void load_state_dict(StateDict const& s) { Prepared(core_.lock()).take(s); }
        void check_state_dict(StateDict const& s) const {
            Prepared(core_.lock()).check_state_dict(s);
            auto const saved = s.value<std::string>("order", "data::Loader");
            check(saved == order() || s.value<int64_t>("consumed", "data::Loader") == 0, code::data, "data::Loader.load_state_dict: the samples come ", order(), ", they came ", saved,
                  " when the state was saved, inside an epoch; use the same order, or start the epoch anew with set_epoch");
        }

    private:
        std::string order() const { return core_.lock()->source->loader().order_name(); }

        std::weak_ptr<Core> core_;
    };

private:
    explicit Prepared(std::shared_ptr<Core> core) : core_(std::move(core)) {}

    void take(StateDict const& s) {
        constexpr auto who = "data::Loader";
        core_->source->loader().set_seed(s.value<int64_t>("seed", who));
        core_->go_to(s.value<int64_t>("epoch", who), core_->source->position_in(s, s.value<int64_t>("consumed", who)));
        core_->resume = true;
    }

    struct Core {
        Core(Loader loader, Context c) : context(std::move(c)), source(std::make_shared<Source>(std::move(loader), context)) {}

        void go_to(int64_t e, Position p) {
            epoch = e, position = std::move(p);
            resume = false;
            loop = -1;
            ++jumps;
        }
        /// Where a run that is resumed goes on: at its window's beginning, if that is to be computed once more.
        Position const& goes_on_at() const {
            auto const* const window = context.loops->rerun_from(loop);
            return window ? *window : position;
        }

        Context context;
        std::shared_ptr<Source> source;
        int64_t epoch = 0;
        Position position;
        int64_t loop = -1;    ///< the last one
        int64_t jumps = 0;    ///< how often the position was set from outside: running loops notice
        bool resume = false;  ///< the next loop goes on at `position`
        int64_t length = 0, valid = 0, remainder = 0;
        bool last = false;
        data::Statistics statistics;
    };

    /// One loop over one epoch. Leaves the accelerator's list of loops at the epoch's end, or when the loop is left.
    class Iterator {
    public:
        using value_type = batch_type;
        using difference_type = std::ptrdiff_t;
        using iterator_concept = std::input_iterator_tag;

        explicit Iterator(std::shared_ptr<Core> core) : core_(std::move(core)), epoch_(core_->epoch), jumps_(core_->jumps), joined_(core_->context.loops->joined()) {
            if (!std::exchange(core_->resume, false)) core_->position = {};
            core_->statistics = {};
            run_ = std::make_unique<typename Source::Run>(core_->source, epoch_, core_->position, joined_);
            core_->remainder = run_->remainder();
            entry_.emplace(core_->context.loops, core_->remainder);
            core_->loop = entry_->id();
            if constexpr (requires { run_->while_waiting(entry_->waiting()); })
                if (core_->context.size == 1) run_->while_waiting(entry_->waiting());  // several ranks do not wait at the same places
            next();
        }

        batch_type& operator*() const { return *batch_; }
        batch_type* operator->() const { return &*batch_; }
        Iterator& operator++() {
            next();
            return *this;
        }
        void operator++(int) { ++*this; }
        friend bool operator==(Iterator const& i, std::default_sentinel_t) { return !i.entry_; }

    private:
        void next() {
            entry_->between_bodies();
            if (core_->jumps != jumps_) return stop();
            if (core_->context.loops->keeps_windows() && batch_) keep();
            batch_.reset();  // before the next one is made: it often gets the same memory
            if (!again_.empty()) {
                auto kept = std::move(again_.front());
                again_.pop_front();
                batch_.emplace(std::move(kept.batch));
                return at(kept, kept.remainder, true);
            }
            auto const begin = std::chrono::steady_clock::now();
            auto delivery = run_->next();
            core_->statistics.waiting_s += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
            if (!delivery) {
                core_->epoch = epoch_ + 1;
                core_->position = {};
                return stop();
            }
            move_to(batch_.emplace(std::move(delivery->batch)), core_->context.device, core_->source->loader().options().non_blocking);
            at(*delivery, run_->remainder(), false);
            ++core_->statistics.batches;
            core_->statistics.samples += core_->valid;
        }

        /// The body gets that delivery; `again`, for the second time.
        void at(Delivery<batch_type> const& d, int64_t remainder, bool again) {
            auto before = std::exchange(core_->position, d.position);
            core_->length = d.length, core_->valid = d.valid, core_->last = d.last, core_->remainder = remainder;
            entry_->at_batch({d.length, d.valid, remainder, d.last, joined_ && d.valid == 0, again, std::move(before)});
        }

        /// A delivery that the body has had.
        struct Kept : Delivery<batch_type> {
            int64_t remainder = 0;
        };

        /// The batch that the body is done with stays, where it is one of a window that may be asked for again; the window's batches are
        /// next where it is.
        void keep() {
            auto done = entry_->done();
            if (done.began) window_.clear();
            if (done.inside) window_.push_back({{std::move(*batch_), core_->length, core_->valid, core_->position, core_->last}, core_->remainder});
            if (!done.again) return;
            core_->position = std::move(*done.again);
            again_.insert(again_.begin(), std::make_move_iterator(window_.begin()), std::make_move_iterator(window_.end()));
            window_.clear();
        }

        void stop() {
            entry_.reset();
            run_.reset();
            batch_.reset();
        }

        std::shared_ptr<Core> core_;
        int64_t epoch_, jumps_;
        bool joined_;
        std::unique_ptr<typename Source::Run> run_;  // stays where it is when the iterator moves
        mutable std::optional<batch_type> batch_;
        std::deque<Kept> window_, again_;  ///< of the present window; to come once more
        std::optional<Loops::Entry> entry_;
    };

    std::shared_ptr<Core> core_;
};

template <class Loader>
Prepared(Loader) -> Prepared<Loader>;
template <class Loader>
Prepared(Loader, Context) -> Prepared<Loader>;

/// Python's `skip_first_batches`: the next range-for begins behind the first n batches.
template <class Loader, class Source>
Prepared<Loader, Source>& skip_first_batches(Prepared<Loader, Source>& loader, int64_t n) {
    return loader.skip_first_batches(n);
}

}  // namespace accelerate::data
