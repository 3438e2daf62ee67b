#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/scalar_tensor.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/module/placement.hpp>
#include <accelerate/sharding/flat_model.hpp>
#include <accelerate/sharding/ready_hook.hpp>
#include <accelerate/sharding/replicate.hpp>
#include <accelerate/sharding/unused.hpp>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>

namespace accelerate {

/// Whether gradients are reduced while backward still runs. `Auto` overlaps where the node has a core to spare: where its ranks
/// fill all cores, reducing is work for the same core and overlap buys nothing.
enum class Overlap { Auto, On, Off };

/// Options of `sharding::Ddp`; names and defaults are those of PyTorch's DistributedDataParallel where it has them.
struct ddp {
    int64_t bucket_cap_mb = 25;
    int64_t first_bucket_kb = 1024;        ///< the first bucket is small, so that the first reduction starts early
    bool find_unused_parameters = false;   ///< walk the graph before each reducing backward; what it does not reach counts as zero, and on no rank, as without a gradient
    bool static_graph = false;             ///< what the first backward did not reach is never reached: found once, no walk
    bool broadcast_buffers = true;         ///< rank 0's buffers go to all before each training forward that ends in a reduction
    /// After backward every rank sees every reduced gradient in `p.grad()`. False skips that copy: each slice is reduced where one
    /// rank owns it and the optimizer reads it there; `p.grad()` then shows reduced values in this rank's slices only. It takes
    /// memory that all ranks see: across nodes, and on devices, gradients are gathered all the same.
    bool gather_gradients = true;
    Overlap overlap = Overlap::Auto;
};

namespace sharding {

/// When one bucket was full, and when its reduction began and ended; seconds since backward began.
struct BucketTimes {
    int64_t bytes = 0;
    double ready = 0, begin = 0, end = 0;
};

/// A model replicated on every rank of a communicator; gradients are averaged by buckets, exactly once for each window.
///
/// Parameters are checked to be the same list on every rank and broadcast from rank 0. Gradients live in `Comm::buffer`s from the
/// first step on. The order of the buckets is learned from the first backward (Li et al., "PyTorch Distributed", VLDB 2020).
template <comm::communicator Comm, ddp O>
class DdpModel : public FlatModel {
public:
    DdpModel(ModelParts parts, Comm const& communicator)
        : FlatModel(std::move(parts.parameters)), buffers_(std::move(parts.buffers)), comm_(communicator.duplicate()), alone_(comm_.size() == 1), overlap_(overlaps()) {
        if (!alone_) check_replicas(parameters_, buffers_, comm_);
        auto order = registration_order();
        std::reverse(order.begin(), order.end());
        arrange(order);
        if (alone_) return;
        for (auto& flat : flats_) comm_.broadcast(flat.parameters, 0);
        for (auto& [name, b] : buffers_) broadcast_buffer(b);
        if (overlap_) worker_.emplace();
        install_hooks();
    }
    ~DdpModel() { remove_hooks(); }

    std::span<Piece const> owned() const { return sliced() ? std::span<Piece const>(owned_) : std::span<Piece const>(pieces_); }
    void settle() { release(); }
    bool clears_in_step() const { return !sliced(); }  // other ranks read a slice where it was reduced

    void before_forward() {
        if (alone_ || !O.broadcast_buffers || !window_.closed() || !at::GradMode::is_enabled()) return;
        for (auto& [name, b] : buffers_) broadcast_buffer(b);
    }

    void before_backward(at::Tensor const& loss) {
        if (sliced() && stage_ == Stage::Stepped) begin_anew();  // a step clears no slices, as it does what is not sliced
        if (sliced() && stage_ == Stage::Reduced) take_back();
        if (alone_ || !window_.closed()) return;
        started_ = Clock::now();
        times_.assign(buckets_.size(), {});
        pending_.clear();
        for (auto const& bucket : buckets_) pending_.push_back(bucket.slots);
        ready_order_.clear();
        next_ = 0;
        squares_ = 0;
        forget_squares();
        armed_ = true;
        own_loss_ = loss.defined();
        if (!own_loss_) mark_absent([](Slot const&) { return true; });
        else if constexpr (O.static_graph) mark_absent([&](Slot const& slot) { return never_reached_.contains(slot.registration); });
        else if constexpr (O.find_unused_parameters) {
            ReachableLeaves const reachable(loss);
            mark_absent([&](Slot const& slot) { return !reachable.contains(slot.parameter); });
        }
    }

