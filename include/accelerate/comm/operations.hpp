#pragma once

#include <ATen/ops/empty.h>

#include <accelerate/comm/letters.hpp>
#include <accelerate/comm/reducer.hpp>
#include <accelerate/comm/refusal.hpp>
#include <accelerate/comm/split.hpp>
#include <accelerate/comm/worker.hpp>
#include <limits>
#include <numeric>

namespace accelerate::comm {

/// The operations of a communicator of CPU tensors, over a `Group`. `Derived` is the communicator's own type; it is constructible
/// from `std::shared_ptr<Group>`.
template <class Derived>
class Operations {
public:
    using buffer = Buffer;
    using worker = Worker;

    int64_t rank() const { return group_->who.rank; }
    int64_t size() const { return group_->who.size; }
    int64_t local_rank() const { return group_->who.local_rank; }
    int64_t local_size() const { return group_->who.local_size; }
    int64_t node() const { return group_->who.hosts[static_cast<size_t>(rank())]; }

    /// Returns when all ranks have come.
    void barrier() const {
        auto const call = named(Operation::Barrier);
        group_->operation(call, {}, [&] { group_->meet(); });
    }

    /// Agrees with the other ranks on a call that is carried out elsewhere, such as on a device: it is checked, recorded and waited
    /// for like any other. `refusal`: why this rank's own arguments cannot work.
    void announce(Call call, std::string_view refusal = {}) const {
        call.elsewhere = true;
        group_->operation(call, refusal, [&] { group_->meet(); });
    }

    /// The same of a call to which every rank may bring another count; gives the counts, in rank order.
    std::vector<int64_t> announce_ragged(Call call, std::string_view refusal = {}) const {
        call.elsewhere = true;
        std::vector<int64_t> counts;
        group_->operation(call, refusal, [&] {
            transfer::gather(*group_, nullptr, call.count, 0, -1, [&](std::vector<int64_t> const& all) {
                counts = all;
                return static_cast<void*>(nullptr);
            });
        });
        return counts;
    }

    /// What ranks must tell each other before a call: `mine` of every rank (a plain value), in rank order. To them it is that call;
    /// it is recorded only when it fails. The call itself must follow at once.
    template <class T>
    std::vector<T> agree_before(Call call, T const& mine) const {
        static_assert(std::is_trivially_copyable_v<T>);
        call.elsewhere = true;
        std::vector<T> all(static_cast<size_t>(size()));
        group_->operation(
            call, {}, [&] { transfer::all_gather(*group_, &mine, reinterpret_cast<std::byte*>(all.data()), sizeof(T)); }, Group::Part::Beginning);
        return all;
    }

    /// In place, any layout, any dtype for which the reduction is defined.
    void all_reduce(at::Tensor const& t, Reduction reduction = Reduction::Sum) const {
        auto call = described(Operation::AllReduce, t);
        call.reduction = reduction;
        auto const refusal = refuse(t, {.reason = why_not(reduction, call.dtype), .written = true});
        if (size() == 1 && refusal.empty()) return;
        auto const flat = dense(t);
        group_->operation(call, refusal, [&] { reducer::all_reduce(*group_, what(call), flat.data(), call.count); });
        flat.write_back();
    }

    /// The root's values to all, in place. Same shape and dtype everywhere.
    void broadcast(at::Tensor const& t, int64_t root) const {
        auto call = described(Operation::Broadcast, t, root);
        auto const refusal = refuse(t, {.reason = refuse_root(root), .written = true});
        if (size() == 1 && refusal.empty()) return;
        auto const flat = dense(t);
        group_->operation(call, refusal, [&] { transfer::broadcast(*group_, flat.data(), flat.bytes(), root); });
        if (rank() != root) flat.write_back();
    }

    /// Every rank's tensor, side by side along dimension 0, on every rank. Dimension 0 may differ between ranks; a scalar counts
    /// as one element.
    at::Tensor all_gather(at::Tensor const& t) const { return gathered(Operation::AllGather, t, -1, {}); }

