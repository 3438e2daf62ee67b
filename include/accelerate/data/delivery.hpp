#pragma once

#include <cstdint>
#include <vector>

namespace accelerate::data {

/// How far all ranks together are in an epoch.
struct Position {
    int64_t consumed = 0;               ///< samples
    std::vector<int64_t> offsets = {};  ///< of them, those of each part of a stream that has parts; at the epoch's beginning it has none yet
};

/// A batch on its way to the loop's body, and what is known about it.
template <class Batch>
struct Delivery {
    Batch batch;
    int64_t length = 0;    ///< its samples
    int64_t valid = 0;     ///< those that are no repetitions; they come first
    Position position;     ///< of the epoch, with it
    bool last = false;     ///< the last one of the epoch for this rank
};

/// What one epoch's loop has cost so far.
struct Statistics {
    int64_t batches = 0;     ///< handed to the loop's body
    int64_t samples = 0;     ///< in them, on this rank, without repetitions
    double waiting_s = 0;    ///< seconds in which the loop waited for data
};

}  // namespace accelerate::data
