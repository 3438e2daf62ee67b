#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <accelerate/state/load_plan.hpp>
#include <accelerate/state/load_source.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <c10/core/GradMode.h>
#include <concepts>
#include <filesystem>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>

namespace accelerate {

/// Files from which `accelerator.make<Model>(acc::from(path), arguments...)` takes the model's values.
struct From {
    std::filesystem::path path;
    load_model_options options = {};
};

/// A model's values come from a safetensors file, from the files that an index names, or from a folder that holds one of these, instead of from its
/// constructors: every rank reads only what it keeps. With `strict = false` what the files lack is initialised as ever.
inline From from(std::filesystem::path path, load_model_options options = {}) { return {std::move(path), std::move(options)}; }

/// Whether the first of some arguments is `from(...)`.
template <class... Arguments>
inline constexpr bool begins_with_from = false;
template <class First, class... Rest>
inline constexpr bool begins_with_from<First, Rest...> = std::same_as<std::remove_cvref_t<First>, From>;

namespace state {

/// Values for a model that `make` has recorded: see `module::NoValues` for the two functions.
class FileValues {
public:
    /// Compares the files with the model, which has no memory yet. Errors of `load_model`.
    template <class Module>  // a template, so that a file which makes nothing from files compiles none of it
    FileValues(Module const& root, From const& from) : source_(from.path, from.options) {
        LoadReport report;
        for (auto& [key, tensor] : agreed_load(model_tensors(root), source_, from.options.strict, report)) keys_.emplace(tensor.unsafeGetTensorImpl(), key);
    }

    bool has(at::Tensor const& recorded) const { return keys_.contains(recorded.unsafeGetTensorImpl()); }
    bool fill(at::Tensor const& recorded, at::Tensor const& into, int64_t from, int64_t to) const {
        auto const key = keys_.find(recorded.unsafeGetTensorImpl());
        if (key == keys_.end()) return false;
        c10::NoGradGuard const no_grad;
        // The files' order is row-major: a stretch of memory is a stretch of the file only where the tensor's is too.
        if (into.is_contiguous()) into.view({-1}).narrow(0, from, to - from).copy_(source_.read_elements(key->second, from, to));
        else into.copy_(source_.read(key->second));
        return true;
    }

private:
    FileSource source_;
    std::unordered_map<c10::TensorImpl*, std::string> keys_;
};

}  // namespace state
}  // namespace accelerate
