#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/data/pack.hpp>
#include <functional>
#include <string>
#include <string_view>

namespace accelerate::data {

/// How a loader speaks to other ranks, whatever the communicator: what streams, `loader::Dispatched` and couplings need of one.
struct Channel {
    std::function<std::vector<std::string>(std::string_view)> exchange;  ///< what every rank says, on every rank; collective
    std::function<void(at::Tensor const&, int64_t to)> send;             ///< a 1-D byte tensor in main memory
    std::function<void(at::Tensor const&, int64_t from)> receive;        ///< into such a tensor

    explicit operator bool() const { return static_cast<bool>(exchange); }
};

/// The channel over a communicator of tensors on `device`; what it sends has that tag.
template <comm::communicator Comm>
Channel channel_over(Comm const& comm, at::Device device = at::kCPU, int64_t tag = 0) {
    return {[comm](std::string_view said) { return comm.all_gather_bytes(said); }, [comm, device, tag](at::Tensor const& t, int64_t to) { comm.send(t.to(device), to, tag); },
            [comm, device, tag](at::Tensor const& t, int64_t from) {
                auto const there = t.to(device);
                comm.recv(there, from, tag);
                if (!there.is_same(t)) t.copy_(there);
            }};
}

namespace detail {
inline at::Tensor bytes_at(void const* data, int64_t size) { return at::from_blob(const_cast<void*>(data), {size}, at::TensorOptions(at::kByte)); }
}  // namespace detail

/// Sends what was packed: its size, its bytes, then its tensors.
inline void send_packed(Channel const& channel, Packed const& packed, int64_t to) {
    auto const size = static_cast<int64_t>(packed.bytes.size());
    channel.send(detail::bytes_at(&size, sizeof size), to);
    channel.send(detail::bytes_at(packed.bytes.data(), size), to);
    for (auto const& t : packed.tensors) channel.send(detail::bytes_at(t.const_data_ptr(), static_cast<int64_t>(t.nbytes())), to);
}

/// Receives what was packed. `read(unpacker)` takes it apart; the contents of its tensors are there when this returns.
template <class Read>
void receive_packed(Channel const& channel, int64_t from, Read&& read) {
    int64_t size = 0;
    channel.receive(detail::bytes_at(&size, sizeof size), from);
    std::string bytes(static_cast<size_t>(size), '\0');
    channel.receive(detail::bytes_at(bytes.data(), size), from);
    Unpacker unpack(bytes);
    read(unpack);
    for (auto const& t : unpack.tensors) channel.receive(detail::bytes_at(t.mutable_data_ptr(), static_cast<int64_t>(t.nbytes())), from);
}

}  // namespace accelerate::data
