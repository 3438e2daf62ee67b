#pragma once

#include <accelerate/data/dataset.hpp>
#include <concepts>
#include <functional>
#include <optional>
#include <tuple>
#include <utility>

namespace accelerate::data {

namespace detail {

/// What a transform is called with: a value that it may take; or, where a data set gives a reference (to an element of a std::vector),
/// something that it may only look at.
template <Dataset D>
struct Given {
    using type = sample_t<D>&&;
};
template <IndexedDataset D>
struct Given<D> {
    using read = decltype(read_sample(std::declval<std::remove_reference_t<D>&>(), 0, std::declval<Random>()));
    using type = std::conditional_t<std::is_lvalue_reference_v<read>, std::remove_cvref_t<read> const&, std::remove_cvref_t<read>&&>;
};
template <class D>
using given_t = typename Given<D>::type;

/// Whether a function takes random numbers behind the sample, as only an indexed data set has them.
template <class D, class F>
concept randomised = IndexedDataset<D> && !std::invocable<F const&, given_t<D>> && std::invocable<F const&, given_t<D>, Random&>;

template <class D, class F>
consteval bool require_transformable() {
    static_assert(Dataset<D>, "data: map and filter take a data set or a stream; see data/dataset.hpp");
    if constexpr (Dataset<D>)
        static_assert(std::invocable<F const&, given_t<D>> || randomised<D, F>,
                      "data: map and filter take a function of one sample (map over an indexed data set: also of a sample and a data::Random&) that can be "
                      "called when const, as by several threads at once: no mutable lambda, no parameter of type Sample&");
    return true;
}

}  // namespace detail

/// A data set or stream with `f(sample)` in place of each sample; see `map`.
template <class D, class F>
class Map {
    static_assert(detail::require_transformable<D, F>());
    using Source = std::remove_reference_t<D>;

public:
    Map(D&& source, F f) : source_(std::forward<D>(source)), f_(std::move(f)) {}

    size_t size() const
        requires IndexedDataset<D>
    {
        return static_cast<size_t>(source().size());
    }
    auto at(size_t i, Random& random) const
        requires IndexedDataset<D>
    {
        decltype(auto) sample = read_sample(source(), i, std::move(random));
        if constexpr (detail::randomised<D, F>) return std::invoke(f_, static_cast<detail::given_t<D>>(sample), random);
        else return std::invoke(f_, static_cast<detail::given_t<D>>(sample));
    }
    auto operator[](size_t i) const
        requires IndexedDataset<D>
    {
        Random random(0, 0, static_cast<int64_t>(i));
        return at(i, random);
    }

    auto next()
        requires OpaqueStream<D>
    {
        auto sample = source().next();
        using Result = std::remove_cvref_t<std::invoke_result_t<F const&, sample_t<D>&&>>;
        return sample ? std::optional<Result>(std::invoke(std::as_const(f_), *std::move(sample))) : std::nullopt;
    }
    void start(int64_t epoch)
        requires requires(Source& s) { s.start(epoch); }
    {
        source().start(epoch);
    }
    void skip(int64_t n)
        requires requires(Source& s) { s.skip(n); }
    {
        source().skip(n);
    }

    template <std::integral... Epoch>
        requires requires(Source& s, int64_t k, Epoch... epoch) { s.open(k, k, epoch...); }
    auto open(int64_t k, int64_t n, Epoch... epoch) const {
        return Map<decltype(source().open(k, n, epoch...)), F>(source().open(k, n, epoch...), f_);
    }

private:
    D& source() const { return std::get<0>(source_); }

    mutable std::tuple<D> source_;  // read as non-const, as a loader does
    F f_;
};

/// Those samples of a stream for which `predicate(sample)` holds; see `filter`.
template <class D, class P>
class Filter {
    static_assert(detail::require_transformable<D, P>());
    using Source = std::remove_reference_t<D>;

public:
    Filter(D&& source, P predicate) : source_(std::forward<D>(source)), predicate_(std::move(predicate)) {}

    auto next()
        requires OpaqueStream<D>
    {
        auto sample = source().next();
        while (sample && !std::invoke(std::as_const(predicate_), std::as_const(*sample))) sample = source().next();
        return sample;
    }
    void start(int64_t epoch)
        requires requires(Source& s) { s.start(epoch); }
    {
        source().start(epoch);
    }

    template <std::integral... Epoch>
        requires requires(Source& s, int64_t k, Epoch... epoch) { s.open(k, k, epoch...); }
    auto open(int64_t k, int64_t n, Epoch... epoch) const {
        return Filter<decltype(source().open(k, n, epoch...)), P>(source().open(k, n, epoch...), predicate_);
    }

private:
    D& source() const { return std::get<0>(source_); }

    mutable std::tuple<D> source_;
    P predicate_;
};

/// The data set with `f(sample)` in place of each sample, computed whenever one is read. What is indexed stays indexed, a stream a
/// stream (its `start` and `skip` go through: skipped samples are not transformed), one that opens parts opens parts, each with a
/// copy of f. f must be callable when const, by several threads at once; over an indexed data set it may take a `data::Random&` as
/// well, to change samples at random in a way that depends on seed, epoch and position alone. Batches are made sample by sample.
/// A data set given by name is referenced and must outlive the result, a temporary is moved in.
///
///     data::Loader{data::map(images, [](torch::Tensor x) { return x.to(torch::kFloat) / 255; }), {.batch_size = 64}}
template <class D, class F>
Map<D, F> map(D&& source, F f) {
    return {std::forward<D>(source), std::move(f)};
}

/// The stream without the samples for which `predicate(sample)` does not hold. They are read and dropped; how many remain is not
/// known before, so there is no fast `skip`. Otherwise as `map`.
template <class D, class P>
Filter<D, P> filter(D&& source, P predicate) {
    static_assert(!IndexedDataset<D>,
                  "data::filter: an indexed data set must know its size; collect the indices that pass and use data::Subset{dataset, indices}");
    return {std::forward<D>(source), std::move(predicate)};
}

}  // namespace accelerate::data
