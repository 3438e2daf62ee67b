#pragma once

#include <accelerate/optim/optimizer.hpp>
#include <accelerate/optim/torch_adapter.hpp>

namespace accelerate::optim {

template <class T>
inline constexpr bool is_torch_optimizer = std::derived_from<T, torch::optim::Optimizer>;
template <class O>
inline constexpr bool is_torch_optimizer<std::shared_ptr<O>> = std::derived_from<O, torch::optim::Optimizer>;
template <class O>
inline constexpr bool is_torch_optimizer<std::unique_ptr<O>> = std::derived_from<O, torch::optim::Optimizer>;

/// What `prepare` takes for an optimizer: a recipe; or a torch::optim optimizer by value (moved in), by reference (which must
/// outlive what is prepared) or by smart pointer.
template <class T>
inline constexpr bool is_optimizer = recipe<T> || is_torch_optimizer<T>;

/// Binds an optimizer to prepared models.
template <class Given, sharding::flat_model Model>
    requires is_optimizer<std::remove_cvref_t<Given>>
auto bind(Given&& given, std::vector<std::shared_ptr<Model>> models) {
    using O = std::remove_cvref_t<Given>;
    if constexpr (recipe<O>) return Optimizer<O, Model>(std::forward<Given>(given), std::move(models));
    else if constexpr (!std::derived_from<O, torch::optim::Optimizer>) return TorchAdapter<typename O::element_type, Model>(std::forward<Given>(given), std::move(models));
    else if constexpr (std::is_lvalue_reference_v<Given>) return TorchAdapter<O, Model>(std::shared_ptr<O>(std::shared_ptr<void>(), &given), std::move(models));
    else return TorchAdapter<O, Model>(std::make_shared<O>(std::move(given)), std::move(models));
}

}  // namespace accelerate::optim
