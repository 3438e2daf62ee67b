#pragma once

#include <accelerate/data/delivery.hpp>
#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace accelerate::data {

/// The loops over loaders that are running now, the innermost last: how a training step knows that its batch is the last one.
/// Shared by an accelerator and the loaders that it prepared. Used from the loop's thread only.
class Loops {
public:
    class Entry;

    bool active() const { return !running_.empty(); }
    /// The innermost loop is at its last batch; false outside loops.
    bool at_last_batch() const { return active() && running_.back().batch.last; }
    /// Samples of the innermost loop's last global batch that are not repetitions; 0 means all of them.
    int64_t remainder() const { return active() ? running_.back().batch.remainder : 0; }
    /// Samples of the innermost loop's batch on this rank, and those of them that are no repetitions (they come first); outside loops 0.
    int64_t length() const { return active() ? running_.back().batch.length : 0; }
    int64_t valid() const { return active() ? running_.back().batch.valid : 0; }

    /// Loops that begin now run equally many bodies on every rank (see `Join`).
    bool joined() const { return joined_; }
    bool set_joined(bool joined) { return std::exchange(joined_, joined); }
    /// A loop that is not in its body.
    struct Between {
        bool outermost = true;
        bool met = false;  ///< all ranks were in the body that is done (see `meet`)
    };
    /// `f` is called wherever a loop is between two bodies, or behind its last, and now and then while it waits for its next batch;
    /// nothing is called for an empty one.
    void set_between(std::function<void(Between)> f) { between_ = std::move(f); }
    /// All ranks are in the innermost loop's body: they have made a collective call there.
    void meet() {
        if (active()) running_.back().met = true;
    }

    /// From now on loops keep the batches of an accumulation window until the next one begins, so that they can be had again.
    void keep_windows() { keeps_windows_ = true; }
    bool keeps_windows() const { return keeps_windows_; }
    /// A window begins with the innermost loop's batch.
    void window_begins() {
        if (!active()) return;
        auto& running = running_.back();
        running.window = Window::Begins, running.window_start = running.batch.before;
    }
    /// The innermost loop will give the batches of its window again; which loop that is, or nothing where it has no window.
    std::optional<int64_t> rerun() {
        if (!active() || running_.back().window == Window::None) return std::nullopt;
        running_.back().rerun = true;
        return running_.back().id;
    }
    /// Where that loop's window begins, as long as none of its batches has come again; else null.
    Position const* rerun_from(int64_t loop) const {
        auto const found = std::ranges::find(running_, loop, &Running::id);
        return found != running_.end() && found->rerun ? &found->window_start : nullptr;
    }

    /// The innermost loop's batch comes for the second time.
    bool at_rerun() const { return active() && running_.back().batch.again; }

    /// The innermost loop's batch on this rank only keeps it in step with the others.
    bool at_stand_in() const { return active() && running_.back().batch.stand_in; }

    /// The batch that a loop is at.
    struct Batch {
        int64_t length = 0, valid = 0;  ///< its samples, and those that are real
        int64_t remainder = 0;
        bool last = false;
        bool stand_in = false;
        bool again = false;             ///< it comes for the second time
        Position before = {};           ///< of the epoch, without it
    };

private:
    enum class Window { None, Begins, Open };

    struct Running {
        int64_t id = 0;
        Batch batch = {};
        Window window = Window::None;
        Position window_start = {};
        bool rerun = false, met = false;
    };

    auto find(int64_t id) { return std::ranges::find(running_, id, &Running::id); }
    void between(int64_t id) {
        if (between_) between_({.outermost = running_.size() == 1, .met = std::exchange(find(id)->met, false)});
    }

    std::vector<Running> running_;
    int64_t entered_ = 0;
    bool joined_ = false, keeps_windows_ = false;
    std::function<void(Between)> between_;
};

/// One running loop: entered when made, left when destroyed, in whatever order loops end.
class Loops::Entry {
public:
    Entry(std::shared_ptr<Loops> loops, int64_t remainder) : loops_(std::move(loops)), id_(loops_->entered_++) {
        loops_->running_.push_back({.id = id_, .batch = {.remainder = remainder}});
    }
    Entry(Entry&&) = default;  // leaves the source without loops
    Entry& operator=(Entry&& other) noexcept {
        std::swap(loops_, other.loops_);
        std::swap(id_, other.id_);
        return *this;
    }
    ~Entry() {
        if (loops_) loops_->running_.erase(loops_->find(id_));
    }

    int64_t id() const { return id_; }
    /// The loop is between two bodies.
    void between_bodies() const { loops_->between(id_); }
    /// To be called while the loop waits between two bodies, as long as it runs and wherever this object goes.
    std::function<void()> waiting() const {
        return [loops = loops_.get(), id = id_] { loops->between(id); };
    }
    /// The loop is at another batch.
    void at_batch(Batch batch) {
        auto& running = *loops_->find(id_);
        running.batch = std::move(batch);
        running.rerun = running.met = false;
    }

    /// Where the batch that the body is done with stands.
    struct Done {
        bool began = false;   ///< a window began with it
        bool inside = false;  ///< it belongs to a window, or comes behind the last one
        std::optional<Position> again = {};  ///< the window, which begins there, is to be computed once more
    };
    Done done() {
        auto& running = *loops_->find(id_);
        auto const before = std::exchange(running.window, running.window == Window::None ? Window::None : Window::Open);
        Done done{before == Window::Begins, before != Window::None};
        if (std::exchange(running.rerun, false)) done.again = running.window_start;
        return done;
    }

private:
    std::shared_ptr<Loops> loops_;
    int64_t id_;
};

}  // namespace accelerate::data