    void after_backward() {
        if (alone_ || !armed_) {
            repair_all();
            if (window_.closed()) stage_ = Stage::Reduced;
            return;
        }
        armed_ = false;
        account_for_unreached();
        if (!overlap_)
            for (; next_ < buckets_.size(); ++next_) reduce(next_);
        for (auto& handle : handles_) handle.wait();
        handles_.clear();
        if (may_miss && !(O.static_graph && agreed_)) squares_ = agree(squares_, [&](at::Tensor const& t) { comm_.all_reduce(t, comm::Reduction::Sum); }), agreed_ = own_loss_;
        else if (shared_) squares_ = sum_over_ranks(squares_);
        if (overlap_ && !learned_ && own_loss_) learn_order();
        if (shared_) set_squares(squares_);
        stage_ = Stage::Reduced;
    }

    void after_step() { release(); }

    /// Before the reduction those that this rank's losses have not reached; then those that no rank's have.
    std::vector<Slot const*> unreached() const {
        if (alone_ || stage_ == Stage::Accumulating) return untouched();
        if constexpr (may_miss) return reached_by_none();
        else return {};
    }
    void restore_unreached(std::set<std::string> const& names) {
        FlatModel::restore_unreached(names);
        agreed_ = false;
    }

    /// Called by the hook of each parameter when its gradient of this backward is complete.
    void ready(size_t flat, size_t slot) {
        if (armed_) mark_ready(flat, slot);
    }

    /// False where a rank may write only the slices that it reduced; norms must then be folded over the ranks.
    static constexpr bool owns_everything = O.gather_gradients;
    void fold(at::Tensor const& partial, comm::Reduction reduction) const {
        if (sliced()) comm_.all_reduce(partial, reduction);
    }
    double sum_over_ranks(double value) const {
        auto t = at::scalar_tensor(value, at::kDouble);
        if (!alone_) comm_.all_reduce(t, comm::Reduction::Sum);
        return t.template item<double>();
    }
    int64_t replicas() const { return comm_.size(); }

    /// What happened in the last reducing backward, bucket by bucket.
    std::vector<BucketTimes> const& timeline() const { return times_; }
    bool overlapping() const { return overlap_; }

private:
    using Clock = std::chrono::steady_clock;
    static constexpr bool may_miss = O.find_unused_parameters || O.static_graph;

    /// Slices stay with the ranks that reduced them, which takes memory that all ranks see; without it everything is gathered.
    bool sliced() const {
        if constexpr (O.gather_gradients) return false;
        else return !alone_ && shared_;
    }

    bool overlaps() const {
        if (alone_ || O.overlap == Overlap::Off) return false;
        if (O.overlap == Overlap::On) return true;
        return Comm::worker::pays(comm_.local_size() * at::get_num_threads());
    }

    /// Lays everything out in `order` and gives the gradients memory in which the ranks of a node can reduce.
    void arrange(std::vector<int64_t> const& order) {
        constexpr auto whole = std::numeric_limits<int64_t>::max();
        auto const plan = plan_layout(parameters_, order, overlap_ ? O.first_bucket_kb << 10 : whole, overlap_ ? O.bucket_cap_mb << 20 : whole);
        std::vector<typename Comm::buffer> made;
        adopt(plan, [&](int64_t, int64_t numel, at::TensorOptions const& options) {
            made.push_back(comm_.allocate(numel, c10::typeMetaToScalarType(options.dtype())));
            return made.back().tensor();
        });
        memory_ = std::move(made);
        shared_ = std::all_of(memory_.begin(), memory_.end(), [](auto const& memory) { return memory.shared(); });
        pieces_.clear();
        owned_.clear();
        if (!sliced()) {
            for (size_t f = 0; f < flats_.size(); ++f) pieces_.push_back({static_cast<int64_t>(f), 0, flats_[f].gradients.numel(), flats_[f].gradients});
            owned_ = pieces_;
            return;
        }
        for (auto const& bucket : buckets_)
            for (int64_t r = 0; r < comm_.size(); ++r) {
                auto const [lo, hi] = Comm::buffer::slice(bucket.begin, bucket.end, r, comm_.size());
                if (lo == hi) continue;
                auto const source = memory_[static_cast<size_t>(bucket.flat)].reduced(r);
                pieces_.push_back({bucket.flat, lo, hi, source.narrow(0, lo, hi - lo)});
                if (r == comm_.rank()) owned_.push_back(pieces_.back());
            }
    }

