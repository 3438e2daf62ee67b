#pragma once

#include <ATen/ops/empty.h>

#include <accelerate/comm/nccl_handle.hpp>
#include <accelerate/comm/processes.hpp>
#include <accelerate/comm/staged.hpp>
#include <accelerate/comm/stream_worker.hpp>
#include <accelerate/core/log.hpp>
#include <fstream>
#include <numeric>
#include <set>
#include <vector>

#if ACCELERATE_WITH_NCCL

namespace accelerate::comm {

/// Ranks are processes with one NVIDIA GPU each; tensors on it are reduced and moved by NCCL, on the calling thread's current stream
/// of the tensor's device. Where two ranks share a GPU, which NCCL refuses, everything goes through pinned memory and MPI instead,
/// and that is said once; so do tensors of the CPU, dtypes that NCCL cannot reduce, messages (`send`, `recv`) and bytes.
///
/// Ranks agree on each operation on the host, before it is enqueued: misuse and missing ranks are found there as with `comm::Mpi`.
/// Among ranks that see each other's memory that costs about a microsecond. NCCL is brought up by the first operation on a GPU's
/// tensor.
class Nccl : public Staged<Processes, at::kCUDA> {
    using ByHost = Staged<Processes, at::kCUDA>;

public:
    using worker = StreamWorker<at::kCUDA>;

    explicit Nccl(Processes processes) : ByHost(std::move(processes)) {}
    static Nccl world() { return Nccl(Processes::world()); }

    void all_reduce(at::Tensor const& t, Reduction reduction = Reduction::Sum) const {
        auto const how = nccl::arithmetic(t.defined() ? t.scalar_type() : at::kFloat, reduction);
        auto call = described(Operation::AllReduce, t);
        call.reduction = reduction;
        if (!how || !direct(t, call)) return ByHost::all_reduce(t, reduction);
        base().announce(call, refused(t, {.reason = why_not(reduction, call.dtype), .written = true}));
        on_stream(t, true, [&](at::Tensor const& flat, cudaStream_t stream) {
            auto* const data = flat.mutable_data_ptr();
            nccl::call(ncclAllReduce(data, data, elements(flat, *how), how->type, how->operation, handle(), stream), "ncclAllReduce", handle());
        });
    }

    void broadcast(at::Tensor const& t, int64_t root) const {
        auto const call = described(Operation::Broadcast, t, root);
        if (!direct(t, call)) return ByHost::broadcast(t, root);
        base().announce(call, refused(t, {.reason = refusal_of_rank(root, size()), .written = true}));
        on_stream(t, rank() != root, [&](at::Tensor const& flat, cudaStream_t stream) {
            auto* const data = flat.mutable_data_ptr();
            nccl::call(ncclBroadcast(data, data, flat.nbytes(), ncclUint8, static_cast<int>(root), handle(), stream), "ncclBroadcast", handle());
        });
    }

    at::Tensor all_gather(at::Tensor const& t) const {
        auto const rows = in_rows(t);
        auto const call = described(Operation::AllGather, rows);
        return direct(t, call) ? gathered(call, rows, -1, {}) : ByHost::all_gather(t);
    }
    at::Tensor gather(at::Tensor const& t, int64_t root) const {
        auto const rows = in_rows(t);
        auto const call = described(Operation::Gather, rows, root);
        return direct(t, call) ? gathered(call, rows, root, refusal_of_rank(root, size())) : ByHost::gather(t, root);
    }

    at::Tensor reduce_scatter(at::Tensor const& t, Reduction reduction = Reduction::Sum) const {
        auto const how = nccl::arithmetic(t.defined() ? t.scalar_type() : at::kFloat, reduction);
        auto call = described(Operation::ReduceScatter, t);
        call.reduction = reduction;
        if (!how || !direct(t, call)) return ByHost::reduce_scatter(t, reduction);
        base().announce(call, refused(t, {.reason = why_not(reduction, call.dtype), .divides = true}));
        auto const out = at::empty(share_of(t, size()), t.options().requires_grad(false));
        on_stream(t, false, [&](at::Tensor const& flat, cudaStream_t stream) {
            nccl::call(ncclReduceScatter(flat.const_data_ptr(), out.mutable_data_ptr(), elements(out, *how), how->type, how->operation, handle(), stream), "ncclReduceScatter", handle());
        });
        return out;
    }

