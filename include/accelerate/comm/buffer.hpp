#pragma once

#include <ATen/ops/from_blob.h>

#include <accelerate/comm/region.hpp>
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace accelerate::comm {

/// Memory for gradients in which the ranks of a node reduce in place, without a staging copy: made by `communicator.allocate`,
/// reduced by `communicator.all_reduce(buffer, begin, end, ...)`. A handle; copies mean the same memory. Costs nothing beyond the
/// elements themselves. Where ranks cannot see each other's memory it is ordinary memory and everything works, slower.
class Buffer {
public:
    /// Memory of the ranks that see it, one part for each, `numel` elements of `dtype` in every part.
    /// `owners`: for each rank of the communicator, the part in which slices that it reduced lie.
    Buffer(int64_t number, int64_t numel, at::ScalarType dtype, Region const& memory, int64_t me, int64_t parts, std::vector<int64_t> const& owners) : number_(number) {
        auto const stride = part_bytes(numel, dtype);
        std::vector<at::Tensor> tensors;
        for (int64_t p = 0; p < parts; ++p) {
            auto* const data = memory.data + static_cast<size_t>(p) * stride;
            parts_.push_back(data);
            tensors.push_back(at::from_blob(data, {numel}, [owner = memory.owner](void*) {}, at::TensorOptions(dtype)));
        }
        own_ = tensors[static_cast<size_t>(me)];
        for (auto p : owners) sources_.push_back(tensors[static_cast<size_t>(p)]);
    }
    Buffer() = default;

    /// This rank's elements: 1-D, zero at first, 64-byte aligned. The tensor may outlive the buffer and the communicator.
    at::Tensor const& tensor() const { return own_; }
    int64_t numel() const { return own_.defined() ? own_.numel() : 0; }

    /// Where slice `rank` of a range that was reduced without gather must be read, until `release`: a tensor with the same indices
    /// as `tensor()`. Read only.
    at::Tensor const& reduced(int64_t rank) const { return sources_.at(static_cast<size_t>(rank)); }

    /// Whether every rank sees the slices where they were reduced, and what their owners write there later. False across nodes, and
    /// where ranks cannot see each other's memory: each then reads a copy.
    bool shared() const { return parts_.size() == sources_.size(); }

    /// The elements of [begin, end) that rank `rank` of `size` reduces. Cut at multiples of 16 elements, so that two ranks never
    /// write one cache line and vectors stay aligned; some slices may be empty.
    static std::pair<int64_t, int64_t> slice(int64_t begin, int64_t end, int64_t rank, int64_t size) {
        auto const cut = [&](int64_t r) {
            if (r == 0) return begin;
            if (r == size) return end;
            auto const whole = (end - begin) / size, rest = (end - begin) % size;
            return std::clamp((begin + whole * r + rest * r / size) / 16 * 16, begin, end);
        };
        return {cut(rank), cut(rank + 1)};
    }

    static size_t part_bytes(int64_t numel, at::ScalarType dtype) {
        constexpr size_t page = 4096;  // parts of different ranks should not share one
        return (static_cast<size_t>(numel) * c10::elementSize(dtype) + page) / page * page;
    }

    int64_t number() const { return number_; }
    /// Member `p`'s elements, as this process sees them. Fewer than members: ranks do not see each other's.
    std::byte* part(int64_t p) const { return parts_[static_cast<size_t>(p)]; }
    int64_t parts() const { return static_cast<int64_t>(parts_.size()); }

private:
    int64_t number_ = 0;               // in its communicator: ranks must mean the same buffer
    at::Tensor own_;
    std::vector<at::Tensor> sources_;  // by rank of the communicator
    std::vector<std::byte*> parts_;    // by member of this node
};

}  // namespace accelerate::comm
