#pragma once

#include <accelerate/comm/reduction.hpp>
#include <chrono>
#include <concepts>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::comm {

/// Memory for gradient buckets in which the ranks of a communicator can reduce in place; see `comm::Buffer` for the meaning.
template <class B>
concept reducible_buffer = std::copyable<B> && requires(B const& b, int64_t i) {
    { b.tensor() } -> std::convertible_to<at::Tensor>;
    { b.reduced(i) } -> std::convertible_to<at::Tensor>;
    { b.shared() } -> std::same_as<bool>;
    { B::slice(i, i, i, i) } -> std::convertible_to<std::pair<int64_t, int64_t>>;
};

/// Does jobs in the order in which they were submitted, while the submitting thread or stream goes on.
template <class W>
concept background_worker = std::default_initializable<W> && std::default_initializable<typename W::Handle> && requires(W& w, typename W::Handle const& h, void (&job)(), int64_t threads) {
    { w.submit(job) } -> std::same_as<typename W::Handle>;
    h.wait();                                        // the results may be used; throws what the job threw
    { h.finished() } -> std::same_as<bool>;
    { W::pays(threads) } -> std::same_as<bool>;      // whether it overlaps where so many threads of this machine compute
};

/// A group of ranks that call the same operations in the same order.
///
/// A communicator is a handle: cheap to copy, copies speak for the same rank of the same group. Every operation is collective
/// (all ranks of the group call it) except `send` and `recv`. Operations of one communicator never overlap; a part of the library
/// that communicates on its own thread takes its own with `duplicate()`.
///
/// What an operation promises, whatever the hardware: when it returns, its result may be used by the next operation *in the
/// order of the tensors' device*. On a CPU that means the work is done. A communicator of a device with streams enqueues on the
/// calling thread's current stream and returns at once. Its `worker` is how its operations overlap with other work: a thread
/// (`Worker`), a stream (`StreamWorker`), or not at all (`InlineWorker`). A device without a communicator of its own is served by
/// staging through a CPU communicator (`Staged`); nothing here names MPI, NCCL or shared memory.
///
/// Errors, on every rank that takes part: E_COLLECTIVE_MISMATCH when ranks called different things, E_DEADLINE when a rank did
/// not arrive in time, E_PEER_LOST when one left or died, E_CONFIG for arguments that cannot work.
template <class C>
concept communicator = std::copyable<C> && reducible_buffer<typename C::buffer> &&
                       requires(C const c, at::Tensor const& t, int64_t i, Reduction r, std::string text, std::string_view view, typename C::buffer b) {
    requires background_worker<typename C::worker>;
    { C::world() } -> std::same_as<C>;                                         // all ranks of this run; just one where nothing was started
    { c.rank() } -> std::same_as<int64_t>;
    { c.size() } -> std::same_as<int64_t>;
    { c.local_rank() } -> std::same_as<int64_t>;                               // among the ranks of this node
    { c.local_size() } -> std::same_as<int64_t>;
    { c.node() } -> std::same_as<int64_t>;                                     // the same number for the ranks of one node
    c.barrier();
    c.all_reduce(t, r);                                                        // in place
    c.broadcast(t, i);                                                         // in place
    { c.all_gather(t) } -> std::same_as<at::Tensor>;                           // along dimension 0, which may differ between ranks
    { c.gather(t, i) } -> std::same_as<at::Tensor>;                            // the same on the root; undefined elsewhere
    { c.reduce_scatter(t, r) } -> std::same_as<at::Tensor>;                    // this rank's share of dimension 0
    { c.scatter(t, i) } -> std::same_as<at::Tensor>;                           // `t` counts on the root only
    { c.all_to_all(t) } -> std::same_as<at::Tensor>;                           // share r of dimension 0 goes to rank r
    c.send(t, i, i);                                                           // to, tag
    c.recv(t, i, i);                                                           // from, tag; in place
    { c.all_gather_bytes(view) } -> std::same_as<std::vector<std::string>>;
    { c.gather_bytes(view, i) } -> std::same_as<std::vector<std::string>>;
    c.broadcast_bytes(text, i);
    { c.allocate(i, at::kFloat) } -> std::same_as<typename C::buffer>;
    c.all_reduce(b, i, i, r, true);                                            // in place, elements [begin, end)
    c.release(b);
    { c.split(i, i) } -> std::same_as<C>;                                      // color, key
    { c.duplicate() } -> std::same_as<C>;
    c.set_deadline(std::chrono::milliseconds{});
    c.leave(view);                                                             // tells waiting peers that this rank is gone, and why
};

}  // namespace accelerate::comm
