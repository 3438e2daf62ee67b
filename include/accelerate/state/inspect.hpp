#pragma once

#include <accelerate/state/checkpoint_reader.hpp>
#include <string>
#include <vector>

namespace accelerate {

/// What a checkpoint holds.
struct CheckpointInfo {
    std::filesystem::path dir;
    int64_t world = 0;                    ///< ranks that wrote it
    int64_t bytes = 0;                    ///< of its files
    int64_t tensors = 0, elements = 0;    ///< of what the ranks share; what each has of its own is not counted
    std::vector<std::string> components;  ///< "model", "optimizer", ...
    nlohmann::json about;                 ///< policies and versions

    /// A few lines, to print.
    std::string describe() const {
        std::string list;
        for (auto const& c : components) list += (list.empty() ? "" : ", ") + c;
        return concat(dir.string(), ": ", bytes, " bytes by ", world, world == 1 ? " rank, " : " ranks, ", tensors, " shared tensors of ", elements, " elements\n  ", list, "\n  ", about.dump(), "\n");
    }
};

/// Looks into a checkpoint without reading its tensors. Errors as `load_state`'s, but hashes are not looked at.
inline CheckpointInfo inspect(std::filesystem::path const& dir) {
    state::CheckpointReader const reader(dir);
    auto const& m = reader.manifest();
    CheckpointInfo info{dir, m.world, 0, static_cast<int64_t>(m.tensors.size()), 0, reader.components(), m.about};
    for (auto const& f : m.files) info.bytes += f.size;
    for (auto const& [name, t] : m.tensors) info.elements += t.numel();
    return info;
}

/// Reads every file of a checkpoint and compares its hash with the manifest's; error E_CK_HASH for the first that differs, and those of
/// `inspect`.
inline void verify(std::filesystem::path const& dir) { state::CheckpointReader(dir).verify(); }

}  // namespace accelerate
