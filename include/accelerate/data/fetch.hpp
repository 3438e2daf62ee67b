#pragma once

#include <c10/util/Exception.h>

#include <accelerate/core/error.hpp>
#include <accelerate/data/collate.hpp>
#include <accelerate/data/dataset.hpp>
#include <atomic>
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

/// Who reads, for messages and for the random numbers of samples.
struct ReadBy {
    int64_t seed = 0, epoch = 0, rank = 0;
    int64_t worker = -1;                      ///< -1: the loop's thread
    std::atomic<int64_t>* reading = nullptr;  ///< told which sample is being read

    std::string who() const { return worker < 0 ? concat(" on rank ", rank) : concat(" on rank ", rank, ", worker ", worker); }
};

/// The batch of the samples with those indices, which stand at positions `position(j)` of the epoch: made by the data set where it can
/// (`BatchingDataset`) and no other collation is asked for, else sample by sample. Error naming the sample that could not be read, or
/// those that could not be collated, and who tried.
template <class Dataset, class Collation, class Position>
auto fetch(Dataset& dataset, Collation& collate, std::span<int64_t const> indices, Position const& position, ReadBy const& by) {
    auto const together = [&](char const* what) {
        return [&, what] { return concat("data::Loader: ", what, " samples ", detail::list(indices), by.who()); };
    };
    auto const tell = [&](int64_t index) {
        if (by.reading) by.reading->store(index, std::memory_order_relaxed);
    };
    if constexpr (BatchingDataset<Dataset> && std::is_same_v<Collation, Collate>) {
        tell(indices.empty() ? -1 : indices[0]);
        return detail::with_context([&] { return dataset.batch(indices); }, together("reading"));
    } else {
        std::vector<sample_t<Dataset>> samples;
        samples.reserve(indices.size());
        for (size_t j = 0; j < indices.size(); ++j) {
            tell(indices[j]);
            detail::with_context([&] { samples.push_back(data::read_sample(dataset, static_cast<size_t>(indices[j]), Random(by.seed, by.epoch, position(static_cast<int64_t>(j))))); },
                                 [&] { return concat("data::Loader: reading sample ", indices[j], by.who()); });
        }
        return detail::with_context([&] { return collate(std::move(samples)); }, together("collating"));
    }
}

namespace detail {
template <class Loader>
auto batch_of() {
    using D = typename Loader::dataset_type;
    using C = typename Loader::collate_type;
    if constexpr (BatchingDataset<D> && std::is_same_v<C, Collate>) return std::type_identity<decltype(std::declval<D&>().batch({}))>();
    else return std::type_identity<decltype(std::declval<C&>()(std::declval<std::vector<typename Loader::sample_type>>()))>();
}
}  // namespace detail

/// The batches of a Loader.
template <class Loader>
using batch_of = typename decltype(detail::batch_of<Loader>())::type;

}  // namespace accelerate::data
