#pragma once

#include <accelerate/comm/region.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::comm {

/// Gives every rank of an assembly what each of them said, in rank order. Collective.
using Exchange = std::function<std::vector<std::string>(std::string_view)>;

/// How ranks that can see the same memory come by some. One for threads, one for the processes of a node.
class MemorySource {
public:
    virtual ~MemorySource() = default;

    /// Zeroed memory that `members` (places in the assembly that `exchange` spans; the first one makes it) all see. Collective
    /// over the whole assembly, also for ranks with no other member. Empty, on every rank of the assembly, when one of them
    /// could not have it.
    virtual Region share(size_t bytes, Exchange const& exchange, std::vector<int64_t> const& members, int64_t me) = 0;
};

/// Ranks are threads: the heap is shared.
class ThreadMemory final : public MemorySource {
public:
    Region share(size_t bytes, Exchange const& exchange, std::vector<int64_t> const& members, int64_t me) override {
        Region made;
        if (me == members.front()) made = Region::heap(bytes);
        auto const* address = &made;
        auto const all = exchange({reinterpret_cast<char const*>(&address), sizeof address});
        std::memcpy(&address, all[static_cast<size_t>(members.front())].data(), sizeof address);
        Region mine = *address;
        exchange({});  // the maker's `made` must outlive the copies
        return mine;
    }
};

}  // namespace accelerate::comm
