#pragma once

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

namespace accelerate::data {

/// Whose turn it is, when several take turns by weight. The weights become integers c of sum W: the smallest that have exactly their
/// ratios if there are some with W <= 4096; else W = 4096 and each is off by less than 1/4096 of the whole (those that would be nothing
/// get that much, which the largest gives). In every k turns each has had k * c / W, rounded down or up: never off by a whole turn.
/// Costs 8 W bytes; a turn is looked up.
class Turns {
public:
    static constexpr int64_t longest = 4096;

    /// Error E_CONFIG for a weight that is not positive, or more weights than 4096.
    explicit Turns(std::vector<double> const& weights) : counts_(integers(weights)) {
        // Earliest deadline first. Turn j of one with count c belongs in [floor(j W/c), ceil((j + 1) W/c)); that always works out
        // (Baruah et al. 1996, on Tijdeman's chairman assignment), and is what keeps each between the roundings of its share.
        auto const total = std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
        std::vector<int64_t> had(counts_.size(), 0);
        for (int64_t k = 0; k < total; ++k) {
            size_t next = 0;
            auto earliest = std::numeric_limits<int64_t>::max();
            for (size_t s = 0; s < counts_.size(); ++s) {
                auto const deadline = ((had[s] + 1) * total + counts_[s] - 1) / counts_[s];
                if (had[s] * total / counts_[s] <= k && deadline < earliest) next = s, earliest = deadline;
            }
            period_.push_back({static_cast<uint32_t>(next), static_cast<uint32_t>(had[next]++)});
        }
    }

    /// Turn `nth` (from 0) of `source`.
    struct Turn {
        size_t source;
        int64_t nth;
    };
    Turn operator[](int64_t k) const {
        auto const [source, nth] = period_[static_cast<size_t>(k % length())];
        return {source, k / length() * counts_[source] + nth};
    }
    /// How many of the first k turns are `source`'s.
    int64_t count(size_t source, int64_t k) const {
        auto const whole = k / length();
        auto const in_rest = std::count_if(period_.begin(), period_.begin() + k % length(), [&](Entry e) { return e.source == source; });
        return whole * counts_[source] + in_rest;
    }
    /// When `source` has its turn `nth`: the inverse of `[]`. The largest number there is if that is later.
    int64_t when(size_t source, int64_t nth) const {
        auto const whole = nth / counts_[source], most = std::numeric_limits<int64_t>::max();
        auto const at = std::find_if(period_.begin(), period_.end(), [&](Entry e) { return e.source == source && e.nth == nth % counts_[source]; });
        return whole >= most / length() ? most : whole * length() + (at - period_.begin());
    }
    std::vector<int64_t> const& counts() const { return counts_; }           ///< the integer weights
    int64_t length() const { return static_cast<int64_t>(period_.size()); }  ///< their sum, after which all comes again

private:
    struct Entry {
        uint32_t source, nth;
    };

    static std::vector<int64_t> integers(std::vector<double> const& weights) {
        auto const sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        check(!weights.empty() && static_cast<int64_t>(weights.size()) <= longest, code::config, "data::Mixture: ", weights.size(),
              " weights; expected 1 to ", longest);
        for (auto w : weights)
            check(w > 0 && std::isfinite(sum), code::config, "data::Mixture: weight ", w, "; a weight must be positive and finite (leave out what has none)");
        std::vector<int64_t> counts(weights.size());
        for (int64_t total = 1; total <= longest; ++total) {
            bool exact = true;
            double share = 0;  // of all up to here: rounded at each, the counts add up to `total`
            for (size_t s = 0, before = 0; s < weights.size(); ++s) {
                share += weights[s] / sum * static_cast<double>(total);
                auto const after = s + 1 < weights.size() ? static_cast<size_t>(std::llround(share)) : static_cast<size_t>(total);
                counts[s] = static_cast<int64_t>(after - std::exchange(before, after));
                exact = exact && counts[s] > 0 && std::abs(weights[s] / sum * static_cast<double>(total) - static_cast<double>(counts[s])) < 1e-9;
            }
            if (exact) return counts;
        }
        for (auto& c : counts)
            if (c == 0) --*std::max_element(counts.begin(), counts.end()), c = 1;
        return counts;
    }

    std::vector<int64_t> counts_;
    std::vector<Entry> period_;
};

}  // namespace accelerate::data
