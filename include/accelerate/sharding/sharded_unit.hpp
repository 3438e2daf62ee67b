#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/core/reductions.hpp>
#include <accelerate/module/place_on.hpp>
#include <accelerate/sharding/layout.hpp>
#include <accelerate/sharding/ready_hook.hpp>
#include <algorithm>
#include <limits>
#include <vector>

namespace accelerate::sharding {

template <comm::communicator Comm>
class ShardedUnit;

/// What the sharded units of one prepared model share: who communicates for them, and in which order. Gathers and reductions are
/// jobs of one worker, submitted in the same order on every rank.
template <comm::communicator Comm>
struct ShardEngine {
    explicit ShardEngine(Comm const& communicator) : comm(communicator.duplicate()) {}

    Comm comm;
    std::vector<ShardedUnit<Comm>*> units;    ///< in the order of registration; the root first
    ShardedUnit<Comm>* leaving = nullptr;     ///< still gathered although its backward is over: it has frozen parameters
    bool measures = false;                    ///< this backward's gradients are complete, on a CPU, and their squares are added up as they are reduced
    std::vector<uint8_t> touched;             ///< parameters that a backward has reached, by their number in the model
    size_t reduced = 0;                       ///< units of this backward, from the last, whose reduction has been submitted
    int64_t gathers = 0, prefetched = 0;      ///< all-gathers so far, and how many of them were under way when they were needed
    typename Comm::worker worker;             // last: joins before what its jobs use is gone
};

/// One unit of a model whose parameters are spread over the ranks (ZeRO stage 3; Rajbhandari et al., SC 2020): between uses a
/// rank keeps its stretch of the unit's flat buffer and nothing else. The storage that the parameters are views of is emptied and
/// filled again in place, so that what autograd has saved stays valid.
///
/// While they are away the parameters share a storage that says so to whoever reads or writes them.
///
/// Made unplaced, where it is an ordinary module's worth of parameters; `place` cuts it, `bind` gives it an engine.
template <comm::communicator Comm>
class ShardedUnit {
public:
    ShardedUnit() = default;
    ShardedUnit(ShardedUnit const&) = delete;
    ShardedUnit& operator=(ShardedUnit const&) = delete;
    ~ShardedUnit() {
        for (auto& slot : slots_) ReadyHook<ShardedUnit>::remove(slot.parameter, this);
    }

    /// Takes the parameters and keeps this rank's stretch of them, on `device`. `fill(parameter, into, from, to)` is called for those of which
    /// it keeps some: it gives `into`, which has the parameter's shape, its values, at least its elements [from, to) in the order of memory.
    /// Error E_CONFIG when dtypes differ.
    template <class Fill>
    void place(std::string name, NamedParameters const& parameters, int64_t rank, int64_t size, at::Device device, Fill&& fill) {
        at::NoGradGuard no_grad;
        name_ = std::move(name);
        placed_ = true;
        if (parameters.empty()) return;
        auto const options = parameters.front().second.options().device(device).requires_grad(false);
        int64_t total = 0;
        auto const unit = std::max<int64_t>(1, slot_alignment / static_cast<int64_t>(options.dtype().itemsize()));
        for (auto const& [key, p] : parameters) {
            check(p.dtype() == options.dtype(), code::config, "Fsdp: unit \"", name_, "\" holds parameters of ", options.dtype().name(), " and of ", p.dtype().name(), " (", key,
                  "); hold them in units of their own");
            slots_.push_back({key, p, total, p.numel(), static_cast<int64_t>(slots_.size())});
            total += (p.numel() + unit - 1) / unit * unit;
        }
        chunk_ = (total + unit * size - 1) / (unit * size) * unit;
        shard_ = at::zeros({chunk_}, options);
        gradient_ = at::zeros({chunk_}, options);
        full_ = at::empty({chunk_ * size}, options);
        away_ = nothing(device, name_);
        begin_ = chunk_ * rank;
        for (auto& slot : slots_) {
            auto const view = view_like(full_, slot.begin, slot.parameter);
            auto const [from, to] = slot.within(begin_, begin_ + chunk_);
            if (from < to) {
                fill(slot.parameter, view, from - slot.begin, to - slot.begin);
                shard_.narrow(0, from - begin_, to - from).copy_(full_.narrow(0, from, to - from));
            }
            module::rebind(slot.parameter, view);
        }
        drop();
    }

    /// Moves what this rank keeps.
    void place_on(at::Device device) {
        if (!slots_.empty()) keep_as(shard_.options().device(device));
    }
    /// Keeps floating-point parameters in another dtype; their gradients are of it too.
    void cast(at::ScalarType dtype) {
        if (!slots_.empty() && at::isFloatingType(shard_.scalar_type())) keep_as(shard_.options().dtype(dtype));
    }

