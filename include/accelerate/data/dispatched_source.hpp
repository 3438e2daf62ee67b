#pragma once

#include <accelerate/data/dispatch_rounds.hpp>
#include <accelerate/data/source.hpp>

namespace accelerate::data {

/// Batches that rank 0 reads for all ranks and sends, each rank getting its own: one message with the structure, then one a tensor.
/// Rank 0 makes batches ahead of the loop, on a thread of its own at least; an error there is thrown on every rank.
template <class Loader>
class DispatchedSource {
    using Dataset = typename Loader::dataset_type;
    using Collation = typename Loader::collate_type;
    static constexpr bool indexed = IndexedDataset<Dataset>;

public:
    using batch_type = batch_of<Loader>;
    static_assert(std::default_initializable<batch_type>,
                  "loader::Dispatched: a batch must be default-constructible, so that ranks can receive it; collate into a plain struct, tuple or map of tensors");
    class Run;

    /// Collective. Only rank 0's data set is looked at.
    DispatchedSource(Loader loader, Context const& context)
        : rank_(context.rank),
          size_(context.size),
          pins_(loader.options().pin_memory && !context.device.is_cpu()),
          channel_(context.channel),
          each_(loader.options()),
          whole_(whole(std::move(loader), context)) {
        share({}).validate();
    }

    Loader& loader() { return whole_.loader(); }
    int64_t batches(int64_t epoch) const
        requires indexed
    {
        return plan(epoch, {}).batches(rank_);
    }
    int64_t total_batch_size() const { return whole_.total_batch_size(); }
    int64_t position_after(int64_t n, int64_t epoch) const {
        if constexpr (indexed) return consumed_after(n, plan(epoch, {}), whole_.positions());
        else return whole_.position_after(n, epoch);
    }
    void save(nlohmann::json& values, Position const& position) const { whole_.save(values, position); }
    void check_state(StateDict const& state, int64_t consumed) const { whole_.check_state(state, consumed); }
    Position position_in(StateDict const& state, int64_t consumed) const { return whole_.position_in(state, consumed); }

private:
    /// What rank 0 reads: its batches are those of all ranks together.
    source_of<Loader> whole(Loader loader, Context const& context) const {
        check(size_ == 1 || channel_, code::config,
              "data::Loader: loader::Dispatched over several ranks needs a data::Context with a channel; accelerator.prepare gives it one");
        auto o = loader.options();
        if (!o.split_batches) o.batch_size *= size_;
        o.split_batches = false;
        o.even_batches = o.even_batches.rule == Drop ? Drop : Ragged;
        loader.set_options(o);
        Context const alone{0, 1, context.device};
        if constexpr (indexed) {
            auto samples = rank_ == 0 ? static_cast<int64_t>(loader.dataset().size()) : 0;
            if (size_ > 1) {
                auto const said = channel_.exchange({reinterpret_cast<char const*>(&samples), sizeof samples});
                std::memcpy(&samples, said[0].data(), sizeof samples);
            }
            return {std::move(loader), alone, samples};
        } else return {std::move(loader), alone};
    }
    EndRule rule() const { return each_.drop_last ? Drop : each_.even_batches.rule; }
    /// Rank 0's share, from `begin` on.
    Shard share(Position const& begin) const {
        int64_t samples = 0;
        if constexpr (indexed) samples = whole_.positions();
        return {samples, each_.batch_size, each_.drop_last, each_.even_batches, each_.split_batches, 0, size_, begin.consumed};
    }
    auto plan(int64_t epoch, Position const& begin) const
        requires indexed
    {
        return DispatchPlan<typename Loader::order_type>(whole_.loader().order(), epoch, whole_.samples(), share(begin));
    }

