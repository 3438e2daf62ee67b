#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <sys/mman.h>

#include <accelerate/core/streaming_copy.hpp>
#include <accelerate/core/tensor_map.hpp>
#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

namespace accelerate::state {

/// Memory into which tensors are copied, so that they can be written while training changes the originals. Kept from one copy to the next:
/// pages that are touched for the first time cost ten times the copy itself.
class Snapshot {
public:
    /// Takes and touches memory for copies of `bytes` bytes. Costs its time the first time and when more is needed.
    void reserve(int64_t bytes) {
        if (bytes <= size_) return;
        constexpr int64_t huge_page = int64_t{2} << 20;
        auto const rounded = (bytes + huge_page - 1) / huge_page * huge_page;
        auto* const memory = ::mmap(nullptr, static_cast<size_t>(rounded), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(memory != MAP_FAILED, code::no_space, "an asynchronous save needs ", rounded, " bytes of memory for a copy of the state, which are not to be had; save without .asynchronous");
        ::madvise(memory, static_cast<size_t>(rounded), MADV_HUGEPAGE);  // may be refused
        std::memset(memory, 0, static_cast<size_t>(rounded));
        memory_ = std::shared_ptr<char>(static_cast<char*>(memory), [rounded](char* p) { ::munmap(p, static_cast<size_t>(rounded)); });
        size_ = rounded;
    }

    /// Copies of all tensors, on the CPU; good until the next call.
    TensorMap copy(TensorMap const& tensors) {
        int64_t bytes = 0;
        for (auto const& [name, t] : tensors) bytes += padded(t);
        reserve(bytes);
        TensorMap copies;
        auto* at = memory_.get();
        for (auto const& [name, t] : tensors) {
            auto const of = at::from_blob(at, t.sizes(), [kept = memory_](void*) {}, t.options().device(at::kCPU).requires_grad(false));
            if (t.is_cpu() && t.is_contiguous() && !t.is_conj() && !t.is_neg()) {
                kernel::streaming_copy(reinterpret_cast<std::byte*>(at), static_cast<std::byte const*>(t.const_data_ptr()), t.nbytes());
            } else {
                of.copy_(t.detach());
            }
            copies.insert(name, of);
            at += padded(t);
        }
        return copies;
    }

private:
    static int64_t padded(at::Tensor const& t) { return (static_cast<int64_t>(t.nbytes()) + 63) / 64 * 64; }

    std::shared_ptr<char> memory_;
    int64_t size_ = 0;
};

}  // namespace accelerate::state
