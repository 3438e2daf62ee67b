#pragma once

#include <accelerate/core/byte_size.hpp>
#include <accelerate/state/aliases.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace accelerate {

/// How tensors are spread over files.
struct StateDictSplit {
    struct File {
        std::string name;                  ///< "model-00001-of-00003.safetensors", or "model.safetensors" where it is the only one
        std::vector<std::string> tensors;  ///< by name
        int64_t bytes = 0;
    };
    std::vector<File> files;
    int64_t total_size = 0;  ///< bytes of all tensors

    bool is_sharded() const { return files.size() > 1; }
};

/// Cuts tensors into files of at most `max_shard_size` bytes each, in their order (the hub's `split_torch_state_dict_into_shards`): a larger
/// tensor has a file of its own, and names for the same memory are in one file and count once. `{suffix}` in the pattern becomes
/// "-00001-of-00003", or nothing where one file is enough. No data is touched. Error E_CONFIG for a pattern without it or a size of 0.
inline StateDictSplit split_state_dict_into_shards(TensorMap const& tensors, ByteSize max_shard_size = 5'000'000'000, std::string const& filename_pattern = "model{suffix}.safetensors") {
    constexpr std::string_view mark = "{suffix}";
    auto const suffix = filename_pattern.find(mark);
    check(suffix != std::string::npos, code::config, "split_state_dict_into_shards: the pattern \"", filename_pattern, "\" has no {suffix}");
    check(max_shard_size.value > 0, code::config, "max_shard_size is ", max_shard_size.value, "; expected a positive number of bytes");
    auto const unaliased = drop_aliases(tensors);
    StateDictSplit split;
    StateDictSplit::File open;
    auto const close = [&] {
        if (!open.tensors.empty()) split.files.push_back(std::exchange(open, {}));
    };
    for (auto const& [name, t] : unaliased.tensors) {
        auto const bytes = static_cast<int64_t>(t.nbytes());
        split.total_size += bytes;
        if (bytes > max_shard_size.value) {
            split.files.push_back({{}, {name}, bytes});
            continue;
        }
        if (open.bytes + bytes > max_shard_size.value) close();
        open.tensors.push_back(name), open.bytes += bytes;
    }
    close();
    if (split.files.empty()) split.files.emplace_back();
    std::unordered_map<std::string, size_t> file_of;
    for (size_t f = 0; f < split.files.size(); ++f) {
        char number[48] = "";
        if (split.is_sharded()) std::snprintf(number, sizeof number, "-%05zu-of-%05zu", f + 1, split.files.size());
        split.files[f].name = filename_pattern.substr(0, suffix) + number + filename_pattern.substr(suffix + mark.size());
        for (auto const& name : split.files[f].tensors) file_of.emplace(name, f);
    }
    for (auto const& [alias, kept] : unaliased.aliases) split.files[file_of.at(kept)].tensors.push_back(alias);
    return split;
}

}  // namespace accelerate
