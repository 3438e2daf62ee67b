#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/state/load_file.hpp>
#include <accelerate/state/save_file.hpp>
#include <concepts>
#include <filesystem>

namespace accelerate {

/// Writes tensors as `save_file` does (Python's `accelerate.utils.save`).
inline void save(TensorMap const& tensors, std::filesystem::path const& path) { save_file(tensors, path, {{"format", "pt"}}); }

/// Writes a state, or that of an object with `state_dict()`, as one safetensors file: tensors as such, values as JSON text in its metadata.
inline void save(StateDict const& state, std::filesystem::path const& path) { save_file(state.tensors, path, {{"format", "pt"}, {"values", state.values.dump()}}); }
template <class Object>
    requires requires(Object const& object) { { object.state_dict() } -> std::convertible_to<StateDict>; }
void save(Object const& object, std::filesystem::path const& path) { save(StateDict(object.state_dict()), path); }

/// What `save` wrote; of other safetensors files the tensors. Nothing is unpickled. Errors of `load_file`; E_DATA for values that are no JSON object.
inline StateDict load(std::filesystem::path const& path) {
    state::SafetensorsReader const reader(path);
    StateDict state;
    for (auto const& info : reader.tensors()) state.tensors.insert(info.name, reader.read(info));
    if (auto const values = reader.metadata().find("values"); values != reader.metadata().end()) {
        state.values = nlohmann::json::parse(values->second, nullptr, false);
        check(state.values.is_object(), code::data, "load(", path, "): \"values\" in its metadata is no JSON object");
    }
    return state;
}

}  // namespace accelerate
