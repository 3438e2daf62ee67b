#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/dataset.hpp>
#include <vector>

namespace accelerate::data {

/// Passes over n samples of a stream, or what is left, by its own `skip` where it has one.
template <OpaqueStream S>
void skip(S& stream, int64_t n) {
    if constexpr (requires { stream.skip(n); }) {
        if (n > 0) stream.skip(n);
    } else {
        while (n > 0 && stream.next()) --n;
    }
}

/// Opens part k of n for an epoch.
template <ShardableStream S>
auto open_part(S& stream, int64_t k, int64_t n, int64_t epoch) {
    if constexpr (requires { stream.open(k, n, epoch); }) return stream.open(k, n, epoch);
    else return stream.open(k, n);
}

/// All parts of a shardable stream as one stream: the next sample comes from the part that has given the fewest, so that its order is a
/// function of how far each part was read, and reading can go on from there.
template <ShardableStream S>
class MergedParts {
public:
    using part_type = decltype(open_part(std::declval<S&>(), 0, 1, 0));

    MergedParts(S& stream, std::vector<int64_t> offsets, int64_t epoch) : offsets_(std::move(offsets)), ended_(offsets_.size()) {
        auto const n = static_cast<int64_t>(offsets_.size());
        for (int64_t k = 0; k < n; ++k) {
            parts_.push_back(open_part(stream, k, n, epoch));
            data::skip(parts_.back(), offsets_[static_cast<size_t>(k)]);
        }
    }

    auto next() -> decltype(std::declval<part_type&>().next()) {
        for (;;) {
            size_t best = parts_.size();
            for (size_t k = 0; k < parts_.size(); ++k)
                if (!ended_[k] && (best == parts_.size() || offsets_[k] < offsets_[best])) best = k;
            if (best == parts_.size()) return std::nullopt;
            if (auto sample = parts_[best].next()) {
                ++offsets_[best];
                return sample;
            }
            ended_[best] = true;
        }
    }

    /// Samples given from each part.
    std::vector<int64_t> const& offsets() const { return offsets_; }

private:
    std::vector<part_type> parts_;
    std::vector<int64_t> offsets_;
    std::vector<bool> ended_;
};

}  // namespace accelerate::data
