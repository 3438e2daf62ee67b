#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/end_rule.hpp>
#include <algorithm>
#include <cstdint>

namespace accelerate::data {

/// How an epoch of `samples` is cut into batches over the ranks: the rules of Python Accelerate's `BatchSamplerShard`, by
/// arithmetic. All ranks together take a round of `total_batch_size()` consecutive positions, each rank its own stretch of it.
/// `begin` > 0 cuts the rest of an epoch whose first positions were consumed before, perhaps by another number of ranks.
struct Shard {
    int64_t samples = 0;
    int64_t batch_size = 1;
    bool drop_last = false;
    EvenBatches even_batches = true;
    bool split_batches = false;
    int64_t rank = 0, size = 1;
    int64_t begin = 0;
    bool joined = false;  ///< `Ragged` ranks that have run out go on with stand-ins: their first batch, of which nothing is valid

    /// Error E_CONFIG when the batch size is not positive or cannot be split.
    void validate() const {
        check(batch_size >= 1, code::config, "data::Loader: batch_size is ", batch_size, "; it must be at least 1");
        check(!split_batches || batch_size % size == 0, code::config, "data::Loader: with split_batches the batch_size (", batch_size,
              ") must be a multiple of the number of ranks (", size, ")");
    }

    /// Samples that all ranks take in one round.
    int64_t total_batch_size() const { return split_batches ? batch_size : batch_size * size; }
    /// Samples that one rank takes in one round.
    int64_t local_batch_size() const { return split_batches ? batch_size / size : batch_size; }

    /// Samples of the incomplete last round; 0 when there is none or it is left out.
    int64_t remainder() const { return drop_last || even_batches.rule == Drop ? 0 : (samples - begin) % total_batch_size(); }

    /// The last round is completed with repetitions; for `Pad` one rank alone has no reason to.
    bool fills_up() const { return even_batches.rule == Mask || (even_batches.rule == Pad && size > 1); }

    /// Batches of this rank.
    int64_t batches() const {
        auto const rest = remainder();
        return (samples - begin) / total_batch_size() + (rest > 0 && (fills_up() || joined || rank * local_batch_size() < rest));
    }

    /// Samples in this rank's batch k.
    int64_t batch_length(int64_t k) const { return fills_up() ? local_batch_size() : stands_in(k) ? std::min(samples, local_batch_size()) : valid(k); }
    bool stands_in(int64_t k) const { return joined && !fills_up() && valid(k) == 0; }
    /// Those of them that are no repetitions; they come first.
    int64_t valid(int64_t k) const { return std::clamp<int64_t>(samples - begin - k * total_batch_size() - rank * local_batch_size(), 0, local_batch_size()); }

    /// Position in the epoch's order of item j of this rank's batch k. Past the end the epoch's first round is repeated; under `Mask`
    /// its last sample, which costs no further reading.
    int64_t position(int64_t k, int64_t j) const {
        auto const p = begin + k * total_batch_size() + rank * local_batch_size() + j;
        if (p < samples) return p;
        if (stands_in(k)) return j;
        return even_batches.rule == Mask ? samples - 1 : (p - samples) % std::min(samples, total_batch_size());
    }

    /// Positions of the epoch that all ranks have consumed when each has had batch k.
    int64_t consumed(int64_t k) const { return std::min(samples, begin + (k + 1) * total_batch_size()); }
};

}  // namespace accelerate::data
