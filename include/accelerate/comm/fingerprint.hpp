#pragma once

#include <accelerate/comm/call.hpp>
#include <atomic>

namespace accelerate::comm {

/// What of a `Call` must be the same on every rank, in three words that a peer compares in a nanosecond. The sequence number is
/// not among them: ranks compare the words that they brought to the same arrival.
struct Fingerprint {
    uint64_t what = 0;   ///< operation, reduction, dtype, flags, number of dimensions, root
    uint64_t shape = 0;  ///< a hash of the sizes that must agree
    int64_t count = 0;   ///< elements or bytes; each rank's own where the call is ragged

    static Fingerprint of(Call const& c) {
        auto const byte = [](auto v, int at) { return static_cast<uint64_t>(static_cast<uint8_t>(v)) << at; };
        Fingerprint f;
        f.what = byte(c.operation, 0) | byte(reduces(c.operation) ? c.reduction : Reduction::Sum, 8) | byte(from_root(c.operation) ? at::ScalarType::Undefined : c.dtype, 16) |
                 byte((c.flag ? 1 : 0) | (c.refused ? 2 : 0) | (c.elsewhere ? 4 : 0), 24) | static_cast<uint64_t>(static_cast<uint32_t>(c.root)) << 32;
        f.count = c.count;
        if (!from_root(c.operation) && c.dims >= 0) {
            f.shape = mixed(static_cast<uint64_t>(c.dims));
            for (int64_t d = ragged(c.operation) ? 1 : 0; d < std::min(c.dims, Call::max_dims); ++d) f.shape = mixed(f.shape ^ static_cast<uint64_t>(c.shape[static_cast<size_t>(d)]));
        }
        return f;
    }

    Operation operation() const { return static_cast<Operation>(what & 0xFF); }
    bool refused() const { return (what >> 24 & 2) != 0; }
    bool elsewhere() const { return (what >> 24 & 4) != 0; }
    bool own_count() const { return ragged(operation()) || from_root(operation()) || operation() == Operation::Split; }

    bool agrees(Fingerprint const& o) const { return what == o.what && shape == o.shape && (count == o.count || own_count()); }

private:
    /// Every bit of the result depends on every bit of `x` (the steps are splitmix64's): sizes and numbers of dimensions are small
    /// numbers, which a plain product would let cancel each other, as in [3] and [3, 1].
    static constexpr uint64_t mixed(uint64_t x) {
        x += 0x9E3779B97F4A7C15ull;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
        return x ^ (x >> 31);
    }
};

}  // namespace accelerate::comm