    /// The same on the root; an undefined tensor elsewhere.
    at::Tensor gather(at::Tensor const& t, int64_t root) const { return gathered(Operation::Gather, t, root, refuse_root(root)); }

    /// Sums (or otherwise reduces) and gives each rank its share of dimension 0, which the number of ranks must divide.
    at::Tensor reduce_scatter(at::Tensor const& t, Reduction reduction = Reduction::Sum) const {
        auto call = described(Operation::ReduceScatter, t);
        call.reduction = reduction;
        auto const refusal = refuse(t, {.reason = why_not(reduction, call.dtype), .divides = true});
        auto const flat = dense(t);
        auto const out = refusal.empty() ? at::empty(share_of(t, size()), t.scalar_type()) : at::Tensor();
        group_->operation(call, refusal, [&] { reducer::reduce_scatter(*group_, what(call), flat.data(), out.data_ptr(), call.count / size()); });
        return out;
    }

    /// Gives each rank its share of dimension 0 of the root's tensor, which the number of ranks must divide. What other ranks pass
    /// does not count and may be undefined.
    at::Tensor scatter(at::Tensor const& t, int64_t root) const {
        auto const mine = rank() == root;
        auto call = mine ? described(Operation::Scatter, t, root) : named(Operation::Scatter, root);
        auto const refusal = mine ? refuse(t, {.divides = true}) : refuse_root(root);
        auto const flat = dense(mine ? t : at::Tensor());
        at::Tensor out;
        group_->operation(call, refusal, [&] {
            group_->meet();
            Shape shape;
            if (mine) shape.set(t.scalar_type(), share_of(t, size()));
            transfer::broadcast(*group_, &shape, sizeof shape, root, false);
            out = at::empty({shape.sizes.data(), static_cast<size_t>(shape.dims)}, shape.dtype);
            transfer::scatter(*group_, flat.data(), out.data_ptr(), static_cast<int64_t>(out.nbytes()), root);
        });
        return out;
    }

    /// Share r of dimension 0 goes to rank r; what came, in rank order. The number of ranks must divide dimension 0.
    at::Tensor all_to_all(at::Tensor const& t) const {
        auto call = described(Operation::AllToAll, t);
        auto const refusal = refuse(t, {.divides = true});
        auto const flat = dense(t);
        auto const out = refusal.empty() ? at::empty(t.sizes(), t.scalar_type()) : at::Tensor();
        group_->operation(call, refusal, [&] { transfer::all_to_all(*group_, flat.data(), out.data_ptr(), flat.bytes() / size()); });
        return out;
    }

    /// Messages between two ranks are received in the order sent, for each tag. `send` may return before they are received.
    void send(at::Tensor const& t, int64_t to, int64_t tag = 0) const {
        auto const call = described(Operation::Send, t, to);
        check_letter(call, refuse(t, {.reason = refuse_root(to)}));
        auto const flat = dense(t);
        letters::send(*group_, call, tag, flat.data(), flat.bytes());
    }

    /// Fills `t`. E_COLLECTIVE_MISMATCH when what was sent has another dtype or shape.
    void recv(at::Tensor const& t, int64_t from, int64_t tag = 0) const {
        auto const call = described(Operation::Recv, t, from);
        check_letter(call, refuse(t, {.reason = refuse_root(from), .written = true}));
        auto const message = letters::receive(*group_, call, tag);
        auto const& sent = message.envelope.call;
        if (sent.dtype != call.dtype || sent.count != call.count || sent.dims != call.dims || sent.shape != call.shape) {
            group_->control.family().recorder.dump("mismatch");
            throw Error(code::collective_mismatch, concat(describe(call), " on rank ", rank(), ", tag ", tag, ": rank ", from, " called ", describe(sent)));
        }
        auto const flat = dense(t);
        if (flat.bytes() > 0) std::memcpy(flat.data(), message.payload.data(), message.payload.size());
        flat.write_back();
    }

