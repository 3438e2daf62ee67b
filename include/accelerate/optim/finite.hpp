#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/isfinite.h>

#include <accelerate/core/reductions.hpp>
#include <accelerate/sharding/flat.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

namespace accelerate::optim {

/// Whether a tensor has neither NaN nor infinity. One read of memory; waits for a GPU.
inline bool all_finite(at::Tensor const& x) {
    if (x.numel() == 0) return true;
    if (!x.is_cpu() || x.scalar_type() != at::kFloat || !x.is_contiguous()) return at::isfinite(x).all().item<bool>();
    auto const* data = x.const_data_ptr<float>();
    if (x.numel() <= 1 << 16 || at::get_num_threads() == 1) return std::isfinite(kernel::largest_magnitude(data, x.numel()));
    std::atomic<bool> finite = true;
    at::parallel_for(0, x.numel(), int64_t{1} << 16, [&](int64_t begin, int64_t end) {
        if (!std::isfinite(kernel::largest_magnitude(data + begin, end - begin))) finite = false;
    });
    return finite;
}

/// Whether the gradients that this rank may write are finite. A read of them, unless the model knows the sum of their squares.
template <sharding::flat_model Model>
bool gradients_are_finite(Model const& model) {
    if constexpr (requires { model.known_squares(); })
        if (model.known_squares()) return true;  // of squares in fp64: finite, or not known
    return std::ranges::all_of(std::span<sharding::Piece const>(model.owned()), [](sharding::Piece const& piece) { return all_finite(piece.gradients); });
}

/// The registration number of the first parameter with a gradient that is not finite, among those that this rank may write; the
/// largest number if there is none.
template <sharding::flat_model Model>
int64_t first_non_finite(Model const& model) {
    auto first = std::numeric_limits<int64_t>::max();
    std::span<sharding::Flat const> const flats = model.flats();
    for (auto const& piece : std::span<sharding::Piece const>(model.owned()))
        for (auto const& slot : flats[static_cast<size_t>(piece.flat)].slots) {
            auto const [from, to] = slot.within(piece.begin, piece.end);
            if (from < to && slot.registration < first && !all_finite(piece.gradients.narrow(0, from - piece.begin, to - from))) first = slot.registration;
        }
    return first;
}

}  // namespace accelerate::optim
