#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>

#include <accelerate/optim/norm.hpp>
#include <accelerate/optim/operations.hpp>
#include <accelerate/sharding/flat.hpp>
#include <algorithm>
#include <memory>

namespace accelerate::optim {

/// Where the gradients that this rank may write are all there are: nothing to fold over ranks.
struct Alone {
    void operator()(at::Tensor&, Fold) const {}
};

namespace detail {

template <class Model>
std::vector<at::Tensor> owned_gradients(std::span<Model* const> models) {
    std::vector<at::Tensor> gradients;
    for (auto* model : models)
        for (auto const& piece : std::span<sharding::Piece const>(model->owned()))
            if (piece.gradients.numel() > 0) gradients.push_back(piece.gradients);
    return gradients;
}

/// One tensor for each parameter, in the order of registration, as Python lists them.
template <class Model>
std::vector<at::Tensor> gradients_by_parameter(std::span<Model* const> models) {
    std::vector<at::Tensor> gradients;
    for (auto* model : models) {
        std::vector<std::tuple<int64_t, int64_t, at::Tensor>> found;
        std::span<sharding::Flat const> const flats = model->flats();
        for (auto const& piece : std::span<sharding::Piece const>(model->owned()))
            for (auto const& slot : flats[static_cast<size_t>(piece.flat)].slots) {
                auto const from = std::max(slot.begin, piece.begin), to = std::min(slot.end(), piece.end);
                if (from < to) found.emplace_back(slot.registration, from, piece.gradients.narrow(0, from - piece.begin, to - from));
            }
        std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) { return std::pair(std::get<0>(a), std::get<1>(a)) < std::pair(std::get<0>(b), std::get<1>(b)); });
        for (auto& entry : found) gradients.push_back(std::move(std::get<2>(entry)));
    }
    return gradients;
}

template <class Model>
void settle(std::span<Model* const> models) {
    for (auto* model : models) model->settle();
}

}  // namespace detail

/// Scales the gradients of all models by `min(1, max_norm / (norm + 1e-6))` and gives the norm before, as a 0-dim tensor on
/// their device; never waits for a GPU. `fold(partial, how)` combines a 0-dim fp64 tensor with those of the other ranks in place,
/// where a rank owns only a part of the gradients. Costs one read of the gradients; the scaling, a read and a write more, is left
/// out on the CPU when the coefficient is 1. `Operations::Torch`: the same bits as Python's `torch.nn.utils.clip_grad_norm_`.
template <sharding::flat_model Model, class FoldOverRanks = Alone>
at::Tensor clip_grad_norm(std::span<Model* const> models, double max_norm, double p = 2, Operations operations = Operations::Fused, FoldOverRanks&& fold = {}) {
    constexpr bool alone = std::is_same_v<std::remove_cvref_t<FoldOverRanks>, Alone>;
    at::NoGradGuard const no_grad;
    auto const gradients = operations == Operations::Torch ? detail::gradients_by_parameter(models) : detail::owned_gradients(models);
    auto const on_cpu = std::all_of(gradients.begin(), gradients.end(), [](at::Tensor const& g) { return g.is_cpu(); });
    auto const wide = std::any_of(gradients.begin(), gradients.end(), [](at::Tensor const& g) { return g.scalar_type() == at::kDouble; });
    auto const dtype = wide ? at::kDouble : at::kFloat;
    Norm const measure(p);

    auto scale = [&](at::Tensor const& norm) {
        auto const coefficient = norm.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0);
        if (!gradients.empty()) at::_foreach_mul_(gradients, coefficient);
        detail::settle(models);
        return norm;
    };
    if (operations == Operations::Torch && alone && !gradients.empty()) return scale(at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, p)), p));
    if (!on_cpu) {
        auto total = measure.partial_tensor(gradients);
        fold(total, measure.fold());
        return scale(measure.finish(total).to(dtype));
    }
    double total = measure.partial(gradients);
    if constexpr (!alone) {
        auto partial = at::scalar_tensor(total, at::kDouble);
        fold(partial, measure.fold());
        total = partial.template item<double>();
    }
    auto const norm = measure.finish(total);
    auto const coefficient = wide ? max_norm / (norm + 1e-6) : static_cast<double>(static_cast<float>(max_norm / (norm + 1e-6)));
    if (!(coefficient >= 1)) {  // also when it is NaN, as in Python
        for (auto const& g : gradients) g.mul_(coefficient);
        detail::settle(models);
    }
    return at::scalar_tensor(norm, dtype);
}

/// Clamps every gradient to [-value, value], in one operation for each flat buffer.
template <sharding::flat_model Model>
void clip_grad_value(std::span<Model* const> models, double value) {
    at::NoGradGuard const no_grad;
    for (auto const& g : detail::owned_gradients(models)) g.clamp_(-value, value);
    detail::settle(models);
}

}  // namespace accelerate::optim
