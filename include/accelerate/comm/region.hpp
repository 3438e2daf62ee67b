#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

namespace accelerate::comm {

/// A stretch of zeroed memory that lives as long as anybody holds it.
struct Region {
    std::shared_ptr<void> owner;
    std::byte* data = nullptr;
    size_t bytes = 0;

    explicit operator bool() const { return data != nullptr; }
    Region part(size_t offset, size_t length) const { return {owner, data + offset, length}; }

    /// From the heap of this process: enough where all who use it are its threads.
    static Region heap(size_t bytes) {
        constexpr size_t page = 4096;
        auto const rounded = (bytes + page - 1) / page * page;
        auto* const memory = std::aligned_alloc(page, rounded == 0 ? page : rounded);
        if (!memory) throw std::bad_alloc();
        std::memset(memory, 0, rounded);
        return {std::shared_ptr<void>(memory, std::free), static_cast<std::byte*>(memory), bytes};
    }
};

}  // namespace accelerate::comm
