#pragma once

#include <c10/util/Exception.h>

#include <accelerate/core/error.hpp>
#include <accelerate/data/collate.hpp>
#include <accelerate/data/dataset.hpp>
#include <exception>
#include <vector>

namespace accelerate::data {

namespace detail {

/// Runs `f`; an exception from it comes out as an Error that begins with `where()` and has the original nested. An Error keeps
/// its code, anything else becomes E_DATA.
template <class F, class Where>
decltype(auto) with_context(F&& f, Where const& where) {
    try {
        return f();
    } catch (Error const& e) {
        auto const text = std::string_view(e.what()).substr(e.code().name.size() + 2);  // without its code, which comes first again
        std::throw_with_nested(Error(e.code(), concat(where(), ": ", text)));
    } catch (c10::Error const& e) {
        std::throw_with_nested(Error(code::data, concat(where(), ": ", e.what_without_backtrace())));
    } catch (std::exception const& e) {
        std::throw_with_nested(Error(code::data, concat(where(), ": ", e.what())));
    }
}

inline std::string list(std::span<int64_t const> indices) {
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(indices.size(), 16); ++i) text += (i ? ", " : "") + std::to_string(indices[i]);
    return indices.size() > 16 ? text + ", ..." : text;
}

}  // namespace detail

/// The batch of the samples with those indices: made by the data set where it can (`BatchingDataset`) and no other collation is
/// asked for, else sample by sample. Error naming the sample that could not be read, or those that could not be collated.
template <class Dataset, class Collation>
auto fetch(Dataset& dataset, Collation& collate, std::span<int64_t const> indices) {
    auto const together = [&](char const* what) {
        return [=] { return concat("data::Loader: ", what, " samples ", detail::list(indices)); };
    };
    if constexpr (BatchingDataset<Dataset> && std::is_same_v<Collation, Collate>)
        return detail::with_context([&] { return dataset.batch(indices); }, together("reading"));
    else {
        std::vector<sample_t<Dataset>> samples;
        samples.reserve(indices.size());
        for (auto index : indices)
            detail::with_context([&] { samples.push_back(dataset[static_cast<size_t>(index)]); },
                                 [&] { return concat("data::Loader: reading sample ", index); });
        return detail::with_context([&] { return collate(std::move(samples)); }, together("collating"));
    }
}

/// What `fetch` gives for a Loader.
template <class Loader>
using batch_of = decltype(fetch(std::declval<typename Loader::dataset_type&>(), std::declval<typename Loader::collate_type&>(), {}));

}  // namespace accelerate::data