    void send_bytes(std::string_view bytes, int64_t to, int64_t tag = 0) const {
        auto call = named(Operation::Send, to);
        call.count = static_cast<int64_t>(bytes.size());
        check_letter(call, refuse_root(to));
        letters::send(*group_, call, tag, bytes.data(), call.count);
    }
    std::string recv_bytes(int64_t from, int64_t tag = 0) const {
        auto const call = named(Operation::Recv, from);
        check_letter(call, refuse_root(from));
        auto const message = letters::receive(*group_, call, tag);
        return {reinterpret_cast<char const*>(message.payload.data()), message.payload.size()};
    }

    /// Every rank's bytes, in rank order, on every rank.
    std::vector<std::string> all_gather_bytes(std::string_view mine) const { return exchange(*group_, mine, Operation::AllGatherBytes); }
    /// The same on the root; empty elsewhere.
    std::vector<std::string> gather_bytes(std::string_view mine, int64_t root) const { return exchange(*group_, mine, Operation::GatherBytes, root, refuse_root(root)); }
    /// The root's bytes to all.
    void broadcast_bytes(std::string& bytes, int64_t root) const {
        auto call = named(Operation::BroadcastBytes, root);
        auto length = call.count = rank() == root ? static_cast<int64_t>(bytes.size()) : 0;
        group_->operation(call, refuse_root(root), [&] {
            transfer::broadcast(*group_, &length, sizeof length, root);
            bytes.resize(static_cast<size_t>(length));
            transfer::broadcast(*group_, bytes.data(), length, root, false);
        });
    }

    /// Memory in which gradients are reduced in place. Collective; the same arguments everywhere. E_IO never: where no memory can
    /// be shared the buffer is ordinary memory.
    buffer allocate(int64_t numel, at::ScalarType dtype) const { return comm::allocate(*group_, numel, dtype); }

    /// Reduces elements [begin, end) of the buffer in place. With `gather` every rank then has all of them; without, slice r stays
    /// with rank r (`buffer::slice`, `buffer.reduced(r)`): half the bytes, and `release` must follow before anyone writes again.
    /// `squares`, where given, becomes the sum of the squares of slice `rank()` of the result, which costs less than to read it later; NaN
    /// where that is not known: in other dtypes than fp32, across nodes, without shared memory.
    void all_reduce(buffer const& b, int64_t begin, int64_t end, Reduction reduction, bool gather = true, double* squares = nullptr) const {
        if (squares != nullptr) *squares = std::numeric_limits<double>::quiet_NaN();
        auto call = named(Operation::ReduceBuffer, b.number());
        call.reduction = reduction, call.dtype = b.tensor().scalar_type(), call.flag = gather;
        call.count = end - begin, call.dims = 2, call.shape[0] = begin, call.shape[1] = end;
        std::string_view refusal = why_not(reduction, call.dtype);
        if (b.parts() == 0) refusal = "the buffer was not allocated";
        else if (begin < 0 || begin > end || end > b.numel()) refusal = "the range does not lie in the buffer";
        group_->operation(call, refusal, [&] {
            if (b.parts() == group_->members()) {
                auto const sum = reducer::buffer(*group_, what(call), b, begin, end, gather, squares != nullptr);
                if (squares != nullptr) *squares = sum;
                return;
            }
            reducer::all_reduce(*group_, what(call), b.part(0) + begin * what(call).unit(), call.count);
        });
    }

    /// This rank has read what it needs of its peers' slices; returns when all have, so that gradients may be written again.
    void release(buffer const& b) const {
        auto const call = named(Operation::Release, b.number());
        group_->operation(call, {}, [&] { group_->meet(); });
    }

    /// A communicator of the ranks with the same color, in the order of (key, rank). Collective.
    Derived split(int64_t color, int64_t key) const { return Derived(comm::split(*group_, color, key)); }
    /// The same ranks, for another thread or another part of a program. Collective.
    Derived duplicate() const { return split(0, rank()); }