    struct Position {
        ShardedUnit *before = nullptr, *next = nullptr;  ///< in the order of registration
        bool root = false;                               ///< stays gathered from the beginning of a forward to the end of its backward
        bool leaf = true;                                ///< holds no other unit
    };
    /// `number(parameter)` is that of a parameter in the model.
    template <class Number>
    void bind(std::shared_ptr<ShardEngine<Comm>> engine, Position position, Number&& number) {
        engine_ = std::move(engine);
        position_ = position;
        for (auto& slot : slots_)
            if (slot.parameter.requires_grad()) ++trainable_, ReadyHook<ShardedUnit>::install(slot.parameter, this, 0, static_cast<size_t>(number(slot.parameter)));
    }
    /// Back to a module that nobody trains; its parameters stay where they are.
    void unbind() { engine_.reset(); }

    bool placed() const { return placed_; }
    bool bound() const { return engine_ != nullptr; }
    bool root() const { return position_.root; }
    ShardedUnit* next() const { return position_.next; }  ///< whose parameters a forward will probably need after this one's
    std::string const& name() const { return name_; }
    std::vector<Slot> const& slots() const { return slots_; }
    at::Tensor const& shard() const { return shard_; }        ///< this rank's stretch of the parameters, 1-D
    at::Tensor const& gradient() const { return gradient_; }  ///< and of their reduced gradients
    double squares() const { return squares_; }               ///< the sum of its squares, taken when it was reduced; NaN: not known
    int64_t begin() const { return begin_; }                  ///< where in the unit's flat buffer the stretch begins
    bool trains() const { return trainable_ > 0; }

    /// Starts to gather, unless the parameters are there or under way.
    void prefetch() {
        if (slots_.empty() || storage_ != Storage::Sharded) return;
        storage_ = Storage::Gathering;
        ++engine_->gathers;
        work_ = engine_->worker.submit([this] { gathered_ = engine_->comm.all_gather(shard_); });
    }

    /// Returns when the parameters are there.
    void acquire() {
        if (slots_.empty() || storage_ == Storage::Full) return;
        if (storage_ == Storage::Gathering) ++engine_->prefetched;
        prefetch();
        arrive();
        check_untouched();  // before anything is moved: an error leaves the unit as it was
        // The gathered memory becomes that of the parameters: no copy, and no new version that autograd would take for a change.
        auto* const from = gathered_.storage().unsafeGetStorageImpl();
        auto* const to = full_.storage().unsafeGetStorageImpl();
        auto const bytes = from->nbytes();
        to->set_data_ptr_noswap(from->set_data_ptr(at::DataPtr(nullptr, full_.device())));
        to->set_nbytes(bytes);
        gathered_ = at::Tensor();
        for (auto const& slot : slots_) lend(slot.parameter);
        storage_ = Storage::Full;
    }

    /// What parameters have for memory: while they are there, and while they are away. None where there are no parameters.
    std::vector<c10::StorageImpl const*> storages() const {
        if (slots_.empty()) return {};
        return {full_.storage().unsafeGetStorageImpl(), away_.unsafeGetStorageImpl()};
    }
    /// While the parameters are there: gives `t`, a parameter or what was made from one while they were away, their memory.
    void lend(at::Tensor const& t) const { set_storage(t, full_.storage()); }

    /// The parameters leave; the next `acquire` gathers them again. Throws what a gather that was under way has failed with.
    void release() {
        if (storage_ == Storage::Full) drop();
        if (storage_ == Storage::Gathering) arrive(), gathered_ = at::Tensor();
    }

    /// Before a part of this unit's backward runs: the parameters come back, and gradients get memory to be added in.
    void before_backward() {
        check(bound(), code::call_order, "backward through unit \"", name_, "\" after the model that was prepared is gone");
        if (auto* const other = std::exchange(engine_->leaving, nullptr); other != nullptr && other != this) other->release();
        acquire();
        if (position_.before != nullptr) position_.before->prefetch();
        expect_gradients();
        if (!trains()) leave();
    }

    /// Called by the hook of each trainable parameter when its gradient of this backward is complete.
    void ready(size_t, size_t number) {
        if (engine_ == nullptr) return;
        engine_->touched[number] = 1;
        if (--pending_ != 0) return;
        complete_ = true;
        if (trainable_ < static_cast<int64_t>(slots_.size())) leave();
        else if (!root()) release();
        submit_reductions(*engine_, false);
    }

    /// Submits the reductions that are due, from the last unit to the first: the same order on every rank, whatever each of them
    /// finished first. `all`: also of units that backward did not reach, whose gradient is zero.
    static void submit_reductions(ShardEngine<Comm>& engine, bool all) {
        for (; engine.reduced < engine.units.size(); ++engine.reduced) {
            auto& unit = *engine.units[engine.units.size() - 1 - engine.reduced];
            if (!unit.trains()) continue;
            if (!unit.complete_ && !all) return;
            unit.reduce();
        }
    }

