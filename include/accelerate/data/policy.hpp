#pragma once

#include <accelerate/data/dispatched_source.hpp>
#include <accelerate/data/prepared.hpp>
#include <ranges>
#include <vector>

namespace accelerate {

namespace detail {
using AnyLoader = data::Loader<std::vector<at::Tensor>>;
template <class P>
using prepared_by = typename P::template prepared<AnyLoader>;
}  // namespace detail

/// A loader policy: how samples come to the ranks and how they are replayed.
///   `name`          is printed
///   `prepared<L>`   what `accelerator.prepare` makes of a loader of type L: constructed from (L, data::Context), a range whose
///                   iteration is one epoch and which tells `context.loops` about its last batch; can be saved and restored
template <class P>
concept loader_policy = requires { { P::name } -> std::convertible_to<char const*>; } && std::constructible_from<detail::prepared_by<P>, detail::AnyLoader, data::Context> &&
                        std::ranges::input_range<detail::prepared_by<P>> && stateful<detail::prepared_by<P>>;

namespace loader {

/// What `Stateful` can be told; nothing so far.
struct stateful {};

/// Every rank reads its own share of each global batch. The state is three numbers and counts what was consumed, never what was
/// prefetched; the order does not depend on the number of ranks. Needs a data set that every rank can read. With an indexed one nothing
/// is communicated; with a stream a few numbers a batch.
template <stateful Options = stateful{}>
struct Stateful {
    static constexpr char const* name = "Stateful";
    template <class Loader>
    using prepared = data::Prepared<Loader>;
};

/// What `Dispatched` can be told; nothing so far.
struct dispatched {};

/// Rank 0 reads, and sends every rank its share of each global batch (Python's `dispatch_batches`): for data that only one rank can
/// see. Costs the transfer of what the others get. An incomplete last round is cut into equal pieces, as Python does. A batch must be
/// default-constructible. Preparing, and every step of the loop, are collective.
template <dispatched Options = dispatched{}>
struct Dispatched {
    static constexpr char const* name = "Dispatched";
    template <class Loader>
    using prepared = data::Prepared<Loader, data::DispatchedSource<Loader>>;
};

/// What `Coupled` can be told; nothing so far.
struct coupled {};

/// Samples come from a running simulation on other ranks (`data::Coupling`): each trainer reads those of its producers as they arrive.
/// One loop over the loader is all there is; its position cannot be taken up again.
template <coupled Options = coupled{}>
struct Coupled {
    static constexpr char const* name = "Coupled";
    template <class Loader>
    struct prepared : data::Prepared<Loader> {
        explicit prepared(Loader loader, data::Context context = {}) : data::Prepared<Loader>(std::move(loader), std::move(context)) {
            constexpr bool coupled_data = requires { Loader::dataset_type::coupled; };
            static_assert(coupled_data, "loader::Coupled: the data set must be a coupling's, as in data::Loader{coupling.stream(), {...}}; for other data use loader::Stateful");
        }
    };
};

}  // namespace loader
}  // namespace accelerate
