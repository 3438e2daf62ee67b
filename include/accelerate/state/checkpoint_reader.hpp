#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <c10/util/strides.h>

#include <accelerate/state/component.hpp>
#include <accelerate/state/file_hash.hpp>
#include <accelerate/state/folder.hpp>
#include <accelerate/state/json_values.hpp>
#include <accelerate/state/manifest.hpp>
#include <accelerate/state/reader.hpp>
#include <accelerate/state/rename.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::state {

/// A checkpoint that is read: manifest and sizes are checked when it is opened. Nothing outside its folder is opened, and nothing in
/// it is executed.
class CheckpointReader {
public:
    /// Errors: E_CK_INCOMPLETE, E_CK_BAD_MANIFEST, E_CK_VERSION, E_CK_MESH, E_CK_SLICES, E_CK_FILE_SET.
    explicit CheckpointReader(std::filesystem::path const& dir) : folder_(dir) {
        auto const there = folder_.names();
        auto const has = [&](std::string const& name) { return std::ranges::binary_search(there, name); };
        check(has(Manifest::file_name), code::ck_incomplete, "load_state: ", dir, " has no ", Manifest::file_name, "; it is no checkpoint, or its save did not end");
        auto const file = folder_.open(Manifest::file_name);
        check(file.size() <= Manifest::largest, code::ck_bad_manifest, file.path(), " has ", file.size(), " bytes; at most ", Manifest::largest);
        manifest_ = Manifest::parse(file.read_text(), file.path().string());
        for (auto const& f : manifest_.files) {
            check(has(f.name), code::ck_file_set, "load_state: ", dir, " lacks ", f.name);
            auto const size = open(f).size();
            check(size == f.size, code::ck_file_set, "load_state: ", dir / f.name, " has ", size, " bytes; the manifest says ", f.size);
        }
        for (auto const& name : there)
            check(name == Manifest::file_name || std::ranges::find(manifest_.files, name, &ManifestFile::name) != manifest_.files.end(), code::ck_file_set, "load_state: ", dir, " has ", quote(name),
                  ", which is not in its manifest");
    }

    Manifest const& manifest() const { return manifest_; }
    std::filesystem::path const& dir() const { return folder_.path(); }

    /// Names of what was saved: "model", "optimizer", ...
    std::vector<std::string> components() const {
        std::vector<std::string> all;
        for (auto const* values : {&manifest_.values, &manifest_.ranks.front()})
            for (auto const& [name, value] : values->items()) all.push_back(name);
        return all;
    }

    /// Reads the files `first`, `first + step`, ... whole; error E_CK_HASH for one whose bytes are others than were written.
    void verify(int64_t first = 0, int64_t step = 1) const {
        for (auto i = first; i < manifest_.world; i += step) {
            auto const& f = manifest_.files[static_cast<size_t>(i)];
            auto const found = hash_of(open(f), Hasher::kind_of(f.hash, "load_state"));
            check(found == f.hash, code::ck_hash, "load_state: ", dir() / f.name, " has the hash ", found, "; the manifest says ", f.hash, ". It was changed after it was written");
        }
    }

    /// A component's state for this rank: of `Parts`, what `component.holds()` says it holds, else all of it.
    /// `renames` are what names of parameters in the checkpoint are called now. Error E_CK_KEYS when it has no such component, or when
    /// two names become one. Empty: there is none of this rank, and it keeps what it has. Tensors that have a place (`component.into`) are given
    /// as they are there: `read_into_place` fills them, when all states have been found to fit.
    std::optional<StateDict> state_of(Component const& component, int64_t rank, std::vector<Rename> const& renames = {}) {
        bool const own = is_own(component.whose);
        if (own && rank >= manifest_.world) {
            if (component.whose == Whose::Each) return {};
            rank = 0;
        }
        auto const& values = own ? manifest_.ranks.at(static_cast<size_t>(rank)) : manifest_.values;
        check(values.contains(component.name), code::ck_keys, "load_state: ", dir(), " has no state of \"", component.name, "\"; it has ", names(values));
        StateDict state{{}, from_json_text(values.at(component.name))};
        if (own) {
            auto& file = reader(rank);
            auto const prefix = "own/" + component.name + "/";
            for (auto const& info : file.tensors())
                if (info.name.starts_with(prefix)) state.tensors.insert(renamed(component, info.name.substr(prefix.size()), renames, state), file.read(info));
            return state;
        }
        auto const into = places(component, renames);
        StateDict held;
        if (component.whose == Whose::Parts) held = component.holds ? component.holds() : component.save();
        auto const slices = held.values.value("slices", nlohmann::json::object()), shapes = held.values.value("shapes", nlohmann::json::object());
        auto const prefix = component.name + "/";
        for (auto it = manifest_.tensors.lower_bound(prefix); it != manifest_.tensors.end() && it->first.starts_with(prefix); ++it) {
            auto const name = renamed(component, it->first.substr(prefix.size()), renames, state);
            if (component.whose == Whose::Parts && !held.tensors.contains(name)) continue;
            auto const& saved = it->second;
            if (auto const place = into.find(name); place != into.end()) {
                in_place_.push_back({saved.parts[0].file, &described(it->first, saved, saved.parts[0]), place->second});
                state.tensors.insert(name, place->second);
                continue;
            }
            if (!slices.contains(name)) {
                state.tensors.insert(name, whole(it->first, saved));
                continue;
            }
            auto const [from, to] = slices.at(name).get<std::pair<int64_t, int64_t>>();
            auto const strides = shapes.at(name).at("strides").get<std::vector<int64_t>>();
            check(shapes.at(name).at("shape").get<std::vector<int64_t>>() == saved.shape, code::ck_keys, "load_state: ", quote(it->first), " has shape ", at::IntArrayRef(saved.shape), " in ", dir(), "; here it is ",
                  shapes.at(name).at("shape").dump());
            auto const row_major = c10::contiguous_strides(saved.shape);
            at::IntArrayRef const order = saved.whole ? at::IntArrayRef(row_major) : at::IntArrayRef(saved.strides);
            if (order == at::IntArrayRef(strides)) {
                state.tensors.insert(name, elements(it->first, saved, from, to));
            } else {
                auto in_memory_order = at::empty_strided(saved.shape, strides, at::TensorOptions(saved.dtype));
                in_memory_order.copy_(whole(it->first, saved));
                state.tensors.insert(name, in_memory_order.as_strided({saved.numel()}, {1}).narrow(0, from, to - from));
            }
            state.values["slices"][name] = {from, to};
        }
        return state;
    }

