#pragma once

#include <accelerate/state/load_file.hpp>
#include <accelerate/state/rename.hpp>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

namespace accelerate {

/// How `load_model` and `make` from files load.
struct load_model_options {
    bool strict = true;                    ///< names that only the model or only the files have are errors
    std::vector<Rename> rename = {};       ///< what names of the files become, in this order
    bool check_finite = false;             ///< a NaN or an infinity is error E_NONFINITE
    std::filesystem::path hub_cache = {};  ///< as for `load_file`
};

namespace state {

/// Where loaded values come from: tensors in memory, or files read tensor by tensor.
class MapSource {
public:
    explicit MapSource(TensorMap const& map) : map_(map) {}
    std::string name() const { return "the given tensors"; }
    bool contains(std::string const& key) const { return map_.contains(key); }
    at::Tensor read(std::string const& key) const { return map_.at(key); }
    at::ScalarType type(std::string const& key) const { return map_.at(key).scalar_type(); }
    at::IntArrayRef shape(std::string const& key) const { return map_.at(key).sizes(); }
    std::string alias(std::string const&) const { return {}; }
    template <class F>
    void each(F f) const {
        for (auto const& item : map_) f(item.first);
    }

private:
    TensorMap const& map_;
};

class FileSource {
public:
    /// Error E_CK_KEYS when renaming gives two tensors one name, beside those of `WeightsReader`.
    FileSource(std::filesystem::path const& path, load_model_options const& options) : weights_(path, options.hub_cache), check_finite_(options.check_finite) {
        auto const renamed = [&](std::string key) {
            for (auto const& rename : options.rename) key = rename(key);
            return key;
        };
        for (auto const& file : weights_.files()) {
            for (auto const& info : file->tensors()) {
                auto const key = renamed(info.name);
                auto const [twin, fresh] = entries_.try_emplace(key, Entry{file.get(), &info});
                if (!fresh) throw Error(code::ck_keys, concat("load_model: ", quote(twin->second.info->name), " and ", quote(info.name), " of ", name(), " are both renamed to ", quote(key)));
                order_.push_back(key);
            }
            for (auto const& [dropped, kept] : file->metadata()) aliases_.emplace(renamed(dropped), renamed(kept));
        }
    }

    std::string name() const { return weights_.name(); }
    bool contains(std::string const& key) const { return entries_.contains(key); }
    at::ScalarType type(std::string const& key) const { return entries_.at(key).info->type(); }
    at::IntArrayRef shape(std::string const& key) const { return entries_.at(key).info->shape; }
    at::Tensor read(std::string const& key) const {
        auto const& [file, info] = entries_.at(key);
        return checked(*file, *info, file->read(*info));
    }
    /// Elements [from, to) in row-major order; only these are read.
    at::Tensor read_elements(std::string const& key, int64_t from, int64_t to) const {
        auto const& [file, info] = entries_.at(key);
        return checked(*file, *info, file->read_elements(*info, from, to));
    }
    /// The name under which the files hold what had this name too when they were written.
    std::string alias(std::string const& key) const {
        auto const found = aliases_.find(key);
        return found != aliases_.end() && contains(found->second) ? found->second : std::string();
    }
    template <class F>
    void each(F f) const {
        for (auto const& name : order_) f(name);
    }

private:
    struct Entry {
        SafetensorsReader const* file;
        TensorInfo const* info;
    };

    at::Tensor checked(SafetensorsReader const& file, TensorInfo const& info, at::Tensor t) const {
        if (check_finite_) require_finite(info.name, t, file.path());
        return t;
    }

    WeightsReader weights_;
    bool check_finite_;
    std::unordered_map<std::string, Entry> entries_;
    std::vector<std::string> order_;
    std::map<std::string, std::string> aliases_;
};

}  // namespace state
}  // namespace accelerate
