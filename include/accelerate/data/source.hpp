#pragma once

#include <accelerate/data/indexed_source.hpp>
#include <accelerate/data/stream_source.hpp>

namespace accelerate::data {

namespace detail {
template <class Loader>
struct SourceOf {
    using type = StreamSource<Loader>;
};
template <class Loader>
    requires IndexedDataset<typename Loader::dataset_type>
struct SourceOf<Loader> {
    using type = IndexedSource<Loader>;
};
}  // namespace detail

/// Where a prepared loader's batches come from when every rank reads for itself. A source knows the data set, the share of its rank and
/// what stands in the state beside the position; its `Run(source, epoch, begin, joined)` makes the batches of one epoch, one `next()` each.
template <class Loader>
using source_of = typename detail::SourceOf<Loader>::type;

}  // namespace accelerate::data
