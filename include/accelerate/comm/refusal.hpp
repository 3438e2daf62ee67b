#pragma once

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>

#include <accelerate/core/error.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::comm {

inline constexpr int64_t max_tensor_dims = 24;

/// What a collective asks of a tensor, beyond being dense and in its place.
struct Wanted {
    std::string_view reason = {};  ///< why not, for a reason that lies not in the tensor
    bool divides = false;          ///< the number of ranks divides dimension 0
    bool written = false;
};

/// Why this rank cannot do a call on `t` among `ranks` ranks; empty when it can. Found before the ranks meet and thrown after, so
/// that all hear of it.
inline std::string refusal(at::Tensor const& t, at::DeviceType device, int64_t ranks, Wanted const& wanted = {}) {
    if (!t.defined()) return "the tensor is undefined";
    if (t.device().type() != device || t.layout() != at::kStrided)
        return concat("the tensor must be dense and on the ", c10::DeviceTypeName(device), ", it is ", t.layout(), " on ", t.device());
    if (wanted.divides && (t.dim() == 0 || t.size(0) % ranks != 0)) return concat("dimension 0 must be divisible by the number of ranks, ", ranks);
    if (t.dim() > max_tensor_dims) return concat("more than ", max_tensor_dims, " dimensions");
    if (wanted.written && at::has_internal_overlap(t) == at::MemOverlap::Yes) return "elements of the tensor share memory, as after expand(); pass a clone()";
    return std::string(wanted.reason);
}

/// The shape of a rank's share of `t`, whose dimension 0 the number of ranks divides.
inline std::vector<int64_t> share_of(at::Tensor const& t, int64_t ranks) {
    auto sizes = t.sizes().vec();
    sizes[0] /= ranks;
    return sizes;
}

inline std::string refusal_of_rank(int64_t root, int64_t ranks) { return root >= 0 && root < ranks ? "" : concat("there is no rank ", root, " among ", ranks); }

}  // namespace accelerate::comm
