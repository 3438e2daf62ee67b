#pragma once

#include <accelerate/state/component.hpp>
#include <accelerate/state/file_hash.hpp>
#include <accelerate/state/json_values.hpp>
#include <accelerate/state/leftovers.hpp>
#include <accelerate/state/manifest.hpp>
#include <accelerate/state/output_file.hpp>
#include <accelerate/state/save_file.hpp>
#include <accelerate/state/together.hpp>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace accelerate::state {

namespace detail {

inline std::string rank_file(int64_t rank) {
    char name[40];
    std::snprintf(name, sizeof name, "rank-%05lld.safetensors", static_cast<long long>(rank));
    return name;
}

inline void only_for_owner(std::filesystem::path const& path) {
    if (::chmod(path.c_str(), 0600) != 0) fail_io("cannot set the mode of", path, errno);
}

/// Gives a folder its name, unless that is taken: E_EXISTS.
inline void rename_to_new(std::filesystem::path const& from, std::filesystem::path const& to) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
    check(errno != EEXIST && errno != ENOTEMPTY, code::exists, "save_state: there is something at ", to, " already");
    if (errno != EINVAL && errno != ENOSYS) fail_io("cannot rename a folder to", to, errno);
    std::error_code failed;  // a file system that cannot do it in one step
    check(!std::filesystem::exists(to), code::exists, "save_state: there is something at ", to, " already");
    std::filesystem::rename(from, to, failed);
    if (failed) fail_io("cannot rename a folder to", to, failed.value());
}

/// What one rank puts into its file, and what it tells of it.
struct Contribution {
    TensorMap tensors;
    nlohmann::json tells = {{"values", nlohmann::json::object()}, {"own", nlohmann::json::object()}, {"tensors", nlohmann::json::object()}};
};

inline Contribution contribution(std::vector<Component> const& components, int64_t rank) {
    Contribution c;
    for (auto const& component : components) {
        auto state = component.save();
        nlohmann::json slices = nlohmann::json::object(), shapes = slices;
        if (component.whose == Whose::Parts) {
            slices = state.values.value("slices", slices), shapes = state.values.value("shapes", shapes);
            state.values.erase("slices"), state.values.erase("shapes");
        }
        bool const own = is_own(component.whose);
        c.tells[own ? "own" : "values"][component.name] = to_json_text(component.name, std::move(state.values));
        for (auto const& [name, tensor] : state.tensors) {
            auto const key = (own ? "own/" : "") + component.name + "/" + name;
            auto const dtype = dtype_to_save(key, tensor, [] { return "save_state"; });
            bool const part = slices.contains(name);
            if (component.whose == Whose::All && rank != 0) continue;
            c.tensors.insert(key, tensor);
            if (own) continue;
            auto& entry = c.tells["tensors"][key] = {{"dtype", dtypes[static_cast<size_t>(dtype)].name}};
            if (part) entry.update({{"shape", shapes.at(name).at("shape")}, {"strides", shapes.at(name).at("strides")}, {"from", slices.at(name).at(0)}, {"to", slices.at(name).at(1)}});
            else entry["shape"] = tensor.sizes().vec();
        }
    }
    return c;
}

/// What all ranks have told, as one.
inline Manifest merged(std::vector<std::string> const& told, nlohmann::json about) {
    Manifest m;
    m.world = static_cast<int64_t>(told.size());
    m.about = std::move(about);
    for (int64_t r = 0; r < m.world; ++r) {
        auto const j = nlohmann::json::parse(told[static_cast<size_t>(r)]);
        m.files.push_back({rank_file(r), j.at("size").get<int64_t>(), j.at("hash").get<std::string>()});
        if (r == 0) m.values = j.at("values");
        m.ranks.push_back(j.at("own"));
        for (auto const& [name, entry] : j.at("tensors").items()) {
            auto& t = m.tensors[name];
            t.dtype = dtypes[static_cast<size_t>(find_dtype(entry.at("dtype").get<std::string>()))].type;
            t.shape = entry.at("shape").get<std::vector<int64_t>>();
            t.whole = !entry.contains("from");
            if (!t.whole) t.strides = entry.at("strides").get<std::vector<int64_t>>();
            t.parts.push_back({r, t.whole ? 0 : entry.at("from").get<int64_t>(), t.whole ? t.numel() : entry.at("to").get<int64_t>()});
        }
    }
    return m;
}