    /// Reads what the states given so far have a place for right into it.
    void read_into_place() {
        for (auto const& [file, info, place] : std::exchange(in_place_, {})) reader(file).read_into(*info, place);
    }

private:
    struct InPlace {
        int64_t file;
        TensorInfo const* info;
        at::Tensor place;
    };

    static std::string renamed(Component const& component, std::string const& name, std::vector<Rename> const& renames, StateDict const& state) {
        if (component.names == Names::Other || renames.empty()) return name;
        auto const begin = component.names == Names::State ? name.find('.') + 1 : 0;
        auto key = name.substr(begin);
        for (auto const& rename : renames) key = rename(key);
        key = name.substr(0, begin) + key;
        check(!state.tensors.contains(key), code::ck_keys, "load_state: two tensors of \"", component.name, "\" are renamed to ", quote(key));
        return key;
    }

    /// Where to read a component's tensors right into: nowhere unless there is exactly one of the same shape and dtype for each, so that what
    /// does not fit is found before anything is written.
    TensorMap places(Component const& component, std::vector<Rename> const& renames) const {
        if (!component.into || component.whose != Whose::All) return {};
        auto into = component.into();
        StateDict seen;
        auto const prefix = component.name + "/";
        for (auto it = manifest_.tensors.lower_bound(prefix); it != manifest_.tensors.end() && it->first.starts_with(prefix); ++it) {
            auto const& saved = it->second;
            auto const name = renamed(component, it->first.substr(prefix.size()), renames, seen);
            auto const place = into.find(name);
            if (place == into.end() || !saved.whole || saved.parts.size() != 1) return {};
            auto const& t = place->second;
            if (!t.device().is_cpu() || !t.is_contiguous() || t.scalar_type() != saved.dtype || t.sizes() != at::IntArrayRef(saved.shape)) return {};
            seen.tensors.insert(name, t);
        }
        return seen.tensors.size() == into.size() ? std::move(into) : TensorMap();
    }

    static std::string names(nlohmann::json const& values) {
        std::string all;
        for (auto const& [name, value] : values.items()) all += (all.empty() ? "\"" : ", \"") + name + "\"";
        return all.empty() ? "none" : all;
    }

    /// What is no regular file in the folder itself is not the file that the manifest names.
    InputFile open(ManifestFile const& file) const try {
        return folder_.open(file.name);
    } catch (Error const& e) {
        if (e.code() != code::symlink && e.code() != code::not_regular) throw;
        throw Error(code::ck_file_set, concat("load_state: ", dir(), " lacks ", file.name, ": ", e.reason()));
    }

    SafetensorsReader& reader(int64_t file) {
        auto& r = readers_[file];
        if (!r) r = std::make_unique<SafetensorsReader>(open(manifest_.files.at(static_cast<size_t>(file))));
        return *r;
    }

    /// Elements [from, to), counted from the tensor's first, of what one file has of it; only their bytes are read.
    at::Tensor part(std::string const& name, ManifestTensor const& t, ManifestPart const& p, int64_t from, int64_t to) {
        return reader(p.file).read_elements(described(name, t, p), from - p.from, to - p.from);
    }

    /// The entry of a part in its file, which must be as the manifest says.
    TensorInfo const& described(std::string const& name, ManifestTensor const& t, ManifestPart const& p) {
        auto const* info = reader(p.file).find(name);
        check(info != nullptr, code::ck_file_set, "load_state: ", reader(p.file).path(), " lacks tensor ", quote(name));
        auto const item = static_cast<int64_t>(c10::elementSize(t.dtype));
        check(info->type() == t.dtype && info->end - info->begin == (p.to - p.from) * item, code::ck_slices, "load_state: tensor ", quote(name), " in ", reader(p.file).path(), " is not what the manifest says");
        return *info;
    }

    at::Tensor whole(std::string const& name, ManifestTensor const& t) {
        auto const all = elements(name, t, 0, t.numel());
        return t.whole ? all.view(t.shape) : all.as_strided(t.shape, t.strides).contiguous();
    }

    /// Elements [from, to): of a tensor in parts in the order of memory, of one that is whole in row-major order.
    at::Tensor elements(std::string const& name, ManifestTensor const& t, int64_t from, int64_t to) {
        if (t.parts.size() == 1) return part(name, t, t.parts[0], from, to);
        auto all = at::empty({to - from}, at::TensorOptions(t.dtype));
        for (auto const& p : t.parts) {
            auto const begin = std::max(p.from, from), end = std::min(p.to, to);
            if (begin < end) all.narrow(0, begin - from, end - begin).copy_(part(name, t, p, begin, end));
        }
        return all;
    }

    Folder folder_;
    Manifest manifest_;
    std::map<int64_t, std::unique_ptr<SafetensorsReader>> readers_;
    std::vector<InPlace> in_place_;
};

}  // namespace accelerate::state
