#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace accelerate::state {

/// The bytes of a storage that a strided tensor touches: what tells tied tensors and overlapping views.
struct MemorySpan {
    explicit MemorySpan(at::Tensor const& t) : tensor(t), storage(t.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()) {
        if (t.numel() == 0) return;
        int64_t last = 0;
        for (int64_t d = 0; d < t.dim(); ++d) last += (t.size(d) - 1) * t.stride(d);
        begin = t.storage_offset() * static_cast<int64_t>(t.element_size());
        end = begin + (last + 1) * static_cast<int64_t>(t.element_size());
    }

    bool empty() const { return begin == end; }
    bool dense() const { return tensor.is_non_overlapping_and_dense(); }
    bool overlaps(MemorySpan const& o) const { return storage == o.storage && begin < o.end && o.begin < end; }
    /// Whoever has this has the other's values too.
    bool covers(MemorySpan const& o) const {
        if (o.empty() || storage != o.storage) return false;
        return dense() ? begin <= o.begin && o.end <= end : begin == o.begin && tensor.sizes() == o.tensor.sizes() && tensor.strides() == o.tensor.strides();
    }

    at::Tensor tensor;
    void const* storage = nullptr;
    int64_t begin = 0, end = 0;  ///< bytes
};

}  // namespace accelerate::state
