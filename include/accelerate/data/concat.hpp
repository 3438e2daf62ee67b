#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/parts.hpp>
#include <algorithm>

namespace accelerate::data {

/// Data sets one behind the other, as one: `Concat{a, b, c}`, or `Concat{list}` for a std::vector of data sets of one type (the
/// shards of a large one). All have one sample type; empty ones are legal. Data sets given by name are referenced and must outlive
/// this, temporaries are moved in; their sizes are taken here. A sample is found by binary search and read from its data set.
template <class... D>
class Concat {
public:
    using sample_type = typename detail::Parts<D...>::sample_type;

    explicit Concat(D&&... parts) : parts_(std::forward<D>(parts)...), ends_(parts_.sizes()) {
        for (size_t k = 1; k < ends_.size(); ++k) ends_[k] += ends_[k - 1];
    }

    size_t size() const { return ends_.empty() ? 0 : ends_.back(); }
    /// Error E_DATA when there is no such sample. The random numbers are for data sets that change their samples.
    sample_type at(size_t i, Random& random) const {
        check(i < size(), code::data, "data::Concat: sample ", i, "; there are ", size());
        auto const part = static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), i) - ends_.begin());
        return parts_.read(part, part > 0 ? i - ends_[part - 1] : i, random);
    }
    sample_type operator[](size_t i) const {
        Random random(0, 0, static_cast<int64_t>(i));
        return at(i, random);
    }

private:
    detail::Parts<D...> parts_;
    std::vector<size_t> ends_;
};

template <class... D>
Concat(D&&...) -> Concat<D...>;

}  // namespace accelerate::data
