#pragma once

#include <torch/nn/module.h>
#include <torch/nn/pimpl.h>

#include <accelerate/data/prepared.hpp>
#include <accelerate/optim/bind.hpp>
#include <accelerate/optim/scheduler.hpp>
#include <accelerate/precision/weight_cache.hpp>
#include <accelerate/prepared.hpp>
#include <accelerate/module/unique_parameters.hpp>
#include <accelerate/sharding/layout.hpp>
#include <accelerate/sharding/sync_batch_norm.hpp>
#include <array>
#include <tuple>
#include <utility>

namespace accelerate {

/// How `prepare_model` prepares.
struct prepare_model_options {
    bool evaluation_mode = false;  ///< the model is not trained: its parameters ask for no gradients from here on, so that none are kept or reduced
};

}  // namespace accelerate

namespace accelerate::detail {

/// What `prepare` takes an argument for.
enum class Kind { Model, Optimizer, Loader, Schedule, Foreign };

template <class T>
inline constexpr bool is_module_pointer = false;
template <std::derived_from<torch::nn::Module> M>
inline constexpr bool is_module_pointer<std::shared_ptr<M>> = true;
template <std::derived_from<torch::nn::Module> M>
inline constexpr bool is_module_pointer<std::unique_ptr<M>> = true;

template <class Argument>
consteval Kind kind_of() {
    using T = std::remove_cvref_t<Argument>;
    if constexpr (std::derived_from<T, torch::nn::Module> || std::is_base_of_v<torch::detail::ModuleHolderIndicator, T> || is_module_pointer<T>) return Kind::Model;
    else if constexpr (optim::is_optimizer<T>) return Kind::Optimizer;
    else if constexpr (data::is_loader<T>) return Kind::Loader;
    else if constexpr (schedule::recipe<T>) return Kind::Schedule;
    else return Kind::Foreign;
}

/// Whether a loader can make batches; asking is a compile error that says why not.
template <class T>
inline constexpr bool is_loadable = true;
template <class D, class Order, class F>
inline constexpr bool is_loadable<data::Loader<D, Order, F>> = data::Loader<D, Order, F>::possible;
template <class D, class Order>
    requires(data::Loader<D, Order>::possible && !data::BatchingDataset<D>)
inline constexpr bool is_loadable<data::Loader<D, Order>> = data::require_collatable<typename data::Loader<D, Order>::sample_type>();

template <Kind K, class... Arguments>
inline constexpr size_t count_of = ((kind_of<Arguments>() == K ? 1 : 0) + ... + 0);

template <class T>
inline constexpr bool is_prepared_optimizer = false;
template <class Recipe, class Model>
inline constexpr bool is_prepared_optimizer<optim::Optimizer<Recipe, Model>> = true;
template <class Held, class Model>
inline constexpr bool is_prepared_optimizer<optim::TorchAdapter<Held, Model>> = true;

template <class Loader, class Source>
void prepared_loader(data::Prepared<Loader, Source> const&);
template <class T>
inline constexpr bool is_prepared_loader = requires(T const& t) { prepared_loader(t); };  // also of a policy's type derived from it

template <class T>
inline constexpr bool is_prepared_schedule = false;
template <class Recipe, class Optimizer>
inline constexpr bool is_prepared_schedule<schedule::Scheduler<Recipe, Optimizer>> = true;

/// What is wrong with a call of `prepare`; of several mistakes the first.
enum class Mistake { None, Nothing, ModelAgain, OptimizerAgain, LoaderAgain, ScheduleAgain, NoModel, NoOptimizer, OptimizerCount, ScheduleCount, Spread };

/// `whole`: every parameter and its gradient are on every rank.
template <class... T>
consteval Mistake mistake(bool whole) {
    constexpr auto models = count_of<Kind::Model, T...>, optimizers = count_of<Kind::Optimizer, T...>, schedules = count_of<Kind::Schedule, T...>;
    if (sizeof...(T) == 0) return Mistake::Nothing;
    if ((is_prepared_model<T> || ...)) return Mistake::ModelAgain;
    if ((is_prepared_optimizer<T> || ...)) return Mistake::OptimizerAgain;
    if ((is_prepared_loader<T> || ...)) return Mistake::LoaderAgain;
    if ((is_prepared_schedule<T> || ...)) return Mistake::ScheduleAgain;
    if (optimizers > 0 && models == 0) return Mistake::NoModel;
    if (schedules > 0 && optimizers == 0) return Mistake::NoOptimizer;
    if (optimizers > 1 && optimizers != models && models != 1) return Mistake::OptimizerCount;
    if (schedules > 0 && schedules != optimizers) return Mistake::ScheduleCount;
    if (!whole && (optim::is_torch_optimizer<T> || ...)) return Mistake::Spread;
    return Mistake::None;
}

/// Stands for what cannot be made after an error of the compiler, so that it says nothing more. Never defined.
template <class T>
T recovered();

/// How many arguments of the kind of argument I stand before it.
template <size_t I, class... Arguments>
consteval size_t ordinal() {
    constexpr Kind kinds[] = {kind_of<Arguments>()...};
    size_t before = 0;
    for (size_t i = 0; i < I; ++i) before += kinds[i] == kinds[I];
    return before;
}

/// Where the arguments of one kind stand.
template <Kind K, class... Arguments>
consteval auto places_of() {
    constexpr Kind kinds[] = {kind_of<Arguments>()...};
    std::array<size_t, count_of<K, Arguments...>> places{};
    for (size_t i = 0, n = 0; i < sizeof...(Arguments); ++i)
        if (kinds[i] == K) places[n++] = i;
    return places;
}

/// The arguments of one kind, each passed through `f(argument, its number among them)` in their order, as a tuple.
template <Kind K, class... Arguments, class F>
auto transform_kind(std::tuple<Arguments...>& arguments, F&& f) {
    constexpr auto places = places_of<K, Arguments...>();
    auto one = [&]<size_t N>(std::integral_constant<size_t, N> number) {
        using Argument = std::tuple_element_t<places[N], std::tuple<Arguments...>>;
        return f(static_cast<Argument&&>(std::get<places[N]>(arguments)), number);
    };
    return [&]<size_t... N>(std::index_sequence<N...>) {
        return std::tuple<decltype(one(std::integral_constant<size_t, N>()))...>{one(std::integral_constant<size_t, N>())...};  // in braces, so one after another
    }(std::make_index_sequence<places.size()>());
}

/// The module behind whatever a user holds it by: a holder, a pointer, an object (moved in) or a reference (which must outlive
/// what is prepared).
template <class T>
auto module_of(T&& model) {
    using M = std::remove_cvref_t<T>;
    if constexpr (std::is_base_of_v<torch::detail::ModuleHolderIndicator, M>) return model.ptr();
    else if constexpr (is_module_pointer<M>) return std::shared_ptr<typename M::element_type>(std::forward<T>(model));
    else if constexpr (std::is_lvalue_reference_v<T>) return std::shared_ptr<M>(std::shared_ptr<void>(), &model);
    else return std::make_shared<M>(std::forward<T>(model));
}

/// Modules that talk to the other ranks themselves learn how.
template <class Comm>
void connect_modules(torch::nn::Module& module, Comm const& communicator) {
    for (auto const& m : module.modules())
        if (auto* norm = m->template as<SyncBatchNormImpl>()) norm->connect(communicator);
}

/// A recipe whose `storage` is what the precision asks for, where it does and the recipe does not say.
template <class Precision, class Recipe>
decltype(auto) stored_as(Recipe&& recipe) {
    if constexpr (requires { Precision::low_bit_level; recipe.storage; }) {
        auto own = std::forward<Recipe>(recipe);
        if (own.storage == optimizer_storage{}) own.storage = optim::low_bit_storage(Precision::low_bit_level);
        return own;
    } else {
        return std::forward<Recipe>(recipe);
    }
}

/// Has layers that cast their weights keep the casts; gives what must forget them when weights have changed.
inline std::vector<std::shared_ptr<precision::WeightCache>> keep_weights(torch::nn::Module& module) {
    std::vector<std::shared_ptr<precision::WeightCache>> caches;
    for (auto const& m : module.modules())
        if (auto* keeper = dynamic_cast<precision::WeightKeeper*>(m.get())) caches.push_back(keeper->kept), caches.back()->keep();
    return caches;
}

/// Trainable parameters in registration order, each once; none may belong to one of `prepared` already.
template <class Model>
sharding::NamedParameters trainable(torch::nn::Module& module, std::vector<std::shared_ptr<Model>> const& prepared) {
    sharding::NamedParameters found;
    for (auto const& [name, p] : unique_parameters(module)) {
        if (!p.requires_grad()) continue;
        for (auto const& model : prepared)
            for (auto const& [other, q] : model->parameters())
                check(!p.is_same(q), code::call_order, "prepare: parameter ", name, " belongs to a prepared model already (as ", other, "); pass each raw model once");
        found.emplace_back(name, p);
    }
    return found;
}

/// Error E_CONFIG where two of the optimizers of one model have the same parameter. One that none has is mentioned.
template <class Model>
void check_apart(Model const& model, std::initializer_list<sharding::Shares<Model> const*> optimizers) {
    auto const& parameters = model.parameters();
    for (size_t i = 0; i < parameters.size(); ++i) {
        auto const holders = std::ranges::count_if(optimizers, [&](auto const* shares) { return sharding::has(*shares, model, i); });
        check(holders <= 1, code::config, "prepare: ", holders, " of the optimizers have parameter ", parameters[i].first,
              " of their model; say which has what, as in acc::optim::AdamW{.parameters = [](std::string const& name) { return name.ends_with(\"bias\"); }}");
        if (holders == 0) log::warning("prepare: parameter ", parameters[i].first, " is trainable and none of its model's optimizers has it, so it stays as it is");
    }
}

/// Those that are not.
inline sharding::NamedParameters frozen(torch::nn::Module& module) {
    auto found = unique_parameters(module);
    std::erase_if(found, [](auto const& named) { return named.second.requires_grad(); });
    return found;
}

inline sharding::NamedParameters named_buffers(torch::nn::Module& module) {
    sharding::NamedParameters found;
    for (auto const& b : module.named_buffers())
        if (b.value().defined()) found.emplace_back(b.key(), b.value());
    return found;
}

}  // namespace accelerate::detail
