#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/dataset.hpp>
#include <concepts>
#include <tuple>
#include <utility>
#include <vector>

namespace accelerate::data {

namespace detail {

template <class D>
concept has_get = requires(D& d, size_t i) { d.get(i); };
template <class D>
concept has_get_batch = requires(D& d, typename D::BatchRequestType request) {
    requires !std::integral<typename D::BatchRequestType>;  // a number of samples, as of a StreamDataset, is no index
    { d.get_batch(request).front() };
};

/// A torch::data::Example with data and target as a pair, one without target as its data, anything else as it is.
template <class S>
auto without_example(S sample) {
    constexpr bool example = requires { typename S::DataType; typename S::TargetType; sample.data; };
    if constexpr (example && requires { sample.target; }) return std::pair(std::move(sample.data), std::move(sample.target));
    else if constexpr (example) return typename S::DataType(std::move(sample.data));
    else return sample;
}

}  // namespace detail

/// A data set of LibTorch's as one of ours; see `adapt`.
template <class D>
class TorchDataset {
    using Inner = std::remove_cvref_t<D>;
    static constexpr bool possible = detail::has_get<Inner> || detail::has_get_batch<Inner>;
    static_assert(possible,
                  "data::adapt: a torch data set needs get(size_t), or get_batch(indices) giving a std::vector of samples; leave out "
                  "torch::data::transforms::Stack (the Loader collates), and write a stream as a struct with next() (see data/dataset.hpp)");

public:
    /// Error E_CONFIG when the data set does not know its size.
    explicit TorchDataset(D&& dataset) : dataset_(std::forward<D>(dataset)) {
        auto const size = std::as_const(std::get<0>(dataset_)).size();
        if constexpr (requires { size.has_value(); }) {
            check(size.has_value(), code::config, "data::adapt: the torch data set's size() is empty; a Loader needs to know it");
            size_ = *size;
        } else size_ = static_cast<size_t>(size);
    }

    size_t size() const { return size_; }
    auto operator[](size_t i) const {
        auto& dataset = std::get<0>(dataset_);
        if constexpr (detail::has_get<Inner>) return detail::without_example(dataset.get(i));
        else return detail::without_example(std::move(dataset.get_batch(i).front()));
    }

private:
    mutable std::tuple<D> dataset_;  // LibTorch's `get` is not const
    size_t size_ = 0;
};

/// A torch::data data set (anything with `get(size_t)` and `size()`, or what its `map(transform)` gives) for a `Loader`. Samples of
/// type torch::data::Example<> become pairs of data and target, so that a batch is `auto& [data, target]`; those without a target
/// become tensors. With `num_workers > 0` its `get` is called on other threads than the loop's, where torch::data copies the
/// data set for each. Given by name it is referenced and must outlive the result; a temporary is moved in.
///
///     data::Loader{data::adapt(torch::data::datasets::MNIST("mnist")), {.batch_size = 64, .shuffle = true}}
template <class D>
TorchDataset<D> adapt(D&& dataset) {
    return TorchDataset<D>(std::forward<D>(dataset));
}

}  // namespace accelerate::data