    void install_hooks() {
        slot_bucket_.assign(flats_.size(), {});
        for (size_t f = 0; f < flats_.size(); ++f) {
            slot_bucket_[f].resize(flats_[f].slots.size());
            for (size_t s = 0; s < flats_[f].slots.size(); ++s) ReadyHook<DdpModel>::install(flats_[f].slots[s].parameter, this, f, s);
        }
        for (size_t b = 0; b < buckets_.size(); ++b)
            for (int64_t s = 0; s < buckets_[b].slots; ++s)
                slot_bucket_[static_cast<size_t>(buckets_[b].flat)][static_cast<size_t>(buckets_[b].first_slot + s)] = b;
    }
    void remove_hooks() {
        for (auto& flat : flats_)
            for (auto& slot : flat.slots) ReadyHook<DdpModel>::remove(slot.parameter, this);
    }

    void mark_ready(size_t flat, size_t slot) {
        if (!aliased(flat, slot)) repair(flat, slot);
        auto const bucket = slot_bucket_[flat][slot];
        ready_order_.push_back(flats_[flat].slots[slot].registration);
        if (--pending_[bucket] != 0) return;
        times_[bucket].ready = since_start();
        if (!overlap_) return;
        // Every rank must reduce in the same order, whatever order its buckets become full in.
        for (; next_ < buckets_.size() && pending_[next_] <= 0; ++next_) handles_.push_back(worker_->submit([this, b = next_] { reduce(b); }));
    }

    template <class Absent>
    void mark_absent(Absent&& absent) {
        for (size_t f = 0; f < flats_.size(); ++f)
            for (size_t s = 0; s < flats_[f].slots.size(); ++s)
                if (absent(flats_[f].slots[s])) mark_ready(f, s);
    }

    void reduce(size_t b) {
        auto const& bucket = buckets_[b];
        auto& memory = memory_[static_cast<size_t>(bucket.flat)];
        times_[b].bytes = (bucket.end - bucket.begin) * memory.tensor().element_size();
        times_[b].begin = since_start();
        // The first reduction is always gathered: learning the order afterwards moves gradients about.
        bool const gather = !sliced() || (overlap_ && !learned_);
        double squares = std::numeric_limits<double>::quiet_NaN();
        if constexpr (requires { comm_.all_reduce(memory, bucket.begin, bucket.end, comm::Reduction::Mean, gather, &squares); })
            comm_.all_reduce(memory, bucket.begin, bucket.end, comm::Reduction::Mean, gather, &squares);
        else comm_.all_reduce(memory, bucket.begin, bucket.end, comm::Reduction::Mean, gather);
        squares_ += squares;
        times_[b].end = since_start();
    }

    /// Parameters that this backward did not reach: remembered (static graph), or an error that names them.
    void account_for_unreached() {
        if (std::all_of(pending_.begin(), pending_.end(), [](int64_t n) { return n <= 0; })) return;
        std::vector<bool> reached(parameters_.size());
        for (auto i : ready_order_) reached[static_cast<size_t>(i)] = true;
        if constexpr (O.static_graph) {
            if (never_reached_.empty()) {
                for (size_t i = 0; i < reached.size(); ++i)
                    if (!reached[i]) never_reached_.insert(static_cast<int64_t>(i));
                mark_absent([&](Slot const& slot) { return never_reached_.contains(slot.registration); });
                return;
            }
        }
        std::string names;
        int64_t count = 0;
        for (size_t i = 0; i < reached.size(); ++i)
            if (!reached[i] && ++count <= 10) names += (names.empty() ? "" : ", ") + parameters_[i].first;
        for (auto& handle : handles_) handle.wait();
        handles_.clear();
        auto const message = concat("accelerator.backward on rank ", comm_.rank(), ": no gradient reached ", count, " of ", reached.size(), " trainable parameters: ", names,
                                    count > 10 ? ", ..." : "", "; use sharding::Ddp<acc::ddp{.find_unused_parameters = true}> or do not train them");
        comm_.leave(message);
        throw Error(code::unused_parameters, message);
    }

