#pragma once

#include <accelerate/data/channel.hpp>
#include <accelerate/data/dataset.hpp>
#include <accelerate/data/prepared.hpp>

namespace accelerate::data {

/// How a `Coupling` is set up; the same on every rank.
struct coupling_options {
    int64_t producers = 1;                  ///< ranks [0, producers) publish samples, the others train
    int64_t max_bytes = int64_t{64} << 20;  ///< of one producer's samples that may be under way or waiting for training; a sample may have a quarter
    int64_t window = 1024;                  ///< samples that a trainer draws the next one from, at random; 1: in their order
    int64_t seed = 0;                       ///< of that drawing
};

/// Training inside a running simulation: some ranks of an application's communicator publish samples, the others train on them
/// (`loader::Coupled`), and predictions go back. Producer p feeds trainer p modulo their number. Publishing waits while `max_bytes` are
/// under way, so that memory stays bounded however fast the simulation is. Every sample arrives once: they are counted and numbered.
///
///     data::Coupling<State> coupling(comm::Mpi(simulation_comm), {.producers = 2});
///     if (coupling.is_producer()) { while (simulate()) coupling.publish(state); coupling.finish(); }
///     else { Run accelerator{{}, coupling.trainers()}; auto train = accelerator.prepare(data::Loader{coupling.stream(), {...}}); ... }
///
/// `Sample` is default-constructible; see `Packer` for what it may hold. Errors: E_PEER_LOST, naming the rank, when one dies.
template <class Sample, comm::communicator Comm>
class Coupling {
    enum class Kind : uint8_t { One, End };  // sample, or there are no more

public:
    class Reader;
    class Stream;

    /// Collective over `world`. Error E_CONFIG unless there are producers, and no fewer of them than trainers.
    Coupling(Comm world, coupling_options o)
        : o_(check_options(world, o)),
          rank_(world.rank()),
          trainers_here_(world.size() - o.producers),
          own_(world.split(is_producer() ? 0 : 1, rank_)) {
        auto const stream = world.duplicate();  // read by a loader's worker, perhaps, while predictions are sent
        samples_ = channel_over(stream, at::kCPU, 0), credits_ = channel_over(stream, at::kCPU, 1), answers_ = channel_over(world.duplicate());
    }

    bool is_producer() const { return rank_ < o_.producers; }
    /// The communicator of this rank's own kind: what an Accelerator is made with on trainers, and a simulation goes on with on producers.
    Comm const& trainers() const { return own_of(false); }
    Comm const& producers() const { return own_of(true); }

    // ---- on producers -----------------------------------------------------------------------------------------------------

    /// The rank that trains on this producer's samples.
    int64_t trainer() const { return o_.producers + rank_ % trainers_here_; }

    /// Sends a sample; its memory may be used again when this returns. Waits while too much is under way. Error E_CONFIG for a sample
    /// larger than a quarter of `max_bytes`.
    void publish(Sample const& sample) {
        check(is_producer(), code::call_order, "data::Coupling.publish on rank ", rank_, ", which trains; ranks 0 to ", o_.producers - 1, " publish");
        Packer pack;
        pack(Kind::One)(published_++)(sample);
        auto const size = pack.packed.size();
        check(size <= o_.max_bytes / 4, code::config, "data::Coupling.publish: a sample has ", size, " bytes; max_bytes is ", o_.max_bytes, " and must be at least four times that");
        while (under_way_ + size > o_.max_bytes) under_way_ -= next_credit();
        under_way_ += size;
        send_packed(samples_, pack.packed, trainer());
    }
    /// There will be no more samples of this producer. Returns when its trainer has received all of them.
    void finish() {
        check(is_producer(), code::call_order, "data::Coupling.finish on rank ", rank_, ", which trains; producers finish");
        send_packed(samples_, Packer()(Kind::End)(published_).packed, trainer());
        while (next_credit() != all_arrived) {}
    }
    /// Samples published so far.
    int64_t published() const { return published_; }

    // ---- on trainers ------------------------------------------------------------------------------------------------------

    /// The samples of all producers, as what a Loader loads. It can be read once.
    Stream stream() { return Stream(*this); }

    // ---- the way back, between any two of them ----------------------------------------------------------------------------

    /// Sends a value (a prediction) to a rank, which must receive it.
    template <class Value>
    void send(Value const& value, int64_t to) { send_packed(answers_, Packer()(value).packed, to); }
    template <class Value>
    Value receive(int64_t from) {
        Value value{};
        receive_packed(answers_, from, [&](Unpacker& unpack) { unpack(value); });
        return value;
    }

private:
    static constexpr int64_t all_arrived = -1;  // in a credit's place

