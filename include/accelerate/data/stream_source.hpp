#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/data/context.hpp>
#include <accelerate/data/delivery.hpp>
#include <accelerate/data/loader.hpp>
#include <accelerate/data/move_to.hpp>
#include <accelerate/data/stream_slices.hpp>
#include <accelerate/data/workers.hpp>
#include <cstring>

namespace accelerate::data {

/// One rank's batches of a stream. Of an opaque stream every rank reads all and keeps its share; of a shardable one each rank reads a
/// part of its own. An epoch that began on another number of ranks is finished with all parts read by everyone, each keeping its share.
/// In each round the ranks tell each other how far they are (one small exchange), so that all end together and know where each part
/// stands. Its place in the state is how far each part was read.
template <class Loader>
class StreamSource {
    using Dataset = typename Loader::dataset_type;
    using Collation = typename Loader::collate_type;
    static constexpr bool shardable = ShardableStream<Dataset>;

public:
    using batch_type = batch_of<Loader>;
    class Run;

    StreamSource(Loader loader, Context const& context)
        : loader_(std::move(loader)),
          rank_(context.rank),
          size_(context.size),
          pins_(loader_.options().pin_memory && !context.device.is_cpu()),
          exchange_(context.channel.exchange) {
        auto const& o = loader_.options();
        check(!o.split_batches || o.batch_size % size_ == 0, code::config, "data::Loader: with split_batches the batch_size (", o.batch_size,
              ") must be a multiple of the number of ranks (", size_, ")");
        check(size_ == 1 || exchange_, code::config, "data::Loader: a stream over several ranks needs a data::Context with a channel; accelerator.prepare gives it one");
    }

    Loader& loader() { return loader_; }
    int64_t total_batch_size() const { return loader_.options().split_batches ? loader_.options().batch_size : loader_.options().batch_size * size_; }
    int64_t position_after(int64_t n, int64_t) const {
        check(!shardable || n <= 0, code::config, "data::Loader: skip_first_batches cannot jump in a stream that has parts; resume it from a state");
        return std::max<int64_t>(0, n) * total_batch_size();
    }

    void save(nlohmann::json& values, Position const& position) const {
        if constexpr (shardable) values["offsets"] = position.offsets;
    }
    /// Error E_DATA for offsets that cannot be.
    void check_state(StateDict const& state, int64_t consumed) const {
        if constexpr (shardable) {
            auto const offsets = state.value<std::vector<int64_t>>("offsets", "data::Loader");
            int64_t sum = 0;
            for (auto o : offsets) {
                check(o >= 0 && o <= consumed, code::data, "data::Loader.load_state_dict: ", o, " samples of a part consumed, of ", consumed, " in all, cannot be");
                sum += o;
            }
            check(sum == consumed && (!offsets.empty() || consumed == 0), code::data, "data::Loader.load_state_dict: the parts' offsets add up to ", sum,
                  ", consumed are ", consumed);
        }
    }
    Position position_in(StateDict const& state, int64_t consumed) const {
        if constexpr (shardable) return {consumed, state.value<std::vector<int64_t>>("offsets", "data::Loader")};
        else return {consumed};
    }
    /// How far each part was read; at an epoch's beginning there is one for each rank.
    std::vector<int64_t> offsets(Position const& begin) const { return begin.consumed == 0 ? std::vector<int64_t>(static_cast<size_t>(size_)) : begin.offsets; }

    /// Brings an opaque stream to its epoch's beginning.
    void restart(int64_t epoch) {
        if constexpr (requires(Dataset& d) { d.start(epoch); }) loader_.dataset().start(epoch);
        else
            check(!std::exchange(started_, true), code::data,
                  "data::Loader: this stream can be read once, and was; give it a member start(int64_t epoch) that begins again, or make the loader anew");
    }

private:
    int64_t local_batch_size() const { return total_batch_size() / size_; }
    EndRule rule() const { return loader_.options().drop_last ? Drop : loader_.options().even_batches.rule; }

    Loader loader_;
    int64_t rank_, size_;
    bool pins_, started_ = false;
    decltype(Channel::exchange) exchange_;
};

/// The batches of one epoch from `begin` on. One worker at most reads ahead: a stream has one reader.
template <class Loader>
class StreamSource<Loader>::Run {
    using Round = StreamRound<batch_type>;

public:
    Run(std::shared_ptr<StreamSource> source, int64_t epoch, Position const& begin, bool joined)
        : source_(std::move(source)), reading_(std::make_shared<std::atomic<int64_t>>(begin.consumed)), position_(begin) {
        check(!joined || source_->size_ == 1 || source_->rule() != Ragged, code::config,
              "accelerator.join_uneven_inputs: a stream's ranks cannot be joined with even_batches = false; use Pad or Mask, which keep them in step");
        auto const& o = source_->loader_.options();
        auto const local = source_->local_batch_size(), rank = source_->rank_;
        auto const alone = source_->size_ == 1;
        ReadBy const by{source_->loader_.seed(), epoch, rank, o.num_workers > 0 ? 0 : -1, reading_.get()};
        auto const rule = alone && source_->rule() == Pad ? Ragged : source_->rule();  // one rank alone has no reason to fill up
        auto const total = source_->total_batch_size();
        Slice const mine{total, rank * local, local, rule, begin.consumed, rule == Pad ? total : 0};
        auto& dataset = source_->loader_.dataset();
        if constexpr (shardable) {
            auto const& offsets = position_.offsets = source_->offsets(begin);
            own_part_ = static_cast<int64_t>(offsets.size()) == source_->size_ && !alone;
            if (own_part_) {
                Slice const own{local, 0, local, rule, offsets[static_cast<size_t>(rank)], rule == Pad ? local : 0};
                read_from(open_part(dataset, rank, source_->size_, epoch), own, true, by);
            } else read_from(MergedParts<Dataset>(dataset, offsets, epoch), mine, false, by);
        } else {
            source_->restart(epoch);
            read_from<Dataset&>(dataset, mine, true, by);
        }
        if (o.num_workers > 0)
            workers_ = std::make_unique<Workers<Round>>([read = read_, s = source_, r = reading_](int64_t, int64_t) { return read(); },
                                                        [r = reading_, by](int64_t) { return concat("sample ", r->load(), " of the stream", by.who()); }, 1, o.prefetch_factor);
        ahead_ = local_round();
    }

