#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/inline_worker.hpp>

namespace accelerate::comm {

/// Gradients on a device, and the memory of the host in which they are reduced (none where the device does that itself).
template <reducible_buffer Host>
class StagedBuffer {
public:
    StagedBuffer() = default;
    StagedBuffer(at::Tensor tensor, Host host) : tensor_(std::move(tensor)), host_(std::move(host)) {}

    at::Tensor const& tensor() const { return tensor_; }
    int64_t numel() const { return tensor_.defined() ? tensor_.numel() : 0; }
    /// Every slice comes back to the device of every rank, whether asked for or not.
    at::Tensor const& reduced(int64_t /*rank*/) const { return tensor_; }
    bool shared() const { return false; }
    static std::pair<int64_t, int64_t> slice(int64_t begin, int64_t end, int64_t rank, int64_t size) { return Host::slice(begin, end, rank, size); }
    Host const& host() const { return host_; }

private:
    at::Tensor tensor_;
    Host host_;
};

/// A communicator for the tensors of a device that has none of its own: they travel through memory of the host (pinned where the
/// device can read that), where `Base` works on them. Tensors of the host are left to `Base`. Costs two copies, and the calling
/// thread waits for the device; on the device, results stand in the order of the calling thread's current stream.
template <communicator Base, at::DeviceType Type>
class Staged {
public:
    using buffer = StagedBuffer<typename Base::buffer>;
    using worker = InlineWorker;

    explicit Staged(Base base) : base_(std::move(base)) {}
    static Staged world() { return Staged(Base::world()); }

    int64_t rank() const { return base_.rank(); }
    int64_t size() const { return base_.size(); }
    int64_t local_rank() const { return base_.local_rank(); }
    int64_t local_size() const { return base_.local_size(); }
    int64_t node() const { return base_.node(); }
    void barrier() const { base_.barrier(); }

    void all_reduce(at::Tensor const& t, Reduction reduction = Reduction::Sum) const {
        in_place(t, true, [&](at::Tensor const& h) { base_.all_reduce(h, reduction); });
    }
    void broadcast(at::Tensor const& t, int64_t root) const {
        in_place(t, rank() != root, [&](at::Tensor const& h) { base_.broadcast(h, root); });
    }
    at::Tensor all_gather(at::Tensor const& t) const { return back(t, base_.all_gather(host(t))); }
    at::Tensor gather(at::Tensor const& t, int64_t root) const { return back(t, base_.gather(host(t), root)); }
    at::Tensor reduce_scatter(at::Tensor const& t, Reduction reduction = Reduction::Sum) const { return back(t, base_.reduce_scatter(host(t), reduction)); }
    at::Tensor all_to_all(at::Tensor const& t) const { return back(t, base_.all_to_all(host(t))); }

    /// On the device, except on ranks that pass a tensor of the host.
    at::Tensor scatter(at::Tensor const& t, int64_t root) const {
        auto const out = base_.scatter(host(t), root);
        return t.defined() && !staged(t) ? out : out.to(here());
    }

    void send(at::Tensor const& t, int64_t to, int64_t tag = 0) const { base_.send(host(t), to, tag); }
    void recv(at::Tensor const& t, int64_t from, int64_t tag = 0) const {
        in_place(t, true, [&](at::Tensor const& h) { base_.recv(h, from, tag); });
    }
    void send_bytes(std::string_view bytes, int64_t to, int64_t tag = 0) const { base_.send_bytes(bytes, to, tag); }
    std::string recv_bytes(int64_t from, int64_t tag = 0) const { return base_.recv_bytes(from, tag); }

    std::vector<std::string> all_gather_bytes(std::string_view mine) const { return base_.all_gather_bytes(mine); }
    std::vector<std::string> gather_bytes(std::string_view mine, int64_t root) const { return base_.gather_bytes(mine, root); }
    void broadcast_bytes(std::string& bytes, int64_t root) const { base_.broadcast_bytes(bytes, root); }

    /// Elements on the device, zero at first, and as much memory of the host.
    buffer allocate(int64_t numel, at::ScalarType dtype) const {
        auto memory = base_.allocate(numel, dtype);
        return {at::zeros({numel}, at::TensorOptions(dtype).device(here())), std::move(memory)};
    }
    void all_reduce(buffer const& b, int64_t begin, int64_t end, Reduction reduction, bool gather = true) const {
        auto const inside = b.tensor().defined() && begin >= 0 && begin <= end && end <= b.numel();
        auto const part = [&](at::Tensor const& t, int64_t from, int64_t to) { return t.narrow(0, from, to - from); };
        if (inside) part(b.host().tensor(), begin, end).copy_(part(b.tensor(), begin, end));
        base_.all_reduce(b.host(), begin, end, reduction, gather);
        for (int64_t r = 0; r < size(); ++r) {
            auto const [lo, hi] = gather ? std::pair(r == 0 ? begin : end, end) : buffer::slice(begin, end, r, size());
            if (lo < hi) part(b.tensor(), lo, hi).copy_(part(gather ? b.host().tensor() : b.host().reduced(r), lo, hi));
        }
    }
    void release(buffer const& b) const { base_.release(b.host()); }

    Staged split(int64_t color, int64_t key) const { return Staged(base_.split(color, key)); }
    Staged duplicate() const { return Staged(base_.duplicate()); }
    void set_deadline(std::chrono::milliseconds deadline) const { base_.set_deadline(deadline); }
    void leave(std::string_view reason) const noexcept { base_.leave(reason); }
    std::string_view summation() const
        requires requires(Base const& b) { b.summation(); }
    {
        return base_.summation();
    }
    decltype(auto) recorder() const { return base_.recorder(); }

    Base const& base() const { return base_; }

protected:
    /// The device of the calling thread.
    static at::Device here() { return c10::impl::VirtualGuardImpl(Type).getDevice(); }

private:
    static bool staged(at::Tensor const& t) { return t.defined() && t.device().type() == Type && t.layout() == at::kStrided; }

    /// What `Base` works on: a copy of a device's tensor, with its strides where elements share memory, so that it is refused alike.
    static at::Tensor host(at::Tensor const& t) {
        if (!staged(t)) return t;
        auto const options = t.options().device(at::kCPU).pinned_memory(Type == at::kCUDA).requires_grad(false);
        if (!t.is_non_overlapping_and_dense() && at::has_internal_overlap(t) == at::MemOverlap::Yes) return at::empty_strided(t.sizes(), t.strides(), options.pinned_memory(false));
        return at::empty(t.sizes(), options).copy_(t.detach());
    }
    static at::Tensor back(at::Tensor const& like, at::Tensor const& result) { return staged(like) && result.defined() ? result.to(like.device()) : result; }

    template <class Operation>
    static void in_place(at::Tensor const& t, bool writes, Operation&& operation) {
        auto const h = host(t);
        operation(h);
        if (writes && staged(t)) t.detach().copy_(h, true);
    }

    Base base_;
};

}  // namespace accelerate::comm