    int64_t next_credit() {
        int64_t credit = 0;
        credits_.receive(detail::bytes_at(&credit, sizeof credit), trainer());
        return credit;
    }
    static coupling_options check_options(Comm const& world, coupling_options const& o) {
        check(o.producers >= 1 && o.producers < world.size() && o.producers >= world.size() - o.producers, code::config, "data::Coupling: ", o.producers, " of ", world.size(),
              " ranks produce; there must be a trainer at least, and a producer at least for each trainer");
        check(o.window >= 1 && o.max_bytes >= 4, code::config, "data::Coupling: window is ", o.window, " and max_bytes ", o.max_bytes, "; both must be positive");
        return o;
    }
    Comm const& own_of(bool producer) const {
        check(is_producer() == producer, code::call_order, "data::Coupling: rank ", rank_, is_producer() ? " produces" : " trains", "; it has no communicator of the others");
        return own_;
    }

    coupling_options o_;
    int64_t rank_, trainers_here_;
    Comm own_;
    Channel samples_, credits_, answers_;
    int64_t published_ = 0, under_way_ = 0;
};

/// What a trainer reads: the samples of its producers, one of each in turn, drawn from a window.
template <class Sample, comm::communicator Comm>
class Coupling<Sample, Comm>::Reader {
public:
    Reader(Coupling& coupling, int64_t k, int64_t n) : coupling_(&coupling), random_(coupling.o_.seed, 0, k) {
        for (auto p = k; p < coupling.o_.producers; p += n) producers_.push_back({p});
    }

    /// Error E_DATA when a producer's samples did not arrive once each.
    std::optional<Sample> next() {
        while (static_cast<int64_t>(window_.size()) < coupling_->o_.window && receive_one()) {}
        if (window_.empty()) return std::nullopt;
        std::swap(window_[static_cast<size_t>(random_.below(static_cast<int64_t>(window_.size())))], window_.back());
        auto held = std::move(window_.back());
        window_.pop_back();
        give_credit(producers_[held.producer], held.bytes);
        return std::move(held.sample);
    }

private:
    struct Producer {
        int64_t rank = 0, received = 0;
        int64_t held = 0, to_credit = 0;  ///< bytes in the window, and gone from it but not said so
        bool ended = false;
    };
    struct Held {
        Sample sample = {};
        int64_t bytes = 0;
        size_t producer = 0;
    };

    /// A sample of the next producer whose turn it is. False when there is none to wait for. A producer that has much in the window is
    /// not waited for: it may itself be waiting for credit.
    bool receive_one() {
        for (size_t tried = 0; tried < producers_.size(); ++tried) {
            auto const which = turn_++ % producers_.size();
            auto& from = producers_[which];
            if (from.ended || from.held > coupling_->o_.max_bytes / 4) continue;
            Held held{.producer = which};
            auto kind = Kind::One;
            int64_t number = 0;
            receive_packed(coupling_->samples_, from.rank, [&](Unpacker& unpack) {
                unpack(kind)(number);
                check(number == from.received, code::data, "data::Coupling: rank ", from.rank, kind == Kind::End ? " has published " : " sends sample ", number, "; ",
                      from.received, " have arrived");
                if (kind == Kind::End) return;
                unpack(held.sample);
                held.bytes = unpack.bytes();
            });
            if (kind == Kind::End) {
                from.ended = true;
                say_credit(from, all_arrived);
                --tried;  // the others still have their turns
                if (std::all_of(producers_.begin(), producers_.end(), [](Producer const& p) { return p.ended; })) return false;
                continue;
            }
            ++from.received;
            from.held += held.bytes;
            window_.push_back(std::move(held));
            return true;
        }
        return false;
    }

    /// Few messages: at most four are on their way that the producer has not read, so that neither waits for the other.
    void give_credit(Producer& to, int64_t bytes) {
        to.held -= bytes;
        to.to_credit += bytes;
        if (!to.ended && to.to_credit >= coupling_->o_.max_bytes / 4) say_credit(to, std::exchange(to.to_credit, 0));
    }
    void say_credit(Producer& to, int64_t credit) { coupling_->credits_.send(detail::bytes_at(&credit, sizeof credit), to.rank); }

    Coupling* coupling_;
    Random random_;
    std::vector<Producer> producers_;
    std::vector<Held> window_;
    size_t turn_ = 0;
};

/// The samples of a coupling as a `ShardableStream`, whose part k of n is those of producers k, k + n, .... The coupling must outlive it.
template <class Sample, comm::communicator Comm>
class Coupling<Sample, Comm>::Stream {
public:
    static constexpr bool coupled = true;

    explicit Stream(Coupling& coupling) : coupling_(&coupling) {}

    /// Error E_DATA the second time.
    Reader open(int64_t k, int64_t n) {
        check(!std::exchange(opened_, true), code::data, "data::Coupling: the samples of a simulation can be read once; make one loop over the loader");
        return Reader(*coupling_, k, n);
    }

private:
    Coupling* coupling_;
    bool opened_ = false;
};

}  // namespace accelerate::data
