#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/index_select.h>

#include <accelerate/core/error.hpp>
#include <array>
#include <cstring>
#include <span>
#include <tuple>

namespace accelerate::data {

/// A new tensor of those rows (dimension 0) of `from`, in that order. Contiguous rows in main memory are copied at memory speed.
inline at::Tensor gather_rows(at::Tensor const& from, std::span<int64_t const> rows) {
    auto const n = static_cast<int64_t>(rows.size());
    if (!from.is_cpu() || !from.is_contiguous() || from.requires_grad()) {
        auto const index = at::from_blob(const_cast<int64_t*>(rows.data()), {n}, at::TensorOptions(at::kLong));
        return at::index_select(from, 0, index.to(from.device()));
    }
    auto sizes = from.sizes().vec();
    sizes[0] = n;
    auto out = at::empty(sizes, from.options());
    auto const bytes = static_cast<int64_t>(from.nbytes()) / std::max<int64_t>(1, from.size(0));
    auto const* source = static_cast<char const*>(from.const_data_ptr());
    auto* to = static_cast<char*>(out.mutable_data_ptr());
    if (bytes == 0) return out;
    for (auto row : rows) {
        std::memcpy(to, source + row * bytes, static_cast<size_t>(bytes));
        to += bytes;
    }
    return out;
}

/// A data set in memory: sample i is row i of each tensor, as a tensor where there is one and as a tuple where there are several.
/// Batches are gathered row by row into new memory, without a tensor for each sample. Holds the tensors, copies nothing.
///
///     data::Loader{data::Tensors{images, labels}, {.batch_size = 64, .shuffle = true}}
template <size_t N>
class Tensors {
public:
    /// Error E_DATA when a tensor has no rows (0-dim) or another number of rows than the first.
    template <std::convertible_to<at::Tensor>... T>
        requires(sizeof...(T) == N)
    explicit Tensors(T... tensors) : tensors_{std::move(tensors)...} {
        for (auto const& t : tensors_)
            check(t.dim() > 0 && t.size(0) == tensors_[0].size(0), code::data, "data::Tensors: shapes ", tensors_[0].sizes(), " and ", t.sizes(),
                  "; all must have the same size in dimension 0");
    }

    size_t size() const { return static_cast<size_t>(tensors_[0].size(0)); }
    auto operator[](size_t i) const {
        return each([&](at::Tensor const& t) { return t.select(0, static_cast<int64_t>(i)); });
    }
    auto batch(std::span<int64_t const> indices) const {
        return each([&](at::Tensor const& t) { return gather_rows(t, indices); });
    }

private:
    template <class F>
    auto each(F const& f) const {
        if constexpr (N == 1) return f(tensors_[0]);
        else return std::apply([&](auto const&... t) { return std::tuple{f(t)...}; }, tensors_);
    }

    std::array<at::Tensor, N> tensors_;
};

template <std::convertible_to<at::Tensor>... T>
Tensors(T...) -> Tensors<sizeof...(T)>;

}  // namespace accelerate::data