inline void discard_checkpoint(std::filesystem::path const& hidden) {
    std::error_code ignored;
    std::filesystem::remove_all(hidden, ignored);
}

/// A folder for a checkpoint that is to be called `dir`: hidden, beside it, made by rank 0 and known to all. Collective. Errors: E_EXISTS, E_IO.
template <class Comm>
std::filesystem::path begin_checkpoint(Comm const& comm, std::filesystem::path const& dir) {
    std::string hidden;
    try {
        together(comm, [&] {
            if (comm.rank() != 0) return;
            struct stat there {};
            auto const error = ::lstat(dir.c_str(), &there) == 0 ? 0 : errno;
            check(error != 0, code::exists, "save_state: there is something at ", dir, " already");
            if (error != ENOENT) fail_io("cannot make the folder", dir, error);
            remove_leftovers(folder_for(dir));
            auto made = (folder_for(dir) / hidden_name(dir.filename().string())).string();
            if (::mkdir(made.c_str(), 0700) != 0) fail_io("cannot make the folder", made, errno);
            hidden = std::move(made);
        });
        comm.broadcast_bytes(hidden, 0);
    } catch (...) {
        if (comm.rank() == 0 && !hidden.empty()) discard_checkpoint(hidden);
        throw;
    }
    return hidden;
}

/// Writes one rank's file into the hidden folder, durable; gives what rank 0 must know of it. `between()` is called after each piece.
template <class Between>
std::string write_part(std::filesystem::path const& hidden, Contribution c, int64_t rank, Hash hash, Between const& between) {
    auto const path = hidden / rank_file(rank);
    SafetensorsWriter file(c.tensors, path, {});
    Hasher hasher(hash);
    file.write([&](void const* data, int64_t bytes) {
        hasher.add(data, bytes);
        between();
    });
    file.publish();
    only_for_owner(path);
    c.tells["size"] = file.bytes(), c.tells["hash"] = hasher.text();
    return c.tells.dump();
}

/// Adds the manifest to the hidden folder and gives that its name. By rank 0, when all parts are durable. Gives the bytes of the parts.
inline int64_t publish_checkpoint(std::filesystem::path const& hidden, std::filesystem::path const& dir, std::vector<std::string> const& told, nlohmann::json const& about) {
    auto const manifest = merged(told, about);
    auto const text = manifest.text();
    static_cast<void>(Manifest::parse(text, "save_state"));  // what could not be read back is an error now
    auto const path = hidden / Manifest::file_name;
    write_text(path, text);
    only_for_owner(path);
    rename_to_new(hidden, dir);
    sync_folder(open_folder(folder_for(dir), dir), dir);
    int64_t bytes = 0;
    for (auto const& f : manifest.files) bytes += f.size;
    return bytes;
}

}  // namespace detail

/// Writes the components as the folder `dir`, which appears under its name whole or not at all: each rank writes a file into a hidden
/// folder beside it and makes it durable, rank 0 adds the manifest, renames, and makes that durable. Collective; an error on one rank is the
/// same error on all, and leaves nothing behind. Gives the bytes written by all ranks, on rank 0. Errors: E_EXISTS, E_NO_SPACE, E_IO.
template <class Comm>
int64_t write_checkpoint(Comm const& comm, std::filesystem::path const& dir, std::vector<Component> const& components, nlohmann::json const& about, Hash hash = Hash::Xxh3) {
    auto const hidden = detail::begin_checkpoint(comm, dir);
    int64_t bytes = 0;
    try {
        std::string mine;
        together(comm, [&] { mine = detail::write_part(hidden, detail::contribution(components, comm.rank()), comm.rank(), hash, [] {}); });
        auto const told = comm.all_gather_bytes(mine);
        together(comm, [&] {
            if (comm.rank() == 0) bytes = detail::publish_checkpoint(hidden, dir, told, about);
        });
    } catch (...) {
        if (comm.rank() == 0) detail::discard_checkpoint(hidden);
        throw;
    }
    return bytes;
}

}  // namespace accelerate::state
