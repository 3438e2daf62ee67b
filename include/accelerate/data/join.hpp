#pragma once

#include <accelerate/data/loops.hpp>

namespace accelerate::data {

/// While alive, loops that begin run equally many bodies on every rank although the ranks have different numbers of batches (Python's
/// `join_uneven_inputs`): a rank that has run out goes on with a batch it has had, of which no sample is `valid()`, and whose losses
/// count nothing in `accelerator.backward`. So every collective of the body, of whatever sharding, finds all ranks.
class [[nodiscard("the scope is this object: write auto joined = accelerator.join_uneven_inputs(model);")]] Join {
public:
    explicit Join(std::shared_ptr<Loops> loops) : loops_(std::move(loops)), before_(loops_->set_joined(true)) {}
    ~Join() { loops_->set_joined(before_); }
    Join(Join const&) = delete;
    Join& operator=(Join const&) = delete;

private:
    std::shared_ptr<Loops> loops_;
    bool before_;
};

}  // namespace accelerate::data