    at::Tensor all_to_all(at::Tensor const& t) const {
        auto const call = described(Operation::AllToAll, t);
        if (!direct(t, call)) return ByHost::all_to_all(t);
        base().announce(call, refused(t, {.divides = true}));
        auto const out = at::empty(t.sizes(), t.options().requires_grad(false));
        auto const share = t.nbytes() / static_cast<size_t>(size());
        on_stream(t, false, [&](at::Tensor const& flat, cudaStream_t stream) {
            exchange(stream, [&](int64_t r) { return Part{bytes(flat) + static_cast<size_t>(r) * share, share}; }, [&](int64_t r) { return Part{bytes(out) + static_cast<size_t>(r) * share, share}; });
        });
        return out;
    }

    /// On the device of the calling thread. Elements are reduced where they are.
    buffer allocate(int64_t numel, at::ScalarType dtype) const {
        auto call = named(Operation::Allocate);
        call.dtype = dtype, call.count = numel, call.dims = 1, call.shape[0] = numel;
        if (!connected(call)) return ByHost::allocate(numel, dtype);
        base().announce(call, numel < 0 ? "the number of elements is negative" : why_not(Reduction::Sum, dtype));
        return {at::zeros({numel}, at::TensorOptions(dtype).device(here())), {}};
    }
    /// Always gathered: NCCL leaves the whole sum on every rank.
    void all_reduce(buffer const& b, int64_t begin, int64_t end, Reduction reduction, bool gather = true) const {
        auto const call = described(Operation::AllReduce, b.tensor());
        if (!connected(call)) return ByHost::all_reduce(b, begin, end, reduction, gather);
        auto const inside = b.tensor().defined() && begin >= 0 && begin <= end && end <= b.numel();
        if (inside) return all_reduce(b.tensor().narrow(0, begin, end - begin), reduction);
        base().announce(call, b.tensor().defined() ? "the range does not lie in the buffer" : "the buffer was not allocated");
    }
    /// Nobody reads a peer's memory, so there is nothing to wait for.
    void release(buffer const& b) const {
        if (!connected(named(Operation::Release, b.host().number()))) ByHost::release(b);
    }

    std::string_view summation() const { return link_->handle != nullptr ? "NCCL" : base().summation(); }
    Nccl split(int64_t color, int64_t key) const { return Nccl(base().split(color, key)); }
    Nccl duplicate() const { return Nccl(base().duplicate()); }

private:
    struct Part {
        std::byte* data;
        size_t bytes;
    };
    /// Which GPU of which machine, told apart as NCCL does.
    struct Gpu {
        std::array<char, 64> boot{};
        std::array<char, 32> bus{};
        auto operator<=>(Gpu const&) const = default;

        static Gpu here(at::Device device) {
            Gpu gpu;
            nccl::call(cudaDeviceGetPCIBusId(gpu.bus.data(), static_cast<int>(gpu.bus.size()), device.index()), "cudaDeviceGetPCIBusId");
            std::ifstream("/proc/sys/kernel/random/boot_id").getline(gpu.boot.data(), static_cast<std::streamsize>(gpu.boot.size()));
            return gpu;
        }
    };
    /// What the copies of a handle share. Empty after the first look: ranks share a GPU.
    struct Link {
        bool looked = false;
        nccl::Handle handle;
    };

    ncclComm_t handle() const { return link_->handle.get(); }
    static std::byte* bytes(at::Tensor const& t) { return static_cast<std::byte*>(t.mutable_data_ptr()); }
    static size_t elements(at::Tensor const& t, nccl::Arithmetic const& how) { return static_cast<size_t>(t.numel() * how.width); }
    std::string refused(at::Tensor const& t, Wanted const& wanted) const { return refusal(t, at::kCUDA, size(), wanted); }

    bool direct(at::Tensor const& t, Call const& call) const { return t.defined() && t.is_cuda() && t.layout() == at::kStrided && connected(call); }

    /// Whether NCCL serves these ranks. The first `call` of a communicator finds out and brings it up; what ranks say to each other for
    /// that is part of it.
    bool connected(Call const& call) const {
        if (link_->looked) return link_->handle != nullptr;
        auto const all = base().agree_before(call, Gpu::here(here()));
        std::set<Gpu> const gpus(all.begin(), all.end());
        link_->looked = true;
        if (gpus.size() < all.size()) {
            log::warning_once("comm::Nccl: ", all.size(), " ranks share ", gpus.size(), " GPUs, which NCCL refuses; tensors travel through pinned memory and MPI");
            return false;
        }
        ncclUniqueId mine{};
        if (rank() == 0) nccl::call(ncclGetUniqueId(&mine), "ncclGetUniqueId");
        auto const root = base().agree_before(call, mine).front();
        c10::DeviceGuard const guard(here());
        link_->handle = nccl::connect(root, size(), rank());
        return true;
    }

