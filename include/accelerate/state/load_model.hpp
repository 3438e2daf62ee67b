#pragma once

#include <accelerate/state/load_plan.hpp>
#include <accelerate/state/load_source.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <c10/core/GradMode.h>

namespace accelerate {
namespace state {

template <class Source>
LoadReport load_model_from(TensorMap const& model, Source const& source, bool strict) {
    LoadReport report;
    for (auto const& item : model) {
        check(item.second.is_meta() || item.second.numel() == 0 || item.second.storage().nbytes() > 0, code::config, "load_model: ", quote(item.first),
              " is spread over the ranks; load before `prepare` into a model that is built by hand");
        check(!item.second.is_meta(), code::config, "load_model: ", quote(item.first), " is on the meta device and has no memory to load into; materialise the model first");
    }
    auto const plan = agreed_load(model, source, strict, report);
    c10::NoGradGuard const no_grad;
    for (auto const& item : plan) item.tensor.copy_(source.read(item.key));
    return report;
}

}  // namespace state

/// Loads tensors into a model's own parameters and buffers (in place, so optimizers and ties stay as they are), converting
/// between widths of one kind of dtype. `strict`: missing and unexpected names are errors too. Either way all differences are
/// found before anything is written: error E_CK_KEYS lists them, and mismatching shapes are never loaded around.
template <class Model>
LoadReport load_into(Model const& model, TensorMap const& tensors, bool strict = true) {
    return state::load_model_from(model_tensors(model), state::MapSource(tensors), strict);
}

/// As `load_into`, from a safetensors file, from the files that an index names, or from a folder that holds one of these (Python's
/// `load_checkpoint_in_model`). Names that the files' metadata calls aliases are restored from the tensor they stand for. Memory: one
/// tensor at a time beside the model.
template <class Model>
LoadReport load_model(Model const& model, std::filesystem::path const& path, load_model_options const& options = {}) {
    return state::load_model_from(model_tensors(model), state::FileSource(path, options), options.strict);
}

}  // namespace accelerate
