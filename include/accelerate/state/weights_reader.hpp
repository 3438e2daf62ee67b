#pragma once

#include <accelerate/core/log.hpp>
#include <accelerate/state/folder.hpp>
#include <accelerate/state/reader.hpp>
#include <accelerate/state/safetensors_index.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace accelerate::state {

/// The tensors of a model on disk: of one safetensors file; of the files that an index (`*.safetensors.index.json`) names; or of what a folder
/// holds, which is one of these. All headers are read and compared with the index when it is opened, tensors when they are asked for.
/// Nothing is opened but the file that was named, or files in the folder that was.
class WeightsReader {
public:
    /// Errors: E_IO, E_NOT_REGULAR, E_SYMLINK, E_PICKLE_REFUSED and the E_ST_* and E_IX_* codes. `hub_cache`: see `Folder`.
    explicit WeightsReader(std::filesystem::path path, std::filesystem::path const& hub_cache = {}) : path_(std::move(path)) {
        std::error_code ignored;
        if (std::filesystem::is_directory(path_, ignored)) open_folder(Folder(path_, hub_cache));
        else if (path_.extension() == ".json") open_index(Folder(path_.has_parent_path() ? path_.parent_path() : ".", hub_cache), path_.filename().string());
        else {
            refuse_pickle(path_.filename().string());
            files_.push_back(std::make_unique<SafetensorsReader>(path_));
        }
    }

    /// The file or index that was opened, quoted.
    std::string name() const { return quote_path(path_); }
    std::vector<std::unique_ptr<SafetensorsReader>> const& files() const { return files_; }

private:
    std::string in_folder(Folder const& folder) const { return concat("the folder ", quote_path(folder.path())); }

    void refuse_pickle(std::string const& file) const {
        check(!named_as_pickle(file), code::pickle_refused, name(), " is a pickle by its name; those can execute code and are never read. Convert it with Python's safetensors.torch.save_file");
    }

    void open_folder(Folder const& folder) {
        std::vector<std::string> indexes, singles, pickles;
        for (auto const& file : folder.names()) {
            if (file.ends_with(index_suffix)) indexes.push_back(file);
            else if (file.ends_with(".safetensors")) singles.push_back(file);
            else if (named_as_pickle(file) || file.ends_with(".bin.index.json")) pickles.push_back(file);
        }
        check(indexes.size() < 2, code::ix_ambiguous, in_folder(folder), " has ", indexes.size(), " indexes, ", indexes.size() < 2 ? "" : quote(indexes[0]) + " and " + quote(indexes[1]), "; name the one that is meant");
        if (!indexes.empty()) {
            auto const whole = indexes[0].substr(0, indexes[0].size() - index_suffix.size()) + ".safetensors";
            check(std::ranges::find(singles, whole) == singles.end(), code::ix_ambiguous, in_folder(folder), " has the index ", quote(indexes[0]), " and the file ", quote(whole), "; name the one that is meant");
            open_index(folder, indexes[0]);
            for (auto const& file : singles)
                if (std::ranges::find(index_.files, file) == index_.files.end()) log::warning_once("W_IX_STALE: ", in_folder(folder), " has ", quote(file), ", of which its index knows nothing; is it left over from another save?");
            return;
        }
        bool const model = std::ranges::find(singles, "model.safetensors") != singles.end();
        if (singles.empty()) {
            check(pickles.empty(), code::pickle_refused, in_folder(folder), " has no safetensors file but ", pickles.empty() ? "" : quote(pickles[0]), ", a pickle by its name; those can execute code and are never read");
            throw Error(code::not_regular, concat(in_folder(folder), " has neither model.safetensors nor an index"));
        }
        check(model || singles.size() == 1, code::ix_ambiguous, in_folder(folder), " has ", singles.size(), " safetensors files and no index, among them ", quote(singles[0]), "; name the one that is meant. Parts of one model without their index are a save that did not end");
        path_ = folder.path() / (model ? "model.safetensors" : singles[0]);
        files_.push_back(std::make_unique<SafetensorsReader>(folder.open(path_.filename().string())));
    }

    void open_index(Folder const& folder, std::string const& file) {
        auto const in = folder.open(file);
        path_ = in.path();
        check(in.size() <= index_size_limit, code::ix_too_large, "index ", name(), " has ", in.size(), " bytes; at most ", index_size_limit);
        index_ = parse_safetensors_index(in.read_text(), path_.string());
        for (auto const& shard : index_.files) files_.push_back(open_shard(folder, shard));
        compare();
    }

    static std::unique_ptr<SafetensorsReader> open_shard(Folder const& folder, std::string const& shard) {
        std::error_code failed;
        auto const path = folder.path() / shard;
        auto const status = std::filesystem::symlink_status(path, failed);
        check(std::filesystem::exists(status), code::ix_missing_shard, "the file ", quote_path(path), " that the index names is not there");
        auto in = folder.open(shard);
        check(in.size() > 0, code::ix_missing_shard, "the file ", quote_path(path), " that the index names is empty");
        return std::make_unique<SafetensorsReader>(std::move(in));
    }

    /// Index and shards must say the same.
    void compare() const {
        auto const index = name();
        int64_t total = 0;
        auto const fail = [&](Code const& code, std::string const& tensor, size_t file, char const* what, std::string const& more = {}) {
            throw Error(code, concat("index ", index, " and ", quote_path(files_[file]->path()), ": tensor ", quote(tensor), what, more));
        };
        for (size_t f = 0; f < files_.size(); ++f)
            for (auto const& info : files_[f]->tensors()) {
                auto const listed = index_.tensors.find(info.name);
                if (listed == index_.tensors.end()) fail(code::ix_extra_tensor, info.name, f, " is in the file, but not in the index");
                if (listed->second != f) fail(code::ix_conflict, info.name, f, " is in this file, but the index says ", quote(index_.files[listed->second]));
                total += info.end - info.begin;
            }
        for (auto const& [tensor, f] : index_.tensors)
            if (files_[f]->find(tensor) == nullptr) fail(code::ix_missing_tensor, tensor, f, " is not in the file, where the index says it is");
        check(!index_.total_size || *index_.total_size == total, code::ix_total_size, "index ", index, " says total_size ", index_.total_size.value_or(0), "; its files hold ", total, " bytes of tensors");
    }

    std::filesystem::path path_;
    SafetensorsIndex index_;
    std::vector<std::unique_ptr<SafetensorsReader>> files_;
};

}  // namespace accelerate::state
