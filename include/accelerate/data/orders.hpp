#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/randperm.h>

#include <accelerate/core/error.hpp>
#include <accelerate/data/permutation.hpp>
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

/// Orders that build a table when an epoch begins: 8 bytes and about 10 to 100 ns a sample.
namespace accelerate::data::order {

/// An epoch's order as a table, shared by copies.
struct Table {
    std::shared_ptr<std::vector<int64_t> const> indices;
    int64_t operator[](int64_t position) const { return (*indices)[static_cast<size_t>(position)]; }
};

/// The order of Python's DataLoader under Accelerate with `use_seedable_sampler`: `torch.randperm` of a generator seeded with
/// seed + epoch. For comparing a run with Python sample by sample; `Shuffled` needs no table.
struct Torch {
    int64_t seed = 0;

    template <class = void>
    Table epoch(int64_t e, int64_t n) const {
        auto generator = at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed + e));
        auto const drawn = at::randperm(n, generator, at::TensorOptions(at::kLong));
        return {std::make_shared<std::vector<int64_t>>(drawn.const_data_ptr<int64_t>(), drawn.const_data_ptr<int64_t>() + n)};
    }
};

/// Draws samples with probability proportional to their weight (Python's `WeightedRandomSampler`): `num_samples` a epoch (0: as many
/// as the data set has), with replacement each on its own, without replacement none twice (Efraimidis and Spirakis 2006).
struct Weighted {
    std::vector<double> weights;
    int64_t num_samples = 0;
    bool replacement = true;
    int64_t seed = 0;

    int64_t length(int64_t n) const { return num_samples > 0 ? num_samples : n; }

    /// Error E_DATA for weights that are negative, not finite, all zero or not one for each sample; E_CONFIG when more are to be drawn
    /// without replacement than have a positive weight.
    template <class = void>
    Table epoch(int64_t e, int64_t n) const {
        auto const wanted = length(n);
        check(static_cast<int64_t>(weights.size()) == n, code::data, "data::order::Weighted: ", weights.size(), " weights are given, the data set has ", n, " samples");
        double total = 0;
        int64_t positive = 0;
        for (auto w : weights) {
            check(w >= 0 && std::isfinite(w), code::data, "data::order::Weighted: a weight is ", w, "; weights must be finite and not negative");
            total += w, positive += w > 0;
        }
        check(total > 0, code::data, "data::order::Weighted: all weights are 0");
        auto const key = mix(static_cast<uint64_t>(Seed(seed).data()), static_cast<uint64_t>(e));
        auto const uniform = [&](int64_t i) { return (static_cast<double>(mix(key, static_cast<uint64_t>(i)) >> 11) + 0.5) * 0x1p-53; };
        std::vector<int64_t> out;
        if (replacement) {
            std::vector<double> sums(weights.size());
            std::partial_sum(weights.begin(), weights.end(), sums.begin());
            auto const last = std::lower_bound(sums.begin(), sums.end(), sums.back()) - sums.begin();  // the last with a weight
            for (int64_t p = 0; p < wanted; ++p)
                out.push_back(std::min(last, std::upper_bound(sums.begin(), sums.end(), uniform(p) * sums.back()) - sums.begin()));
        } else {
            check(wanted <= positive, code::config, "data::order::Weighted: ", wanted, " samples cannot be drawn without replacement from ", positive,
                  " with a positive weight; draw fewer (num_samples) or set replacement");
            std::vector<double> keys(weights.size());
            for (size_t i = 0; i < keys.size(); ++i) keys[i] = weights[i] > 0 ? std::log(uniform(static_cast<int64_t>(i))) / weights[i] : -std::numeric_limits<double>::infinity();
            out.resize(weights.size());
            std::iota(out.begin(), out.end(), 0);
            std::sort(out.begin(), out.end(), [&](int64_t a, int64_t b) { return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)]; });
            out.resize(static_cast<size_t>(wanted));
        }
        return {std::make_shared<std::vector<int64_t>>(std::move(out))};
    }
};

/// Samples of about the same length next to each other, still shuffled (Hugging Face's `LengthGroupedSampler`): the epoch is shuffled,
/// cut into stretches of `group` samples, and each stretch sorted by falling length; the longest sample of all comes first, so that a
/// run that does not fit into memory fails at once.
struct LengthGrouped {
    std::vector<int64_t> lengths;
    int64_t group = 0;  ///< samples a stretch, such as 50 global batches; 0: a tenth of the epoch
    int64_t seed = 0;

    /// Error E_DATA when there is not one length for each sample.
    template <class = void>
    Table epoch(int64_t e, int64_t n) const {
        check(static_cast<int64_t>(lengths.size()) == n, code::data, "data::order::LengthGrouped: ", lengths.size(), " lengths are given, the data set has ", n, " samples");
        Permutation const shuffled(mix(static_cast<uint64_t>(Seed(seed).data()), static_cast<uint64_t>(e)), n);
        std::vector<int64_t> out(static_cast<size_t>(n));
        for (int64_t p = 0; p < n; ++p) out[static_cast<size_t>(p)] = shuffled[p];
        auto const longer = [&](int64_t a, int64_t b) { return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)]; };
        auto const stretch = group > 0 ? group : std::max<int64_t>(1, (n + 9) / 10);
        for (int64_t from = 0; from < n; from += stretch) std::stable_sort(out.begin() + from, out.begin() + std::min(n, from + stretch), longer);
        auto longest = out.begin();
        for (int64_t from = 0; from < n; from += stretch)
            if (longer(out[static_cast<size_t>(from)], *longest)) longest = out.begin() + from;
        std::iter_swap(out.begin(), longest);
        return {std::make_shared<std::vector<int64_t>>(std::move(out))};
    }
};

}  // namespace accelerate::data::order
