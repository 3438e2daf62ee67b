#pragma once

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/state/memory_span.hpp>
#include <algorithm>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace accelerate {

/// Tensors without those whose memory another one covers, and for each of those the name of the one that stayed.
struct Unaliased {
    TensorMap tensors;
    std::map<std::string, std::string> aliases;  ///< dropped name -> kept name; goes into the file's metadata, as in Python
};

/// Keeps one name for each memory, as Python's `safetensors.torch.save_model`: of tied tensors the first by name, of a tensor and
/// a view of part of it the tensor. Views of one buffer that do not cover each other all stay.
inline Unaliased drop_aliases(TensorMap const& tensors) {
    struct Named {
        std::string const* name;
        state::MemorySpan span;
    };
    std::unordered_map<void const*, std::vector<Named>> storages;
    for (auto const& item : tensors)
        if (item.second.defined() && item.second.has_storage())
            if (state::MemorySpan const span(item.second); !span.empty() && !item.second.is_meta()) storages[span.storage].push_back({&item.first, span});
    Unaliased out;
    for (auto& storage : storages) {
        auto& group = storage.second;
        if (group.size() < 2) continue;
        // The largest first, then by name: whoever is covered by something is covered by something that is already kept.
        std::ranges::sort(group, [](Named const& a, Named const& b) {
            auto const size_a = a.span.end - a.span.begin, size_b = b.span.end - b.span.begin;
            return size_a != size_b ? size_a > size_b : a.span.dense() != b.span.dense() ? a.span.dense() : *a.name < *b.name;
        });
        std::vector<Named const*> kept;
        for (auto const& candidate : group) {
            auto const cover = std::ranges::find_if(kept, [&](Named const* k) { return k->span.covers(candidate.span); });
            if (cover == kept.end()) kept.push_back(&candidate);
            else out.aliases.emplace(*candidate.name, *(*cover)->name);
        }
    }
    for (auto const& item : tensors)
        if (!out.aliases.contains(item.first)) out.tensors.insert(item.first, item.second);
    return out;
}

}  // namespace accelerate