    void learn_order() {
        learned_ = true;
        std::string order(reinterpret_cast<char const*>(ready_order_.data()), ready_order_.size() * sizeof(int64_t));
        comm_.broadcast_bytes(order, 0);
        std::vector<int64_t> agreed(order.size() / sizeof(int64_t));
        std::memcpy(agreed.data(), order.data(), order.size());
        auto const complete = agreed.size() == parameters_.size();
        if (!complete || same_buckets(agreed)) {
            release();
            return;
        }
        remove_hooks();
        arrange(agreed);
        install_hooks();
    }
    bool same_buckets(std::vector<int64_t> const& order) const {
        size_t position = 0;
        for (auto const& bucket : buckets_) {
            auto const& slots = flats_[static_cast<size_t>(bucket.flat)].slots;
            std::unordered_set<int64_t> members;
            for (int64_t s = 0; s < bucket.slots; ++s) members.insert(slots[static_cast<size_t>(bucket.first_slot + s)].registration);
            for (int64_t s = 0; s < bucket.slots; ++s)
                if (!members.contains(order[position++])) return false;
        }
        return true;
    }

    /// Makes of slices that have been reduced what another backward can add to, before all are reduced once more: their sums, each on its
    /// own rank alone.
    void take_back() {
        release();
        at::NoGradGuard const no_grad;
        for (size_t f = 0; f < flats_.size(); ++f) {
            auto& gradients = flats_[f].gradients;
            int64_t end = 0;  // of what has been seen to
            for (auto const& piece : owned_) {
                if (piece.flat != static_cast<int64_t>(f)) continue;
                gradients.narrow(0, end, piece.begin - end).zero_();
                gradients.narrow(0, piece.begin, piece.end - piece.begin).mul_(comm_.size());
                end = piece.end;
            }
            gradients.narrow(0, end, gradients.numel() - end).zero_();
        }
        stage_ = Stage::Accumulating;
    }

    void broadcast_buffer(at::Tensor& buffer) {
        at::NoGradGuard no_grad;
        comm_.broadcast(buffer, 0);
    }

    /// Where slices stay with their owners, nobody may write gradients before all have read them.
    void release() {
        if (sliced())
            for (auto& memory : memory_) comm_.release(memory);
    }

    double since_start() const { return std::chrono::duration<double>(Clock::now() - started_).count(); }

    NamedParameters buffers_;
    Comm comm_;
    bool alone_, overlap_, shared_ = false;
    bool armed_ = false, own_loss_ = true, learned_ = false, agreed_ = false;
    std::vector<typename Comm::buffer> memory_;
    std::vector<Piece> owned_;
    std::vector<std::vector<size_t>> slot_bucket_;
    std::vector<int64_t> pending_, ready_order_;
    std::unordered_set<int64_t> never_reached_;
    size_t next_ = 0;
    double squares_ = 0;               // of the slices that this rank has reduced in this backward; NaN: unknown
    std::vector<BucketTimes> times_;
    Clock::time_point started_;
    std::vector<typename Comm::worker::Handle> handles_;
    std::optional<typename Comm::worker> worker_;  // last: joins before what its jobs use is gone
};

/// Data parallel: parameters and optimizer state on every rank, gradients averaged in buckets. Needs 1x the model's memory on
/// every rank and moves each gradient once for each optimizer step, whatever the accumulation.
template <ddp O = ddp{}>
struct Ddp {
    static constexpr char const* name = "Ddp";
    static constexpr ddp options = O;
    template <class Device>
    using placement = place::Resident;
    template <class Device>
    using model = DdpModel<typename Device::communicator, O>;
};

}  // namespace sharding
}  // namespace accelerate
