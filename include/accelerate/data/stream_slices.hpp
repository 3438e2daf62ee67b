#pragma once

#include <accelerate/data/end_rule.hpp>
#include <accelerate/data/fetch.hpp>
#include <accelerate/data/merged_parts.hpp>

namespace accelerate::data {

/// How a rank's batch is cut from the rounds of a stream.
struct Slice {
    int64_t total = 1;            ///< samples of a round
    int64_t from = 0, count = 1;  ///< those in it that are this rank's
    EndRule rule = EndRule::Pad;  ///< for an incomplete round; `Pad` and `Mask` fill it up
    int64_t consumed = 0;         ///< samples of the epoch that were given out before
    int64_t kept = 0;             ///< of the epoch's first samples, for filling up

    bool fills() const { return rule == Mask || rule == Pad; }
};

/// One rank's batch of one round.
template <class Batch>
struct StreamRound {
    std::optional<Batch> batch;        ///< nothing where this rank has no samples in the round
    int64_t length = 0;                ///< its samples
    int64_t valid = 0;                 ///< those that are no repetitions
    int64_t given = 0;                 ///< samples of the whole round, without repetitions
    std::vector<int64_t> offsets = {}; ///< how far each part was read then, where the stream has parts
};

/// Makes one rank's batches of a stream. An incomplete last round is filled up with the first round (the rules of Python's
/// `IterableDatasetShard`), which is kept for that, or under `Mask` with the last sample. Read by one thread at a time.
template <class Stream, class Collation>
class StreamSlices {
public:
    using sample_type = sample_t<Stream>;
    using batch_type = std::remove_cvref_t<decltype(std::declval<Collation&>()(std::declval<std::vector<sample_type>>()))>;
    using round_type = StreamRound<batch_type>;

    /// `at_beginning`: the stream stands at the epoch's beginning, else behind the samples that were given out before.
    StreamSlices(Stream stream, Collation& collate, Slice slice, bool at_beginning, ReadBy by)
        : stream_(std::forward<Stream>(stream)), collate_(&collate), slice_(slice), by_(by) {
        if (!at_beginning) read_ = slice.consumed;
        while (keeps() && read_ < slice.consumed && next_sample()) {}
        auto const before = slice.consumed - (slice.rule == Mask ? 1 : 0);  // what fills up may be the last of them
        if (read_ < before) data::skip(stream_, before - read_), read_ = before;
        if (read_ < slice.consumed) next_sample();
        read_ = slice.consumed;
    }

    /// The next round; nothing at the end.
    std::optional<round_type> next() {
        std::vector<sample_type> mine;
        mine.reserve(static_cast<size_t>(slice_.count));
        int64_t given = 0;
        for (; given < slice_.total; ++given) {
            auto sample = next_sample();
            if (!sample) break;
            if (given >= slice_.from && given < slice_.from + slice_.count) mine.push_back(std::move(*sample));
        }
        auto const whole = given == slice_.total;
        if (given == 0 || (!whole && slice_.rule == Drop)) return std::nullopt;
        auto const valid = static_cast<int64_t>(mine.size());
        if (!whole && slice_.fills()) fill(mine, std::max<int64_t>(0, slice_.from - given));
        return round(std::move(mine), valid, given);
    }

    /// The epoch's first samples that were kept.
    std::vector<sample_type> const& first() const { return first_; }

    /// A round of repetitions only, after the end; without a batch where there was never a sample.
    round_type filler() {
        std::vector<sample_type> mine;
        fill(mine, slice_.from);
        return round(std::move(mine), 0, 0);
    }

private:
    bool keeps() const { return static_cast<int64_t>(first_.size()) < slice_.kept; }

    std::optional<sample_type> next_sample() {
        if (by_.reading) by_.reading->store(read_, std::memory_order_relaxed);
        auto sample = detail::with_context([&] { return stream_.next(); }, [&] { return concat("data::Loader: reading sample ", read_, " of the stream", by_.who()); });
        if (!sample) return sample;
        ++read_;
        if constexpr (std::copy_constructible<sample_type>) {
            if (keeps()) first_.push_back(*sample);
            if (slice_.rule == Mask) last_ = *sample;
        }
        return sample;
    }

    /// Completes a batch, beginning with repetition `i` of the round.
    void fill(std::vector<sample_type>& mine, int64_t i) {
        if constexpr (std::copy_constructible<sample_type>) {
            if (slice_.rule == Mask ? !last_ : first_.empty()) return;
            for (; static_cast<int64_t>(mine.size()) < slice_.count; ++i) mine.push_back(slice_.rule == Mask ? *last_ : first_[static_cast<size_t>(i) % first_.size()]);
        } else {
            static_cast<void>(mine), static_cast<void>(i);
            throw Error(code::config, "data::Loader: samples that cannot be copied cannot fill up the last batches; set even_batches = Drop or Ragged");
        }
    }

    round_type round(std::vector<sample_type>&& mine, int64_t valid, int64_t given) {
        round_type out{.batch = {}, .length = static_cast<int64_t>(mine.size()), .valid = valid, .given = given};
        if constexpr (requires { stream_.offsets(); }) out.offsets = stream_.offsets();
        if (!mine.empty())
            out.batch = detail::with_context([&] { return (*collate_)(std::move(mine)); },
                                             [&] { return concat("data::Loader: collating samples ", read_ - given, " to ", read_ - 1, " of the stream", by_.who()); });
        return out;
    }

    Stream stream_;
    Collation* collate_;
    Slice slice_;
    ReadBy by_;
    int64_t read_ = 0;
    std::vector<sample_type> first_;
    std::optional<sample_type> last_;
};

}  // namespace accelerate::data
