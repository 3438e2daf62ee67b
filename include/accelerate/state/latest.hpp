#pragma once

#include <accelerate/state/folder.hpp>
#include <accelerate/state/output_file.hpp>
#include <accelerate/state/quote.hpp>
#include <filesystem>
#include <string>

namespace accelerate::state {

/// The file `latest` in a folder of checkpoints: the name of the one that was saved last, for people and scripts.
inline void write_latest(std::filesystem::path const& folder, std::string const& name) {
    write_text(folder / "latest", name + "\n");
}

/// Error E_CK_LATEST when `latest` is there and is not a file that names a folder beside it.
inline void check_latest(std::filesystem::path const& folder) {
    auto const path = folder / "latest";
    if (!std::filesystem::exists(std::filesystem::symlink_status(path))) return;
    try {
        auto const file = Folder(folder).open("latest");
        std::string name(static_cast<size_t>(std::min<int64_t>(file.size(), 300)), '\0');
        file.read_at(name.data(), static_cast<int64_t>(name.size()), 0);
        if (name.ends_with('\n')) name.pop_back();
        check(plain_name(name), code::ck_latest, path, " says ", quote(name), ", which is not the name of a folder beside it");
        check(std::filesystem::is_directory(std::filesystem::symlink_status(folder / name)), code::ck_latest, path, " says ", quote(name), ", which is not there");
    } catch (Error const& e) {
        throw Error(code::ck_latest, e.reason());
    }
}

}  // namespace accelerate::state