    /// Samples of the last round that are real, once that is at hand; 0: all.
    int64_t remainder() const { return remainder_; }
    void while_waiting(std::function<void()> f) {
        if (workers_) workers_->while_waiting(std::move(f));
    }

    std::optional<Delivery<batch_type>> next() {
        while (!finished_) {
            auto now = std::exchange(ahead_, std::nullopt);
            if (now) ahead_ = local_round();
            auto const agreed = agree(now, ahead_);
            if (agreed.ended) break;
            finished_ = agreed.finished;
            if (own_part_ && !now) now = fill_();
            position_.consumed += agreed.given;
            if constexpr (shardable) position_.offsets = own_part_ ? agreed.offsets : now->offsets;
            if (finished_ && agreed.given < source_->total_batch_size()) remainder_ = agreed.given;
            if (!now || !now->batch) {
                if (!own_part_) return std::nullopt;  // the last round has nothing for this rank
                continue;                             // this rank has run out and others have not: it goes on answering them
            }
            bool const last = finished_ || (own_part_ ? !ahead_ && !rule_fills() : !ahead_->batch);
            return Delivery<batch_type>{std::move(*now->batch), now->length, now->valid, position_, last};
        }
        return std::nullopt;
    }

private:
    struct Agreed {
        int64_t given = 0;                    ///< samples of this round over all ranks
        bool ended = false, finished = false;  ///< there is no such round; there is none after it
        std::vector<int64_t> offsets = {};
    };

    template <class Stream>
    void read_from(Stream&& stream, Slice slice, bool at_beginning, ReadBy by) {
        auto slices = std::make_shared<StreamSlices<Stream, Collation>>(std::forward<Stream>(stream), source_->loader_.collation(), slice, at_beginning, by);
        read_ = [slices, pins = source_->pins_] {
            auto round = slices->next();
            if (pins && round && round->batch) data::pin(*round->batch);
            return round;
        };
        fill_ = [slices, fills = slice.fills()] { return fills ? std::optional(slices->filler()) : std::nullopt; };
    }

    std::optional<Round> local_round() { return workers_ ? workers_->take(std::chrono::duration<double>(source_->loader_.options().timeout_s)) : read_(); }

    /// What all ranks together have in this round and whether there is another one. Error E_DATA on every rank when they cannot go on together.
    Agreed agree(std::optional<Round> const& now, std::optional<Round> const& ahead) {
        auto const given = now ? now->given : 0, next = ahead ? ahead->given : 0;
        if (source_->size_ == 1) return {given, !now, !ahead, {}};
        auto const rank = static_cast<size_t>(source_->rank_);
        std::array<int64_t, 4> const said{given, next, shardable ? position_.offsets[own_part_ ? rank : 0] + given : 0, own_part_ && !now && rule_fills() && !fill_()->batch};
        auto const heard = source_->exchange_(std::string_view(reinterpret_cast<char const*>(said.data()), sizeof said));
        auto const word = [&](size_t r, size_t i) {
            int64_t value = 0;
            std::memcpy(&value, heard[r].data() + i * sizeof value, sizeof value);
            return value;
        };
        Agreed all;
        int64_t least = given, least_next = next, most = 0, most_next = 0;
        size_t shortest = rank, longest = rank;
        for (size_t r = 0; r < heard.size(); ++r) {
            auto const read = [&](size_t of) { return word(of, 0) + word(of, 1); };
            if (read(r) < read(shortest)) shortest = r;
            if (read(r) > read(longest)) longest = r;
            check(word(r, 3) == 0, code::data, "data::Loader: part ", r, " of ", heard.size(), " of the stream is empty, so that rank ", r,
                  " has nothing to fill its batches up with; use fewer ranks, or even_batches = Drop");
            all.given += word(r, 0);
            all.offsets.push_back(word(r, 2));
            least = std::min(least, word(r, 0)), most = std::max(most, word(r, 0));
            least_next = std::min(least_next, word(r, 1)), most_next = std::max(most_next, word(r, 1));
        }
        if (!own_part_) {
            check(shortest == longest, code::data, "data::Loader: the stream ended for one rank only: after ",
                  position_.consumed + word(shortest, 0) + word(shortest, 1), " samples on rank ", shortest,
                  ", later on rank ", longest, "; every rank must read the same stream, or loader::Dispatched let rank 0 read it");
            return {given, !now, !ahead, {}};
        }
        auto const drops = source_->rule() == Drop;  // then a part's incomplete rounds were left out already
        all.ended = drops ? least == 0 : most == 0;
        all.finished = drops ? least_next == 0 : most_next == 0;
        return all;
    }
    bool rule_fills() const { return source_->rule() == Pad || source_->rule() == Mask; }

    std::shared_ptr<StreamSource> source_;
    std::shared_ptr<std::atomic<int64_t>> reading_;
    std::function<std::optional<Round>()> read_, fill_;
    std::unique_ptr<Workers<Round>> workers_;  // destroyed before what its thread uses
    std::optional<Round> ahead_;
    Position position_;
    int64_t remainder_ = 0;
    bool own_part_ = false, finished_ = false;
};

}  // namespace accelerate::data
