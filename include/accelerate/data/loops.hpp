#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
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
    bool at_last_batch() const { return active() && running_.back().last; }
    /// Samples of the innermost loop's last global batch that are not repetitions; 0 means all of them.
    int64_t remainder() const { return active() ? running_.back().remainder : 0; }

private:
    struct Running {
        int64_t id = 0, remainder = 0;
        bool last = false;
    };

    auto find(int64_t id) { return std::find_if(running_.begin(), running_.end(), [=](Running const& r) { return r.id == id; }); }

    std::vector<Running> running_;
    int64_t entered_ = 0;
};

/// One running loop: entered when made, left when destroyed, in whatever order loops end.
class Loops::Entry {
public:
    Entry(std::shared_ptr<Loops> loops, int64_t remainder) : loops_(std::move(loops)), id_(loops_->entered_++) {
        loops_->running_.push_back({id_, remainder, false});
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

    void at_last_batch(bool last) { loops_->find(id_)->last = last; }

private:
    std::shared_ptr<Loops> loops_;
    int64_t id_;
};

}  // namespace accelerate::data
