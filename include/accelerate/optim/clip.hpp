#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>

#include <accelerate/optim/norm.hpp>
#include <accelerate/optim/operations.hpp>
#include <accelerate/sharding/flat.hpp>
#include <algorithm>
#include <memory>
#include <optional>

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
                auto const [from, to] = slot.within(piece.begin, piece.end);
                if (from < to) found.emplace_back(slot.registration, from, piece.gradients.narrow(0, from - piece.begin, to - from));
            }
        std::sort(found.begin(), found.end(), [](auto const& a, auto const& b) { return std::pair(std::get<0>(a), std::get<1>(a)) < std::pair(std::get<0>(b), std::get<1>(b)); });
        for (auto& entry : found) gradients.push_back(std::move(std::get<2>(entry)));
    }
    return gradients;
}

/// The sum of squares of all gradients, if the models know it (see `sharding::LocalModel`).
template <class Model>
std::optional<double> known_squares([[maybe_unused]] std::span<Model* const> models) {
    if constexpr (requires(Model& m) { m.sum_of_squares(); }) {
        double sum = 0;
        for (auto* model : models) {
            auto const squares = model->sum_of_squares();
            if (!squares) return {};
            sum += *squares;
        }
        return sum;
    } else return {};
}

}  // namespace detail

/// fp64 where a gradient is, else fp32; the same on every rank, whatever of the gradients it keeps.
template <sharding::flat_model Model>
at::ScalarType norm_dtype(std::span<Model* const> models) {
    for (auto const* model : models)
        for (auto const& flat : std::span<sharding::Flat const>(model->flats()))
            if (flat.gradients.scalar_type() == at::kDouble) return at::kDouble;
    return at::kFloat;
}

/// A number as the norm of these models' gradients is given, in that dtype and on their device.
template <sharding::flat_model Model>
at::Tensor norm_tensor(std::span<Model* const> models, double norm) {
    at::Device device = at::kCPU;
    for (auto const* model : models)
        for (auto const& flat : std::span<sharding::Flat const>(model->flats())) device = flat.gradients.device();
    return at::scalar_tensor(norm, at::dtype(at::kDouble).device(device)).to(norm_dtype(models));  // one too large for fp32 is infinite there, no error
}

/// The p-norm of what is in the gradients of all models, as a 0-dim fp64 tensor on their device; never waits for a GPU. `fold(partial,
/// how)` combines a 0-dim fp64 tensor with those of the other ranks in place, where a rank owns only a part of the gradients. Costs one
/// read of them. `Operations::Torch`: in their dtype, the same bits as Python's `torch.nn.utils.get_total_norm`.
template <sharding::flat_model Model, class FoldOverRanks = Alone>
at::Tensor gradient_norm(std::span<Model* const> models, double p = 2, Operations operations = Operations::Fused, FoldOverRanks&& fold = {}) {
    constexpr bool alone = std::is_same_v<std::remove_cvref_t<FoldOverRanks>, Alone>;
    at::NoGradGuard const no_grad;
    Norm const measure(p);
    if (operations == Operations::Torch && alone) {
        auto const gradients = detail::gradients_by_parameter(models);
        if (!gradients.empty()) return at::linalg_vector_norm(at::stack(at::_foreach_norm(gradients, p)), p);
    }
    if (p == 2 && operations == Operations::Fused) {
        if (auto const squares = detail::known_squares(models)) return at::scalar_tensor(std::sqrt(*squares), at::kDouble);
    }
    auto const gradients = operations == Operations::Torch ? detail::gradients_by_parameter(models) : detail::owned_gradients(models);
    auto const on_cpu = std::all_of(gradients.begin(), gradients.end(), [](at::Tensor const& g) { return g.is_cpu(); });
    auto total = on_cpu ? at::scalar_tensor(measure.partial(gradients), at::kDouble) : measure.partial_tensor(gradients);
    if constexpr (!alone) fold(total, measure.fold());
    return on_cpu ? at::scalar_tensor(measure.finish(total.template item<double>()), at::kDouble) : measure.finish(total);
}

/// What clipping multiplies gradients of this norm by, `min(1, max_norm / (norm + 1e-6))`: as Python, operation by operation.
inline at::Tensor clip_coefficient(at::Tensor const& norm, double max_norm) { return norm.add(1e-6).reciprocal().mul(max_norm).clamp_max(1.0); }

/// The same as a number, for a norm on the CPU.
inline double clip_factor(at::Tensor const& norm, double max_norm, Operations operations) {
    if (operations == Operations::Torch) return clip_coefficient(norm, max_norm).item<double>();
    auto const factor = max_norm / (norm.item<double>() + 1e-6);
    return factor >= 1 ? 1 : factor;  // NaN stays, as in Python
}

/// Multiplies the gradients of a model by a number, or by a 0-dim tensor on their device, and lets every rank see it. A read and a
/// write of them; nothing for the number 1.
template <sharding::flat_model Model>
void scale_gradients(Model& model, double factor) {
    if (factor == 1) return;
    at::NoGradGuard const no_grad;
    for (auto const& piece : std::span<sharding::Piece const>(model.owned())) piece.gradients.mul_(factor);
    model.settle();
}
template <sharding::flat_model Model>
void scale_gradients(Model& model, at::Tensor const& factor) {
    at::NoGradGuard const no_grad;
    Model* const models[] = {&model};
    auto const gradients = detail::owned_gradients(std::span<Model* const>(models));
    if (!gradients.empty()) at::_foreach_mul_(gradients, factor);
    model.settle();
}

/// Puts into the gradients what clipping has left to a sweep, for a step by an optimizer that does not sweep: another one of these models may.
template <class Models>
void apply_gradient_scales(Models const& models) {
    for (auto const& model : models) scale_gradients(*model, model->gradient_scale());
}

/// Scales the gradients of all models by the coefficient and gives the norm before, as a 0-dim tensor on their device; never waits for
/// a GPU. Costs what `gradient_norm` and `scale_gradients` do. `Operations::Torch`: the same bits as Python's
/// `torch.nn.utils.clip_grad_norm_`.
template <sharding::flat_model Model, class FoldOverRanks = Alone>
at::Tensor clip_grad_norm(std::span<Model* const> models, double max_norm, double p = 2, Operations operations = Operations::Fused, FoldOverRanks&& fold = {}) {
    auto const norm = gradient_norm(models, p, operations, std::forward<FoldOverRanks>(fold));
    auto const dtype = norm_dtype(models);
    for (auto* model : models) {
        if (norm.is_cpu()) scale_gradients(*model, clip_factor(norm, max_norm, operations));
        else scale_gradients(*model, clip_coefficient(norm, max_norm).to(dtype));
    }
    return norm.to(dtype);
}

/// Clamps every gradient to [-value, value], in one operation for each flat buffer.
template <sharding::flat_model Model>
void clip_grad_value(std::span<Model* const> models, double value) {
    at::NoGradGuard const no_grad;
    for (auto const& g : detail::owned_gradients(models)) g.clamp_(-value, value);
    for (auto* model : models) model->settle();
}

}  // namespace accelerate::optim
