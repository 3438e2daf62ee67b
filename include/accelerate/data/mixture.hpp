#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/parts.hpp>
#include <accelerate/data/permutation.hpp>
#include <accelerate/data/turns.hpp>

namespace accelerate::data {

/// How a `Mixture` mixes.
struct mixture_options {
    std::vector<double> weights = {};  ///< one for each source, of any sum; none: all the same
    int64_t size = 0;                  ///< samples; 0: as many as there are before one comes a second time
    bool shuffle = false;              ///< read each source in an order drawn by the seed, another one in each pass over it
    int64_t seed = 0;
};

/// Several data sets of one sample type in exact proportions: among the first k samples, for every k, each source has its share of k
/// rounded down or up (see `Turns` for how weights are rounded). Which sample comes at a position is computed from the options
/// and the sources' sizes alone, at once, so that every rank and every restart sees the same. A source is read in its order (or
/// shuffled), and from its beginning again when it is shorter than its share: `passes` says how often. A loader that shuffles keeps
/// the proportions of the whole only.
///
///     data::Mixture mixture{{.weights = {0.7, 0.2, 0.1}, .shuffle = true}, web, books, code};
///
/// Sources given by name are referenced and must outlive this, temporaries are moved in; a std::vector of data sets of one type is
/// as many sources.
template <class... D>
class Mixture {
public:
    using sample_type = typename detail::Parts<D...>::sample_type;

    /// Errors: E_CONFIG for another number of weights than sources, or weights that cannot be; E_DATA for an empty source.
    explicit Mixture(mixture_options o, D&&... sources)
        : parts_(std::forward<D>(sources)...),
          sizes_(parts_.sizes()),
          turns_(o.weights.empty() ? std::vector<double>(sizes_.size(), 1) : o.weights),
          o_(std::move(o)) {
        check(turns_.counts().size() == sizes_.size(), code::config, "data::Mixture: ", turns_.counts().size(), " weights for ", sizes_.size(),
              " sources; give one for each");
        check(o_.size >= 0, code::config, "data::Mixture: size is ", o_.size, "; it must be positive, or 0 for as long as nothing repeats");
        for (size_t s = 0; s < sizes_.size(); ++s)
            check(sizes_[s] > 0, code::data, "data::Mixture: source ", s, " is empty; leave it out");
        size_ = o_.size > 0 ? o_.size : std::numeric_limits<int64_t>::max();
        for (size_t s = 0; s < sizes_.size() && o_.size == 0; ++s)
            size_ = std::min(size_, turns_.when(s, static_cast<int64_t>(sizes_[s])));
    }

    size_t size() const { return static_cast<size_t>(size_); }
    /// The random numbers are for sources that change their samples.
    sample_type at(size_t i, Random& random) const {
        auto const [source, index] = place(static_cast<int64_t>(i));
        return parts_.read(source, static_cast<size_t>(index), random);
    }
    sample_type operator[](size_t i) const {
        Random random(0, 0, static_cast<int64_t>(i));
        return at(i, random);
    }

    /// Which sample of which source stands at position i; any i >= 0.
    struct Place {
        size_t source;
        int64_t index;
    };
    Place place(int64_t i) const {
        auto const [source, nth] = turns_[i];
        auto const n = static_cast<int64_t>(sizes_[source]), index = nth % n;
        if (!o_.shuffle) return {source, index};
        auto const key = mix(static_cast<uint64_t>(Seed(o_.seed).stream("mixture", static_cast<int64_t>(source))), static_cast<uint64_t>(nth / n));
        return {source, Permutation(key, n)[index]};
    }
    /// How often `source` is read from beginning to end in the size() samples: over 1, and some of it comes more than once.
    double passes(size_t source) const { return static_cast<double>(turns_.count(source, size_)) / static_cast<double>(sizes_.at(source)); }
    Turns const& turns() const { return turns_; }

private:
    detail::Parts<D...> parts_;
    std::vector<size_t> sizes_;
    Turns turns_;
    mixture_options o_;
    int64_t size_ = 0;
};

template <class... D>
Mixture(mixture_options, D&&...) -> Mixture<D...>;

}  // namespace accelerate::data
