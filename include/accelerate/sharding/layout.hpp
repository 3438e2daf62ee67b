#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>

#include <accelerate/core/error.hpp>
#include <accelerate/sharding/flat.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace torch::nn {
class Module;
}

namespace accelerate::sharding {

using NamedParameters = std::vector<std::pair<std::string, at::Tensor>>;

/// What `prepare` hands to a sharding policy: the module, its trainable parameters (each once) and its buffers, on the rank's device.
struct ModelParts {
    std::shared_ptr<torch::nn::Module> module = {};
    NamedParameters parameters = {};
    NamedParameters buffers = {};
    at::Device device = at::kCPU;
};

/// Elements between the starts of neighbouring slots are a multiple of this many bytes: kernels see the alignment that they
/// would see in tensors of their own.
inline constexpr int64_t slot_alignment = 64;

/// A stretch of one flat that is reduced as a whole.
struct Bucket {
    int64_t flat = 0;
    int64_t begin = 0, end = 0;
    int64_t first_slot = 0, slots = 0;
};

/// How parameters lie in flats and buckets; pure arithmetic, no tensor is touched.
struct Layout {
    struct Place {
        int64_t parameter = 0;  ///< index into the list of parameters
        int64_t begin = 0;
    };
    struct FlatPlan {
        at::ScalarType dtype = at::kFloat;
        int64_t numel = 0;
        std::vector<Place> places;
    };
    std::vector<FlatPlan> flats;
    std::vector<Bucket> buckets;  ///< in the order in which they are expected to become ready
};

/// Lays parameters out in the given order. One flat for each dtype, cut into buckets of at most `bucket_bytes` (at least one
/// parameter each), the first of at most `first_bucket_bytes` so that communication starts early. Inside a bucket matrices come
/// before vectors: "no weight decay on norms and biases" is then two stretches of a bucket instead of one for each layer.
inline Layout plan_layout(NamedParameters const& parameters, std::vector<int64_t> const& order, int64_t first_bucket_bytes, int64_t bucket_bytes) {
    struct Open {
        std::vector<int64_t> members;
        int64_t bytes = 0;
    };
    Layout layout;
    std::map<at::ScalarType, int64_t> flat_of;
    std::vector<Open> open;
    std::vector<bool> first;

    auto close = [&](int64_t f) {
        auto& bucket = open[static_cast<size_t>(f)];
        auto& flat = layout.flats[static_cast<size_t>(f)];
        if (bucket.members.empty()) return;
        std::stable_partition(bucket.members.begin(), bucket.members.end(),
                              [&](int64_t i) { return parameters[static_cast<size_t>(i)].second.dim() > 1; });
        Bucket made{f, flat.numel, flat.numel, static_cast<int64_t>(flat.places.size()), static_cast<int64_t>(bucket.members.size())};
        auto const item = static_cast<int64_t>(c10::elementSize(flat.dtype));
        auto const unit = std::max<int64_t>(1, slot_alignment / item);
        for (auto i : bucket.members) {
            flat.places.push_back({i, flat.numel});
            flat.numel += (parameters[static_cast<size_t>(i)].second.numel() + unit - 1) / unit * unit;
        }
        made.end = flat.numel;
        layout.buckets.push_back(made);
        bucket = {};
        first[static_cast<size_t>(f)] = false;
    };

    for (auto i : order) {
        auto const& tensor = parameters[static_cast<size_t>(i)].second;
        auto [it, fresh] = flat_of.try_emplace(tensor.scalar_type(), static_cast<int64_t>(layout.flats.size()));
        if (fresh) {
            layout.flats.push_back({tensor.scalar_type(), 0, {}});
            open.emplace_back();
            first.push_back(true);
        }
        auto const f = static_cast<size_t>(it->second);
        auto const bytes = static_cast<int64_t>(tensor.nbytes());
        if (open[f].bytes + bytes > (first[f] ? first_bucket_bytes : bucket_bytes)) close(it->second);
        open[f].members.push_back(i);
        open[f].bytes += bytes;
    }
    for (size_t f = 0; f < open.size(); ++f) close(static_cast<int64_t>(f));
    return layout;
}

/// A view of `flat` with the shape and the memory order of `like`, starting at `begin`.
inline at::Tensor view_like(at::Tensor const& flat, int64_t begin, at::Tensor const& like) {
    if (like.is_contiguous() || !like.is_non_overlapping_and_dense()) return flat.narrow(0, begin, like.numel()).view(like.sizes());
    return flat.as_strided(like.sizes(), like.strides(), flat.storage_offset() + begin);
}

}  // namespace accelerate::sharding
