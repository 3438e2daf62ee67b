#pragma once

#include <accelerate/state/folder.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <accelerate/state/save_file.hpp>
#include <accelerate/state/split_state_dict.hpp>
#include <algorithm>
#include <exception>
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

/// Where one process has all tensors of a model: one after another.
struct InOrder {
    template <class Tensors, class F>
    void operator()(Tensors const& tensors, F const& f) const {
        for (size_t i = 0; i < tensors.size(); ++i) f(i);
    }
};

/// Writes tensors as a model's files; see `save_model`. `visit(tensors, f)` calls f(i) for each of them in their order, when its values are
/// there. Where that takes several ranks, all of them call this and the one that `writes` does: what fails there is thrown behind the last
/// visit, so that no rank waits for it in vain. Gives the bytes written.
template <class Visit = InOrder>
int64_t save_shards(Unaliased const& model, std::filesystem::path const& dir, save_model_options const& options, bool writes = true, Visit const& visit = {}) {
    constexpr char const* index_name = "model.safetensors.index.json";
    auto const split = split_state_dict_into_shards(model.tensors, options.max_shard_size);
    std::vector<TensorMap> tensors(split.files.size());  // outlive the writers
    std::vector<std::vector<Outgoing>> orders;
    std::vector<at::Tensor> visited;
    std::vector<size_t> file_of;  // of the visited
    for (size_t f = 0; f < split.files.size(); ++f) {
        for (auto const& name : split.files[f].tensors) tensors[f].insert(name, model.tensors.at(name));
        orders.push_back(outgoing_order(tensors[f], dir / split.files[f].name));
        for (auto const& t : orders.back()) visited.push_back(*t.tensor), file_of.push_back(f);
    }

    std::vector<std::unique_ptr<SafetensorsWriter>> writers;
    std::exception_ptr failure;
    auto const unless_failed = [&](auto const& act) {
        if (!writes || failure) return;
        try {
            act();
        } catch (...) {
            failure = std::current_exception();
        }
    };
    unless_failed([&] {
        for (size_t f = 0; f < split.files.size(); ++f) {
            auto metadata = options.metadata;
            metadata.emplace("format", "pt");
            for (auto const& [alias, kept] : model.aliases)
                if (tensors[f].contains(kept)) metadata.emplace(alias, kept);
            writers.push_back(std::make_unique<SafetensorsWriter>(std::move(orders[f]), dir / split.files[f].name, metadata));
        }
    });
    visit(visited, [&](size_t i) { unless_failed([&] { writers[file_of[i]]->write_next(); }); });
    unless_failed([&] {
        for (auto const& writer : writers) writer->finish();
    });
    if (failure) std::rethrow_exception(failure);
    if (!writes) return 0;

    // From here on a kill may leave files of two saves. Without an index they are refused, so it goes first and comes last.
    std::error_code failed;
    if (std::filesystem::remove(dir / index_name, failed)) sync_folder(open_folder(dir, dir), dir);
    if (failed) fail_io("cannot remove the old index", dir / index_name, failed.value());
    int64_t bytes = 0;
    for (auto const& writer : writers) writer->publish(), bytes += writer->bytes();
    if (split.is_sharded()) {
        nlohmann::json index{{"metadata", {{"total_size", split.total_size}}}, {"weight_map", nlohmann::json::object()}};
        for (auto const& file : split.files)
            for (auto const& name : file.tensors) index["weight_map"][name] = file.name;
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
