#pragma once

#include <accelerate/state/folder.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <accelerate/state/save_file.hpp>
#include <accelerate/state/split_state_dict.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

namespace accelerate {

/// How `save_model` writes.
struct save_model_options {
    ByteSize max_shard_size = 10'000'000'000;          ///< of a file: more is spread over several, with an index
    std::map<std::string, std::string> metadata = {};  ///< of every file, beside `format`
};

namespace state {

/// Whether `file` is called as a part of a model in several files is: "model-00002-of-00005.safetensors".
inline bool named_as_shard(std::string_view file) {
    constexpr std::string_view form = "model-#####-of-#####.safetensors";
    return file.size() == form.size() && std::equal(file.begin(), file.end(), form.begin(), [](char c, char f) { return f == '#' ? c >= '0' && c <= '9' : c == f; });
}

/// Writes tensors as a model's files; see `save_model`. Gives the bytes written.
inline int64_t save_shards(Unaliased const& model, std::filesystem::path const& dir, save_model_options const& options) {
    constexpr char const* index_name = "model.safetensors.index.json";
    auto const split = split_state_dict_into_shards(model.tensors, options.max_shard_size);
    int64_t bytes = 0;
    std::vector<TensorMap> tensors(split.files.size());  // outlive the writers
    std::vector<std::unique_ptr<SafetensorsWriter>> writers;
    nlohmann::json index{{"metadata", {{"total_size", split.total_size}}}, {"weight_map", nlohmann::json::object()}};
    for (size_t f = 0; f < split.files.size(); ++f) {
        auto const& file = split.files[f];
        for (auto const& name : file.tensors) tensors[f].insert(name, model.tensors.at(name)), index["weight_map"][name] = file.name;
        auto metadata = options.metadata;
        metadata.emplace("format", "pt");
        for (auto const& [alias, kept] : model.aliases)
            if (tensors[f].contains(kept)) metadata.emplace(alias, kept);
        writers.push_back(std::make_unique<SafetensorsWriter>(tensors[f], dir / file.name, metadata));
        bytes += writers.back()->bytes();
    }
    for (auto const& writer : writers) writer->write();
    // From here on a kill may leave files of two saves. Without an index they are refused, so it goes first and comes last.
    std::error_code failed;
    if (std::filesystem::remove(dir / index_name, failed)) sync_folder(open_folder(dir, dir), dir);
    if (failed) fail_io("cannot remove the old index", dir / index_name, failed.value());
    for (auto const& writer : writers) writer->publish();
    if (split.is_sharded()) {
        auto const text = index.dump(2, ' ', true) + "\n";
        write_text(dir / index_name, text);
        bytes += static_cast<int64_t>(text.size());
    }
    for (auto const& name : Folder(dir).names()) {
        bool const ours = std::ranges::any_of(split.files, [&](auto const& f) { return f.name == name; });
        if (!ours && (named_as_shard(name) || name == "model.safetensors") && !std::filesystem::remove(dir / name, failed)) fail_io("cannot remove the file of an earlier save", dir / name, failed.value());
    }
    return bytes;
}

}  // namespace state

/// Writes a model's parameters and buffers as Python's safetensors and `from_pretrained` read them: as `dir/model.safetensors`, or, above
/// `max_shard_size`, as `model-00001-of-0000N.safetensors` with `model.safetensors.index.json`. Tied tensors are written once, with the
/// other names in the metadata. All files are durable before the first has its name; those of an earlier save go at the end. A kill in
/// between can leave files that are refused, never a mixture that is taken for a model (`save_state` has no such gap).
/// Gives the bytes written. One process writes; for the errors see `save_file`.
template <class Model>
int64_t save_model(Model const& model, std::filesystem::path const& dir, save_model_options const& options = {}) {
    return state::save_shards(drop_aliases(model_tensors(model)), dir, options);
}

}  // namespace accelerate
