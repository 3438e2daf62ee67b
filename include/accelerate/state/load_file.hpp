#pragma once

#include <ATen/ops/isfinite.h>

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/state/weights_reader.hpp>

namespace accelerate {
namespace state {

/// Error E_NONFINITE naming the tensor when it holds a NaN or an infinity. Works in slices: little extra memory.
inline void require_finite(std::string const& name, at::Tensor const& t, std::filesystem::path const& path) {
    if (!(t.is_floating_point() || t.is_complex()) || t.scalar_type() == at::ScalarType::Float4_e2m1fn_x2) return;
    constexpr int64_t slice = 1 << 18;
    auto const flat = t.view({-1});
    for (int64_t at = 0; at < flat.numel(); at += slice) {
        auto part = flat.slice(0, at, std::min(at + slice, flat.numel()));
        if (part.element_size() == 1) part = part.to(at::kFloat);  // the 8-bit dtypes have few operations of their own
        check(at::isfinite(part).all().item<bool>(), code::non_finite, path, ": tensor ", quote(name), " has a NaN or an infinity in elements ", at, " to ", at + part.numel() - 1);
    }
}

}  // namespace state

/// How `load_file` reads.
struct load_options {
    bool check_finite = false;               ///< a NaN or an infinity is error E_NONFINITE; one more pass over the data
    bool mapped = false;                     ///< tensors are the file in memory, read as they are used; see `state::SafetensorsReader::map` for the risk
    std::filesystem::path hub_cache = {};    ///< symbolic links in a folder may lead in here; see `state::Folder`
};

/// Reads a safetensors file, the files that an index names, or what a folder holds of these, as CPU tensors by name, in the order of their
/// data. Nothing of it is trusted: see `state::SafetensorsReader` and `state::WeightsReader` for what is checked and what the errors are.
/// Memory: the tensors, and the header while it is parsed.
inline TensorMap load_file(std::filesystem::path const& path, load_options const& options = {}) {
    state::WeightsReader const weights(path, options.hub_cache);
    TensorMap out;
    for (auto const& file : weights.files())
        for (auto const& info : file->tensors()) {
            auto t = options.mapped ? file->map(info) : file->read(info);
            if (options.check_finite) state::require_finite(info.name, t, file->path());
            out.insert(info.name, std::move(t));
        }
    return out;
}

}  // namespace accelerate