    /// After a backward: the reduced gradient is there, and every parameter but the shard has left.
    void finish() {
        reduction_.wait();
        reduction_ = {};
        complete_ = false;
        release();
    }

private:
    enum class Storage { Sharded, Gathering, Full };

    /// Frozen parameters may still be needed by what the forward did before: until another unit's backward begins. (Freeing earlier
    /// crashes; a unit with frozen parameters must not run in parallel to another one.) What holds other units stays to the end.
    void leave() {
        if (!root() && position_.leaf) engine_->leaving = this;
    }

    /// Waits for what is gathered, which is nobody's yet.
    void arrive() {
        storage_ = Storage::Sharded;
        work_.wait();
    }

    void keep_as(at::TensorOptions const& options) {
        if (shard_.device() == options.device() && shard_.dtype() == options.dtype()) return;
        at::NoGradGuard no_grad;
        shard_ = shard_.to(options), gradient_ = gradient_.to(options);
        full_ = at::empty(full_.sizes(), options);
        away_ = nothing(full_.device(), name_);
        for (auto& slot : slots_) module::rebind(slot.parameter, view_like(full_, slot.begin, slot.parameter));
        drop();
    }

    void drop() {
        auto* const storage = full_.storage().unsafeGetStorageImpl();
        storage->set_data_ptr_noswap(at::DataPtr(nullptr, full_.device()));
        storage->set_nbytes(0);
        for (auto const& slot : slots_) set_storage(slot.parameter, away_);
        storage_ = Storage::Sharded;
    }

    void check_untouched() const {
        auto const ours = storages();
        for (auto const& slot : slots_)
            check(std::ranges::find(ours, slot.parameter.storage().unsafeGetStorageImpl()) != ours.end(), code::call_order, "unit \"", name_, "\": parameter ", slot.name,
                  " was given other memory since the model was prepared (set_data, module->to); change a model before prepare, or load values by accelerator.load_state");
    }

    static void set_storage(at::Tensor const& t, c10::Storage const& storage) {
        auto* const impl = t.unsafeGetTensorImpl();
        impl->set_allow_tensor_metadata_change(true);  // not so of what `detach` has made
        impl->set_storage_keep_dtype(storage);
    }
    /// No memory, and a sentence instead of a crash for who wants some.
    static c10::Storage nothing(at::Device device, std::string const& unit) {
        auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), 0, at::DataPtr(nullptr, device), nullptr, false);
        storage->release_data_and_set_meta_custom_data_ptr_error_msg_(
            concat(code::call_order, ": a parameter of ", unit.empty() ? "the root unit" : concat("unit \"", unit, "\""), " was read or written while it is spread over the ranks: it is whole in its unit's forward and backward only. accelerator.get_state_dict(model) gathers parameters"));
        return storage;
    }

    void expect_gradients() {
        if (unreduced_.defined() || !trains()) return;
        unreduced_ = at::zeros({full_.numel()}, shard_.options());
        pending_ = trainable_;
        for (auto& slot : slots_)
            if (slot.parameter.requires_grad()) slot.parameter.mutable_grad() = view_like(unreduced_, slot.begin, slot.parameter);
    }

    void reduce() {
        expect_gradients();
        adopt_strays();
        for (auto& slot : slots_) slot.parameter.mutable_grad() = at::Tensor();
        reduction_ = engine_->worker.submit([this, measures = engine_->measures, whole = std::exchange(unreduced_, at::Tensor())] {
            at::NoGradGuard no_grad;
            gradient_.add_(engine_->comm.reduce_scatter(whole, comm::Reduction::Mean));
            bool const known = measures && gradient_.scalar_type() == at::kFloat;
            squares_ = known ? accelerate::kernel::sum_of_squares(gradient_.const_data_ptr<float>(), gradient_.numel()) : std::numeric_limits<double>::quiet_NaN();
        });
    }

    /// A gradient that was put elsewhere (a backward with create_graph, `module->zero_grad()` in between) goes into its place.
    void adopt_strays() {
        at::NoGradGuard no_grad;
        for (auto& slot : slots_) {
            auto const& gradient = slot.parameter.grad();
            if (!slot.parameter.requires_grad() || !gradient.defined()) continue;
            auto const view = view_like(unreduced_, slot.begin, slot.parameter);
            if (gradient.const_data_ptr() != view.const_data_ptr()) view.copy_(gradient.detach());
        }
    }

    std::string name_;
    std::vector<Slot> slots_;
    at::Tensor shard_, gradient_, full_, gathered_, unreduced_;
    c10::Storage away_;  ///< of the parameters while they are
    double squares_ = std::numeric_limits<double>::quiet_NaN();
    int64_t chunk_ = 0, begin_ = 0, trainable_ = 0, pending_ = 0;
    bool placed_ = false, complete_ = false;
    Position position_;
    Storage storage_ = Storage::Sharded;
    std::shared_ptr<ShardEngine<Comm>> engine_;
    typename Comm::worker::Handle work_, reduction_;
};

}  // namespace accelerate::sharding
