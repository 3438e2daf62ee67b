#pragma once

#include <accelerate/data/end_rule.hpp>

namespace accelerate::data {

/// Run-time options of a `Loader`. Batch sizes, seed and rules must be the same on every rank.
struct options {
    int64_t batch_size = 1;           ///< samples a rank gets at once (with `split_batches`: samples that all ranks get at once)
    bool shuffle = false;             ///< another order every epoch, a pure function of (seed, epoch, position); the same on every rank
    int64_t seed = 0;                 ///< of that order, and of the random numbers that samples are changed with
    bool drop_last = false;           ///< leave out what does not fill a batch on every rank (as `even_batches = Drop`)
    EvenBatches even_batches = true;  ///< how the last round is brought to the same size on every rank: `Pad` (true), `Ragged` (false), `Drop`, `Mask`
    bool split_batches = false;       ///< `batch_size` counts over all ranks and must be a multiple of their number
    int64_t num_workers = 0;          ///< threads that make batches ahead of the loop; 0: batches are made when the loop asks
    int64_t prefetch_factor = 2;      ///< batches that each of them may be ahead
    double timeout_s = 0;             ///< how long the loop waits for a batch of a worker before it says for which sample; 0: for ever
    bool pin_memory = false;          ///< batches go through page-locked memory on their way to a device that is not the CPU
    bool non_blocking = false;        ///< copies to the device do not wait; needs `pin_memory` to have an effect
};

}  // namespace accelerate::data
