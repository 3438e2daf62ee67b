// Lets the conformance suite, which is written with tensors of the CPU, speak to a communicator through tensors of another device.
#pragma once

#include <torch/torch.h>

#include <accelerate/comm/communicator.hpp>

template <class Comm>
class OnDevice {
public:
    /// The elements on the device, and a copy of them on the CPU for whoever reads and writes there.
    class buffer {
    public:
        buffer() = default;
        explicit buffer(typename Comm::buffer inner) : inner_(std::move(inner)), seen_(at::zeros({inner_.numel() + 16}, inner_.tensor().options().device(at::kCPU)).narrow(0, 0, inner_.numel())) {}
        at::Tensor const& tensor() const { return seen_; }
        int64_t numel() const { return inner_.numel(); }
        at::Tensor const& reduced(int64_t) const { return seen_; }
        bool shared() const { return false; }
        static std::pair<int64_t, int64_t> slice(int64_t begin, int64_t end, int64_t rank, int64_t size) { return Comm::buffer::slice(begin, end, rank, size); }
        typename Comm::buffer const& inner() const { return inner_; }

    private:
        typename Comm::buffer inner_;
        at::Tensor seen_;
    };
    using worker = typename Comm::worker;

    OnDevice(Comm comm, at::Device device) : comm_(std::move(comm)), device_(device) {}
    static OnDevice world() { return OnDevice(Comm::world(), at::kCPU); }

    int64_t rank() const { return comm_.rank(); }
    int64_t size() const { return comm_.size(); }
    int64_t local_rank() const { return comm_.local_rank(); }
    int64_t local_size() const { return comm_.local_size(); }
    int64_t node() const { return comm_.node(); }
    void barrier() const { comm_.barrier(); }

    void all_reduce(at::Tensor const& t, accelerate::comm::Reduction r = accelerate::comm::Reduction::Sum) const {
        in_place(t, [&](at::Tensor const& d) { comm_.all_reduce(d, r); });
    }
    void broadcast(at::Tensor const& t, int64_t root) const {
        in_place(t, [&](at::Tensor const& d) { comm_.broadcast(d, root); });
    }
    at::Tensor all_gather(at::Tensor const& t) const { return back(comm_.all_gather(there(t))); }
    at::Tensor gather(at::Tensor const& t, int64_t root) const { return back(comm_.gather(there(t), root)); }
    at::Tensor reduce_scatter(at::Tensor const& t, accelerate::comm::Reduction r = accelerate::comm::Reduction::Sum) const { return back(comm_.reduce_scatter(there(t), r)); }
    at::Tensor scatter(at::Tensor const& t, int64_t root) const { return back(comm_.scatter(there(t), root)); }
    at::Tensor all_to_all(at::Tensor const& t) const { return back(comm_.all_to_all(there(t))); }
    void send(at::Tensor const& t, int64_t to, int64_t tag = 0) const { comm_.send(there(t), to, tag); }
    void recv(at::Tensor const& t, int64_t from, int64_t tag = 0) const {
        in_place(t, [&](at::Tensor const& d) { comm_.recv(d, from, tag); });
    }
    void send_bytes(std::string_view bytes, int64_t to, int64_t tag = 0) const { comm_.send_bytes(bytes, to, tag); }
    std::string recv_bytes(int64_t from, int64_t tag = 0) const { return comm_.recv_bytes(from, tag); }
    std::vector<std::string> all_gather_bytes(std::string_view mine) const { return comm_.all_gather_bytes(mine); }
    std::vector<std::string> gather_bytes(std::string_view mine, int64_t root) const { return comm_.gather_bytes(mine, root); }
    void broadcast_bytes(std::string& bytes, int64_t root) const { comm_.broadcast_bytes(bytes, root); }

    buffer allocate(int64_t numel, at::ScalarType dtype) const { return buffer(comm_.allocate(numel, dtype)); }
    void all_reduce(buffer const& b, int64_t begin, int64_t end, accelerate::comm::Reduction r, bool gather = true) const {
        if (b.numel() > 0) b.inner().tensor().copy_(b.tensor());
        comm_.all_reduce(b.inner(), begin, end, r, gather);
        if (b.numel() > 0) b.tensor().copy_(b.inner().tensor());
    }
    void release(buffer const& b) const { comm_.release(b.inner()); }

    OnDevice split(int64_t color, int64_t key) const { return {comm_.split(color, key), device_}; }
    OnDevice duplicate() const { return {comm_.duplicate(), device_}; }
    void set_deadline(std::chrono::milliseconds deadline) const { comm_.set_deadline(deadline); }
    void leave(std::string_view reason) const noexcept { comm_.leave(reason); }
    auto& recorder() const { return comm_.recorder(); }

private:
    static bool ours(at::Tensor const& t) { return t.defined() && t.is_cpu() && t.layout() == at::kStrided; }
    at::Tensor there(at::Tensor const& t) const {
        if (!ours(t)) return t;
        if (at::has_internal_overlap(t) == at::MemOverlap::Yes) return at::empty_strided(t.sizes(), t.strides(), t.options().device(device_));
        return t.to(device_);
    }
    static at::Tensor back(at::Tensor const& t) { return t.defined() ? t.to(at::kCPU) : t; }
    template <class F>
    void in_place(at::Tensor const& t, F&& f) const {
        auto const d = there(t);
        f(d);
        if (ours(t)) t.detach().copy_(d.to(at::kCPU));
    }

    Comm comm_;
    at::Device device_;
};