    int64_t rank_, size_;
    bool pins_;
    Channel channel_;
    options each_;  ///< as they were given, for one rank
    source_of<Loader> whole_;
};

/// One epoch from `begin` on. Rank 0 makes a round and sends it, the others receive it, where their loops ask for it.
template <class Loader>
class DispatchedSource<Loader>::Run {
    using Round = DispatchedRound<batch_type>;

public:
    Run(std::shared_ptr<DispatchedSource> source, int64_t epoch, Position const& begin, bool joined) : source_(std::move(source)) {
        check(!joined || source_->size_ == 1 || source_->rule() != Ragged, code::config,
              "accelerator.join_uneven_inputs: dispatched ranks cannot be joined with even_batches = false; use Pad or Mask, which keep them in step");
        if (source_->rank_ != 0) return;
        auto& loader = source_->loader();
        auto const share = source_->share(begin);
        if constexpr (indexed) {
            auto const threads = std::max<int64_t>(1, source_->each_.num_workers);
            start(std::make_shared<IndexedRounds<Loader>>(loader, epoch, source_->plan(epoch, begin), threads), threads);
        } else if constexpr (ShardableStream<Dataset>) {
            using Stream = MergedParts<Dataset>;
            Stream parts(loader.dataset(), source_->whole_.offsets(begin), epoch);
            start(std::make_shared<StreamRounds<Loader, Stream>>(loader, std::move(parts), epoch, share, source_->rule(), false), 1);
        } else {
            source_->whole_.restart(epoch);
            start(std::make_shared<StreamRounds<Loader, Dataset&>>(loader, loader.dataset(), epoch, share, source_->rule(), true), 1);
        }
    }

    int64_t remainder() const { return remainder_; }
    void while_waiting(std::function<void()> f) {
        if (workers_) workers_->while_waiting(std::move(f));
    }

    std::optional<Delivery<batch_type>> next() {
        for (;;) {
            if (last_) return std::nullopt;
            auto round = source_->rank_ == 0 ? lead() : follow();
            if (!round) return std::nullopt;
            last_ = round->last, remainder_ = round->remainder;
            auto& mine = round->shares.front();
            if (mine.batch && source_->pins_) data::pin(*mine.batch);
            if (mine.batch) return Delivery<batch_type>{std::move(*mine.batch), mine.length, mine.valid, std::move(round->position), mine.last};
        }
    }

private:
    /// Rank 0: makes a round and sends each rank its share. Its own comes back.
    std::optional<Round> lead() {
        std::optional<Round> round;
        try {
            round = workers_->take(std::chrono::duration<double>(source_->each_.timeout_s));
        } catch (Error const& e) {
            auto const news = Packer()(std::string(e.code().name))(int64_t{e.code().exit})(std::string(e.what())).packed;
            for (int64_t r = 1; r < source_->size_; ++r) send_packed(source_->channel_, news, r);
            throw;
        }
        for (int64_t r = 1; r < source_->size_; ++r) {
            Packer pack;
            pack(std::string())(round.has_value());
            if (round) {
                auto const& share = round->shares[static_cast<size_t>(r)];
                pack(share.length)(share.valid)(share.last)(round->position.consumed)(round->position.offsets)(round->remainder)(round->last)(share.batch);
            }
            send_packed(source_->channel_, pack.packed, r);
        }
        return round;
    }

    std::optional<Round> follow() {
        std::optional<Round> round;
        receive_packed(source_->channel_, 0, [&](Unpacker& unpack) {
            if (auto const failure = unpack.template get<std::string>(); !failure.empty()) {
                auto const exit = unpack.template get<int64_t>();
                throw Error(code::named(failure, {code::data.name, static_cast<int>(exit)}), concat("on rank 0, which reads for all: ", unpack.template get<std::string>()));
            }
            if (!unpack.template get<bool>()) return;
            auto& share = round.emplace().shares.emplace_back();
            unpack(share.length)(share.valid)(share.last)(round->position.consumed)(round->position.offsets)(round->remainder)(round->last)(share.batch);
        });
        return round;
    }

    template <class Rounds>
    void start(std::shared_ptr<Rounds> rounds, int64_t threads) {
        remainder_ = rounds->remainder();
        workers_ = std::make_unique<Workers<Round>>([rounds, s = source_](int64_t k, int64_t worker) { return rounds->make(k, worker); },
                                                    [rounds](int64_t worker) { return rounds->reading(worker); }, threads,
                                                    threads * source_->each_.prefetch_factor);
    }

    std::shared_ptr<DispatchedSource> source_;
    std::unique_ptr<Workers<Round>> workers_;
    int64_t remainder_ = 0;
    bool last_ = false;
};

}  // namespace accelerate::data
