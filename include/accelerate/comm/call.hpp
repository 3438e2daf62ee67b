#pragma once

#include <c10/core/ScalarType.h>

#include <accelerate/comm/reduction.hpp>
#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <string>

namespace accelerate::comm {

enum class Operation : uint8_t {
    None, Barrier, AllReduce, Broadcast, AllGather, Gather, ReduceScatter, Scatter, AllToAll, Send, Recv,
    AllGatherBytes, GatherBytes, BroadcastBytes, ReduceBuffer, Release, Allocate, Split,
};

constexpr std::string_view name(Operation o) {
    constexpr std::array<std::string_view, 18> names{"nothing", "barrier", "all_reduce", "broadcast", "all_gather", "gather", "reduce_scatter", "scatter", "all_to_all", "send", "recv",
                                                     "all_gather_bytes", "gather_bytes", "broadcast_bytes", "all_reduce of a buffer", "release", "allocate", "split"};
    auto const i = static_cast<size_t>(o);
    return i < names.size() ? names[i] : "?";
}

/// Ranks may bring different amounts: the count, and dimension 0 of the shape, are each rank's own.
constexpr bool ragged(Operation o) {
    return o == Operation::AllGather || o == Operation::Gather || o == Operation::AllGatherBytes || o == Operation::GatherBytes;
}
/// Only the root knows dtype and amount.
constexpr bool from_root(Operation o) { return o == Operation::Scatter || o == Operation::BroadcastBytes; }
/// Needs a rank to come from or to go to.
constexpr bool rooted(Operation o) {
    return o == Operation::Broadcast || o == Operation::Gather || o == Operation::Scatter || o == Operation::GatherBytes || o == Operation::BroadcastBytes || o == Operation::Send ||
           o == Operation::Recv;
}
constexpr bool reduces(Operation o) { return o == Operation::AllReduce || o == Operation::ReduceScatter || o == Operation::ReduceBuffer; }

/// A rank (or the number of a buffer) as calls carry it; what does not fit is no rank.
constexpr int32_t as_root(int64_t rank) { return rank < 0 || rank > std::numeric_limits<int32_t>::max() ? -1 : static_cast<int32_t>(rank); }

/// What one rank calls: all that its peers must agree with, and what is said about it in messages and in the flight recorder.
struct Call {
    static constexpr int64_t max_dims = 6;  ///< further dimensions are compared (through `count`) but not shown

    Operation operation = Operation::None;
    Reduction reduction = Reduction::Sum;
    at::ScalarType dtype = at::ScalarType::Undefined;  ///< Undefined: bytes, or nothing
    bool flag = false;                                 ///< an on/off argument: `gather` of a buffer's all_reduce
    bool refused = false;                              ///< this rank's own arguments cannot work; it arrives only to tell its peers
    bool elsewhere = false;                            ///< announced here, carried out elsewhere, such as on a device
    int32_t root = -1;                                 ///< root, peer or buffer number; -1: there is none
    int64_t count = 0;                                 ///< elements, or bytes where there is no dtype
    int64_t dims = 0;                                  ///< -1: no shape, only a count
    std::array<int64_t, max_dims> shape{};
};

inline Call named(Operation o, int64_t root = -1) {
    Call c;
    c.operation = o, c.root = as_root(root);
    return c;
}
/// A call on a tensor, which may be undefined.
inline Call described(Operation o, at::Tensor const& t, int64_t root = -1) {
    auto c = named(o, root);
    if (!t.defined()) return c;
    c.dtype = t.scalar_type(), c.count = t.numel(), c.dims = t.dim();
    auto const shown = std::min(c.dims, Call::max_dims);
    for (int64_t d = 0; d < shown; ++d) c.shape[static_cast<size_t>(d)] = t.size(d);
    return c;
}

/// For example `all_reduce(mean) of Float [8, 3]`.
inline std::string describe(Call const& c) {
    std::string text(name(c.operation));
    if (reduces(c.operation)) text += concat("(", name(c.reduction), ")");
    if (c.operation == Operation::Send) text += concat(" to ", c.root);
    else if (c.operation == Operation::Recv) text += concat(" from ", c.root);
    else if (c.operation == Operation::ReduceBuffer || c.operation == Operation::Release) text += concat(" ", c.root);
    else if (rooted(c.operation)) text += concat("(root ", c.root, ")");
    if (c.dtype != at::ScalarType::Undefined) text += concat(" of ", c10::toString(c.dtype));
    if (c.operation == Operation::ReduceBuffer) {
        text += concat(" [", c.shape[0], ", ", c.shape[1], ")", c.flag ? "" : " without gather");
    } else if (c.dtype != at::ScalarType::Undefined) {
        if (c.dims < 0) return text + concat(" (", c.count, " elements)");
        text += " [";
        for (int64_t d = 0; d < std::min(c.dims, Call::max_dims); ++d) text += concat(d ? ", " : "", c.shape[static_cast<size_t>(d)]);
        text += c.dims > Call::max_dims ? concat(", ...] (", c.count, " elements)") : "]";
    } else if (c.count > 0 && c.operation != Operation::Split) {
        text += concat(" of ", c.count, " bytes");
    }
    return text + (c.refused ? " (which that rank refused: see its own message)" : "");
}

/// The same where ranks disagree, which they may do in this alone.
inline std::string describe_apart(Call const& c) { return describe(c) + (c.elsewhere ? " on a device" : ""); }

}  // namespace accelerate::comm
