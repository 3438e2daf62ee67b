#pragma once

#include <accelerate/state/aliases.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <accelerate/state/save_file.hpp>

namespace accelerate {

/// Writes a model's parameters and buffers as `dir/model.safetensors`, which Python's safetensors (and `from_pretrained`) opens:
/// tied tensors once, with the other names in the metadata beside `format`. One process writes; see `save_file` for the errors.
template <class Model>
void save_model(Model const& model, std::filesystem::path const& dir, std::map<std::string, std::string> metadata = {}) {
    auto const unaliased = drop_aliases(model_tensors(model));
    metadata.emplace("format", "pt");
    metadata.insert(unaliased.aliases.begin(), unaliased.aliases.end());
    save_file(unaliased.tensors, dir / "model.safetensors", metadata);
}

}  // namespace accelerate
