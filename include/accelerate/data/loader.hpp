#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/data/collate.hpp>
#include <accelerate/data/dataset.hpp>
#include <accelerate/data/options.hpp>
#include <accelerate/data/order.hpp>
#include <accelerate/data/sampler.hpp>
#include <utility>

namespace accelerate::data {

namespace detail {
/// `sample_t`, or where there is none (a mistake that the Loader names) a tensor.
template <class D>
struct SampleOf {
    using type = at::Tensor;
};
template <class D>
    requires requires { typename sample_t<D>; }
struct SampleOf<D> {
    using type = sample_t<D>;
};
}  // namespace detail

/// What to load: a data set, options, and an order of its own if the options' `shuffle` is not enough. `accelerator.prepare` makes
/// of it what the loop iterates.
///
///     data::Loader{dataset, {.batch_size = 16, .shuffle = true, .seed = 42}}
///
/// A data set given by name is referenced and must outlive the loader; a temporary is moved in. With an order as third argument
/// that order (or batch sampler) alone decides; `shuffle` and `seed` are not looked at. Error E_CONFIG for options that cannot be.
template <class Dataset, class Order = order::Standard, class Collation = Collate>
class Loader {
    static constexpr bool has_samples = data::Dataset<Dataset>, has_order = order_policy<Order> || batch_sampler<Order>;
    static_assert(has_samples, "data::Loader: a data set needs size() and operator[](size_t), a stream next() or open(part, parts); see data/dataset.hpp");
    static_assert(has_order, "data::Loader: the third argument is an order, with epoch(e, n)[position], or a batch sampler, with batches(e, n)[k]; see data/order.hpp and data/sampler.hpp");
    static constexpr bool ordered = IndexedDataset<Dataset> || !has_samples || std::same_as<Order, order::Standard>;
    static_assert(ordered, "data::Loader: a stream comes in its own order; leave the order out, or use a data set with size() and operator[]");

public:
    static constexpr bool possible = has_samples && has_order && ordered;
    using dataset_type = std::remove_reference_t<Dataset>;
    using order_type = Order;
    using collate_type = Collation;
    using sample_type = typename detail::SampleOf<Dataset>::type;

    explicit Loader(Dataset&& dataset, options o = {})
        requires std::same_as<Order, order::Standard>
        : Loader(std::forward<Dataset>(dataset), o, order::Standard{o.shuffle, o.seed}) {}

    Loader(Dataset&& dataset, options o, Order order, Collation collate = {})
        : dataset_(std::forward<Dataset>(dataset)), options_(o), order_(std::move(order)), collate_(std::move(collate)) {
        check(o.batch_size >= 1, code::config, "data::Loader: batch_size is ", o.batch_size, "; it must be at least 1");
        check(o.num_workers >= 0, code::config, "data::Loader: num_workers is ", o.num_workers, "; it must be at least 0");
        check(o.prefetch_factor >= 1, code::config, "data::Loader: prefetch_factor is ", o.prefetch_factor, "; it must be at least 1");
        check(IndexedDataset<Dataset> || !o.shuffle, code::config, "data::Loader: a stream cannot be shuffled; shuffle what it reads, or use a data set with size() and operator[]");
    }

    /// The same loader with a function that makes a batch of a `std::vector<Sample>`, in place of `Collate`.
    template <class F>
    Loader<Dataset, Order, F> collate(F f) && {
        static_assert(requires(std::vector<sample_t<Dataset>> s) { f(std::move(s)); }, "data::Loader: a collate function takes a std::vector of samples");
        return {std::forward<Dataset>(dataset_), options_, std::move(order_), std::move(f)};
    }

    Dataset& dataset() { return dataset_; }
    std::remove_reference_t<Dataset> const& dataset() const { return dataset_; }
    data::options const& options() const { return options_; }
    void set_options(data::options const& o) { options_ = o; }
    Order& order() { return order_; }
    Order const& order() const { return order_; }
    Collation& collation() { return collate_; }

    /// How samples come, for people and for the state: "sequential", "shuffled", or "in an order of their own".
    std::string order_name() const {
        if constexpr (std::same_as<Order, order::Standard>) return order_.shuffle ? "shuffled" : "sequential";
        else return std::same_as<Order, order::Shuffled> ? "shuffled" : std::same_as<Order, order::Sequential> ? "sequential" : "in an order of their own";
    }
    /// The seed of the order, or of the order inside a batch sampler; else that of the options.
    int64_t seed() const {
        if constexpr (requires { order_.seed; }) return order_.seed;
        else if constexpr (requires { order_.order.seed; }) return order_.order.seed;
        else return options_.seed;
    }
    void set_seed(int64_t seed) {
        if constexpr (requires { order_.seed; }) order_.seed = seed;
        else if constexpr (requires { order_.order.seed; }) order_.order.seed = seed;
        else options_.seed = seed;
    }

private:
    Dataset dataset_;
    data::options options_;
    Order order_;
    Collation collate_;
};

template <class D>
Loader(D&&, options = {}) -> Loader<D>;
template <class D, class Order>
Loader(D&&, options, Order) -> Loader<D, Order>;
template <class D, class Order, class F>
Loader(D&&, options, Order, F) -> Loader<D, Order, F>;

template <class T>
inline constexpr bool is_loader = false;
template <class D, class Order, class F>
inline constexpr bool is_loader<Loader<D, Order, F>> = true;

}  // namespace accelerate::data