    /// How long this rank waits for another one in this communicator, and in those split from it later; 600 s unless set.
    void set_deadline(std::chrono::milliseconds deadline) const {
        check(deadline.count() > 0, code::config, "set_deadline: ", deadline.count(), " ms; there must be some time");
        group_->control.deadline = std::min<std::chrono::milliseconds>(deadline, std::chrono::hours(24 * 365));  // so that sums do not overflow
    }

    /// Tells ranks that wait for this one, now or later, that it will not come: those of this node in any communicator of this
    /// family, those of other nodes in this communicator.
    void leave(std::string_view reason) const noexcept { group_->leave(reason); }

    /// In which order `all_reduce` adds: it decides the last bits of sums.
    std::string_view summation() const { return group_->bridge ? "rank order on each node, MPI's between nodes" : "rank order"; }

    /// The flight recorder of this rank.
    Recorder& recorder() const { return group_->control.family().recorder; }

protected:
    explicit Operations(std::shared_ptr<Group> group) : group_(std::move(group)) {}
    std::shared_ptr<Group> const& group() const { return group_; }

private:
    struct Shape {
        at::ScalarType dtype = at::kByte;
        int64_t dims = 0;
        std::array<int64_t, max_tensor_dims> sizes{};
        void set(at::ScalarType type, std::vector<int64_t> const& shape) {
            dtype = type, dims = static_cast<int64_t>(shape.size());
            std::copy(shape.begin(), shape.end(), sizes.begin());
        }
    };

    /// The tensor's elements side by side: its own memory where they are, else a copy that goes back.
    class Dense {
    public:
        explicit Dense(at::Tensor const& t) {
            if (!t.defined() || !t.device().is_cpu() || t.layout() != at::kStrided) return;
            bytes_ = static_cast<int64_t>(t.nbytes());
            if (t.is_contiguous() && !t.is_conj() && !t.is_neg()) {
                data_ = t.data_ptr();
                return;
            }
            original_ = t.detach();
            copy_ = original_.resolve_conj().resolve_neg().contiguous();
            data_ = copy_.data_ptr();
        }
        void* data() const { return data_; }
        int64_t bytes() const { return bytes_; }
        void write_back() const {
            if (copy_.defined()) original_.copy_(copy_);
        }

    private:
        at::Tensor original_, copy_;
        void* data_ = nullptr;
        int64_t bytes_ = 0;
    };
    static Dense dense(at::Tensor const& t) { return Dense(t); }

    std::string refuse(at::Tensor const& t, Wanted const& wanted = {}) const { return refusal(t, at::kCPU, size(), wanted); }
    std::string refuse_root(int64_t root) const { return refusal_of_rank(root, size()); }
    void check_letter(Call const& call, std::string const& refusal) const {
        check(refusal.empty(), code::config, describe(call), " on rank ", rank(), ": ", refusal);
    }

    reducer::What what(Call const& c) const { return reducer::what(*group_, c.dtype, c.reduction); }

    at::Tensor gathered(Operation o, at::Tensor const& t, int64_t root, std::string const& no_root) const {
        auto const rows = t.defined() && t.dim() == 0 ? t.detach().reshape({1}) : t;
        auto call = described(o, rows, root);
        auto const refusal = refuse(rows, {.reason = no_root});
        auto const flat = dense(rows);
        at::Tensor out;
        int64_t row = 0;
        if (refusal.empty()) {
            row = static_cast<int64_t>(rows.element_size());
            for (int64_t d = 1; d < rows.dim(); ++d) row *= rows.size(d);
            call.count = rows.size(0);
        }
        group_->operation(call, refusal, [&] {
            transfer::gather(*group_, flat.data(), call.count, row, root, [&](std::vector<int64_t> const& counts) {
                auto sizes = rows.sizes().vec();
                sizes[0] = std::accumulate(counts.begin(), counts.end(), int64_t{0});
                out = at::empty(sizes, rows.scalar_type());
                return out.data_ptr();
            });
        });
        return out;
    }

    std::shared_ptr<Group> group_;
};

}  // namespace accelerate::comm
