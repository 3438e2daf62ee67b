#pragma once

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/data/tensors.hpp>
#include <accelerate/state/reader.hpp>
#include <string>
#include <vector>

namespace accelerate::data {

/// A safetensors file as a data set in memory: sample i is row i (dimension 0) of each tensor, by name, as a `TensorMap`. A batch
/// is the same of gathered rows.
///
///     data::SafetensorsDataset dataset("train.safetensors", {"images", "labels"});
///     for (auto& batch : train) loss(model(batch.at("images")), batch.at("labels"));
class SafetensorsDataset {
public:
    /// Reads the tensors of those names, or all if there are none; nothing else is read. Errors: E_DATA for a name that is not in
    /// the file, for a file without tensors, and naming two tensors that have not the same number of rows; E_IO and the E_ST_*
    /// codes as `load_file`.
    explicit SafetensorsDataset(std::filesystem::path const& path, std::vector<std::string> const& names = {}) {
        state::SafetensorsReader const reader(path);
        for (auto const& name : names) tensors_.insert(name, reader.read(name));
        if (names.empty())
            for (auto const& info : reader.tensors()) tensors_.insert(info.name, reader.read(info));
        check(!tensors_.empty(), code::data, "data::SafetensorsDataset: ", path, " has no tensors");
        auto const& [first, rows] = *tensors_.begin();
        for (auto const& [name, t] : tensors_)
            check(t.dim() > 0 && rows.dim() > 0 && t.size(0) == rows.size(0), code::data, "data::SafetensorsDataset: ", path, ": ", state::quote(first),
                  " has shape ", rows.sizes(), ", ", state::quote(name), " has ", t.sizes(),
                  "; all must have the same size in dimension 0: name those that have");
    }

    /// What was read.
    TensorMap const& tensors() const { return tensors_; }
    size_t size() const { return static_cast<size_t>(tensors_.begin()->second.size(0)); }
    TensorMap operator[](size_t i) const {
        return each([&](at::Tensor const& t) { return t.select(0, static_cast<int64_t>(i)); });
    }
    TensorMap batch(std::span<int64_t const> indices) const {
        return each([&](at::Tensor const& t) { return gather_rows(t, indices); });
    }

private:
    template <class F>
    TensorMap each(F const& f) const {
        TensorMap out;
        for (auto const& [name, t] : tensors_) out.insert(name, f(t));
        return out;
    }

    TensorMap tensors_;
};

}  // namespace accelerate::data