    /// Calls `enqueue(the elements of t side by side, the current stream of its device)`; with `writes`, what they are afterwards goes
    /// back to `t`. They stay allocated until that stream has passed, whichever stream they belong to.
    template <class Enqueue>
    static void on_stream(at::Tensor const& t, bool writes, Enqueue&& enqueue) {
        c10::DeviceGuard const guard(t.device());
        auto const stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(t.device());
        auto const original = t.detach();
        auto const flat = original.resolve_conj().resolve_neg().contiguous();
        enqueue(flat, static_cast<cudaStream_t>(stream.native_handle()));
        flat.record_stream(stream);
        if (writes && !flat.is_same(original) && flat.const_data_ptr() != original.const_data_ptr()) original.copy_(flat);
    }

    /// One message to every rank and one from every rank; empty ones are none.
    template <class Out, class In>
    void exchange(cudaStream_t stream, Out&& out, In&& in) const {
        nccl::call(ncclGroupStart(), "ncclGroupStart");
        for (int64_t r = 0; r < size(); ++r) {
            Part const to = out(r), from = in(r);
            if (to.bytes > 0) nccl::call(ncclSend(to.data, to.bytes, ncclUint8, static_cast<int>(r), handle(), stream), "ncclSend", handle());
            if (from.bytes > 0) nccl::call(ncclRecv(from.data, from.bytes, ncclUint8, static_cast<int>(r), handle(), stream), "ncclRecv", handle());
        }
        nccl::call(ncclGroupEnd(), "ncclGroupEnd");
    }

    /// A scalar counts as one element.
    static at::Tensor in_rows(at::Tensor const& t) { return t.defined() && t.dim() == 0 ? t.detach().reshape({1}) : t; }

    /// Of every rank (root -1: to every rank), side by side along dimension 0, which may differ between ranks.
    at::Tensor gathered(Call call, at::Tensor const& rows, int64_t root, std::string const& no_root) const {
        call.count = rows.size(0);
        auto const counts = base().announce_ragged(call, refused(rows, {.reason = no_root}));
        std::vector<size_t> lengths, starts;
        int64_t total = 0;
        auto const row = static_cast<size_t>(std::accumulate(rows.sizes().begin() + 1, rows.sizes().end(), rows.element_size(), std::multiplies<>()));
        for (auto const n : counts) {
            starts.push_back(static_cast<size_t>(total) * row), lengths.push_back(static_cast<size_t>(n) * row);
            total += n;
        }
        auto sizes = rows.sizes().vec();
        sizes[0] = total;
        auto const receives = root < 0 || rank() == root;
        auto const out = receives ? at::empty(sizes, rows.options().requires_grad(false)) : at::Tensor();
        on_stream(rows, false, [&](at::Tensor const& flat, cudaStream_t stream) {
            auto const equal = std::all_of(lengths.begin(), lengths.end(), [&](size_t n) { return n == lengths.front(); });
            if (root < 0 && equal) return nccl::call(ncclAllGather(flat.const_data_ptr(), out.mutable_data_ptr(), lengths.front(), ncclUint8, handle(), stream), "ncclAllGather", handle());
            exchange(stream, [&](int64_t r) { return root < 0 || r == root ? Part{bytes(flat), flat.nbytes()} : Part{nullptr, 0}; },
                     [&](int64_t r) { return receives ? Part{bytes(out) + starts[static_cast<size_t>(r)], lengths[static_cast<size_t>(r)]} : Part{nullptr, 0}; });
        });
        return receives ? out : at::Tensor();
    }

    std::shared_ptr<Link> link_ = std::make_shared<Link>();
};

static_assert(communicator<Nccl>);

}  // namespace accelerate::comm

#else

namespace accelerate::comm {

/// Stands where `comm::Nccl` would be in a build without NCCL: making one is one error that names the option.
template <class Use = void>
class AbsentNccl : public Operations<AbsentNccl<Use>> {
public:
    static constexpr bool absent = true;

    template <class... Arguments>
    explicit AbsentNccl(Arguments const&...) : Operations<AbsentNccl>(solo()) { refuse(); }
    static AbsentNccl world() {
        refuse();
        return AbsentNccl(solo());
    }

private:
    friend class Operations<AbsentNccl>;
    explicit AbsentNccl(std::shared_ptr<Group> group) : Operations<AbsentNccl>(std::move(group)) {}
    static constexpr void refuse() { static_assert(!std::same_as<Use, void>, "comm::Nccl: this build is without NCCL; set ACCELERATE_WITH_NCCL=ON (CMake) or define ACCELERATE_WITH_NCCL=1, or use comm::Mpi"); }
};
using Nccl = AbsentNccl<>;

}  // namespace accelerate::comm

#endif
