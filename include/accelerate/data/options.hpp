#pragma once

#include <cstdint>

namespace accelerate::data {

/// Run-time options of a `Loader`. Batch sizes, seed and flags must be the same on every rank.
struct options {
    int64_t batch_size = 1;      ///< samples a rank gets at once (with `split_batches`: samples that all ranks get at once)
    bool shuffle = false;        ///< another order every epoch, a pure function of (seed, epoch, position); the same on every rank
    int64_t seed = 0;            ///< of that order
    bool drop_last = false;      ///< leave out what does not fill a batch on every rank
    bool even_batches = true;    ///< with several ranks: fill up the last batches with the epoch's first samples, so that all get equally many
    bool split_batches = false;  ///< `batch_size` counts over all ranks and must be a multiple of their number
    int64_t num_workers = 0;     ///< 0: batches are made in the loop's thread; more: one batch ahead, in the background
};

}  // namespace accelerate::data
