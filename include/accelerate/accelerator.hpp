#pragma once

#include <accelerate/accumulation.hpp>
#include <accelerate/backward.hpp>
#include <accelerate/comm/nested.hpp>
#include <accelerate/comm/pad.hpp>
#include <accelerate/core/seed.hpp>
#include <accelerate/core/units.hpp>
#include <accelerate/data/collate.hpp>  // here, so that what it says of a sample is not led in by ten lines of includes
#include <accelerate/data/gather_for_metrics.hpp>
#include <accelerate/data/join.hpp>
#include <accelerate/data/policy.hpp>
#include <accelerate/device/policy.hpp>
#include <accelerate/module/construct.hpp>
#include <accelerate/module/place_on.hpp>
#include <accelerate/module/strategy.hpp>
#include <accelerate/module/unit.hpp>
#include <accelerate/clipping.hpp>
#include <accelerate/policy_errors.hpp>
#include <accelerate/prepare.hpp>
#include <accelerate/process_control.hpp>
#include <accelerate/state/from.hpp>
#include <accelerate/state/save_model.hpp>
#include <accelerate/state_control.hpp>
#include <accelerate/supported.hpp>
#include <array>
#include <chrono>
#include <exception>

namespace accelerate {

/// Runs one hand-written training loop on the hardware, in the precision, under the sharding and over the data order that its
/// type says (Hugging Face Accelerate's `Accelerator`). Cheap to make; not copyable. What it prepares shares its state and may
/// outlive it.
template <device_policy Device, precision_policy Precision, sharding_policy<Device> Sharding, loader_policy Loader>
class Accelerator<Device, Precision, Sharding, Loader> : public ProcessControl<Accelerator<Device, Precision, Sharding, Loader>>,
                                                           public StateControl<Accelerator<Device, Precision, Sharding, Loader>, typename Device::communicator> {
    using Shared = Training<Device, Precision, Sharding>;
    static_assert(parameters_fit<Device, Precision, Sharding>, "Accelerator: a precision that casts parameters needs a sharding that keeps them whole, or whose placement has `cast`; use sharding::Ddp<> or Fsdp<>, or parameters in fp32");

public:
    using device_type = Device;
    using precision_type = Precision;
    using sharding_type = Sharding;
    using loader_type = Loader;
    using communicator = typename Device::communicator;
    using strategy = Strategy<typename Sharding::template placement<Device>, Precision>;  ///< what `make` builds models with
    using model_state = typename Shared::model_type;
    using options = accelerator_options;

    explicit Accelerator(options given = {}, communicator c = communicator::world()) : training_(std::make_shared<Shared>(std::move(given), std::move(c))) {
        if constexpr (requires { Device::select(int64_t{}); }) Device::select(training_->comm.local_rank());
        this->watch_signals();
    }
    Accelerator(Accelerator const&) = delete;
    Accelerator& operator=(Accelerator const&) = delete;

    /// When an exception takes the accelerator down, its peers are told, so that none waits for this rank.
    ~Accelerator() {
        training_->loops->set_between({});
        if (std::uncaught_exceptions() > exceptions_) training_->comm.leave("an exception ended its training loop");
    }

    // ---- building and preparing -------------------------------------------------------------------------------------------

    /// Builds `Model<strategy>` from the arguments. Constructors run unchanged; the initial weights are a function of (seed,
    /// model), the same for every policy and number of ranks, and the global generators are not touched.
    template <template <class> class Model, class... Arguments>
    auto make(Arguments&&... arguments) {
        return make<Model<strategy>>(std::forward<Arguments>(arguments)...);
    }
    template <class Model, class... Arguments>
    auto make(Arguments&&... arguments) {
        if constexpr (begins_with_from<Arguments...>) return make_from<Model>(std::forward<Arguments>(arguments)...);
        else return construct_model<Model>(module::NoValues(), std::forward<Arguments>(arguments)...);
    }

    /// Takes any number of models, optimizer recipes (or torch::optim optimizers), loaders and schedules in any order and returns
    /// what the loop uses, in that order: a tuple, or the object itself where there is one. Anything else passes through.
    /// One optimizer trains all models of the call, n optimizers one each, or a part each where there is one model (see a recipe's
    /// `parameters`); each schedule is for one optimizer, in their order.
    template <class... Arguments>
    auto prepare(Arguments&&... arguments) {
        using detail::Mistake;
        [[maybe_unused]] constexpr bool loadable = (detail::is_loadable<std::remove_cvref_t<Arguments>> && ...);  // asked first: a loader that cannot be says why itself
        constexpr auto wrong = detail::mistake<std::remove_cvref_t<Arguments>...>(model_state::owns_everything);
        static_assert(wrong != Mistake::Nothing, "prepare: give it a model, an optimizer recipe, a loader or a schedule");
        static_assert(wrong != Mistake::ModelAgain, "prepare: this model is already prepared; pass the raw model, once");
        static_assert(wrong != Mistake::OptimizerAgain, "prepare: this optimizer is already prepared; pass the recipe, once");
        static_assert(wrong != Mistake::LoaderAgain, "prepare: this loader is already prepared; pass the acc::data::Loader, once");
        static_assert(wrong != Mistake::ScheduleAgain, "prepare: this schedule is already prepared; pass the recipe, once");
        static_assert(wrong != Mistake::NoModel, "prepare: an optimizer needs its model in the same call, as in prepare(model, acc::optim::AdamW{...})");
        static_assert(wrong != Mistake::NoOptimizer, "prepare: a schedule needs its optimizer in the same call, as in prepare(model, optimizer, schedule)");
        static_assert(wrong != Mistake::OptimizerCount, "prepare: give one optimizer for all models or one for each, or several for one model; else call prepare once for each pair");
        static_assert(wrong != Mistake::ScheduleCount, "prepare: give one schedule for each optimizer; else call prepare once for each pair");
        static_assert(wrong != Mistake::Spread, "prepare: a torch::optim optimizer needs every parameter and its gradient on every rank, which this sharding does not keep; use a recipe such as acc::optim::AdamW{...}");
        if constexpr (wrong == Mistake::None) return prepare_checked(std::forward<Arguments>(arguments)...);
        else return detail::recovered<std::tuple<std::remove_cvref_t<Arguments>...>>();  // of the same shape, so that this stays the only error
    }

    // ---- the step ---------------------------------------------------------------------------------------------------------

    /// Opens the next micro-batch of the models' window, in their precision; gradients are reduced, and optimizers step, only where
    /// it ends: every `gradient_accumulation_steps` micro-batches and with the last batch of a loader.
    template <class... Models>
    auto accumulate(Models const&... models) {
        return Accumulation<Shared>(*training_, state_of(models)...);
    }

    /// Backward through `loss` (one element). Micro-batches are averaged as in Python: the loss is divided by
    /// `gradient_accumulation_steps`. Returns when the gradients are complete on every rank. Of several models only those that the loss reaches
    /// take part, the same on every rank.
    void backward(at::Tensor const& loss, backward_options const& how = {}) { run_backward(*training_, loss, {}, how); }
    /// The right mean where micro-batches differ in size: gradients are divided by the weight of the window over all ranks.
    void backward(weighted const& loss, backward_options const& how = {}) { run_backward(*training_, loss.sum, loss.weight, how); }

    /// While alive, backwards of these models stay on this rank (Python's `no_sync`); a step waits for one behind it, which reduces them all.
    template <class... Models>
    auto no_sync(Models const&... models) {
        return NoSync<Shared>({&state_of(models)...});
    }
    /// Makes the next backward of the models reduce, also after forwards under `no_sync`.
    template <class... Models>
    void trigger_sync_in_backward(Models const&... models) {
        (state_of(models).window().close(), ...);
    }

    /// While the returned scope is alive, ranks may have different numbers of batches (Python's `join_uneven_inputs` with
    /// `even_batches=False`): loops that begin in it repeat no samples, and a rank that runs out goes on with stand-ins whose losses
    /// count nothing, so that gradients are divided by all ranks and no collective misses one. For indexed data sets; see `data::Join`.
    template <class... Models>
    data::Join join_uneven_inputs(Models const&... models) {
        (static_cast<void>(state_of(models)), ...);
        return data::Join(training_->loops);
    }

    /// Takes the loss scale out of the gradients of the models, or of all that are prepared, for who looks at `p.grad()` before clipping
    /// or stepping, which do it themselves; after clipping it puts the clipped ones there. Where nothing is scaled it is a check that
    /// they are complete. In an unfinished window does nothing.
    template <class... Models>
    void unscale_gradients(Models const&... models) {
        auto const unscale = [](model_state& m) {
            using sharding::Stage;
            if (!m.window_closed()) return;
            auto const clipped = m.stage() == Stage::Clipped;
            m.advance("accelerator.unscale_gradients", clipped ? Stage::Clipped : Stage::Unscaled, sharding::waiting_for_step);
            optim::scale_gradients(m, m.take_scale());
        };
        training_->settled();
        if constexpr (sizeof...(Models) > 0) (unscale(state_of(models)), ...);
        else
            for (auto const& model : training_->models) unscale(*model);
    }

    /// Scales the gradients so that their norm over all parameters and ranks is at most `max_norm`; gives the norm before (unscaled), as
    /// a 0-dim tensor. A recipe that sweeps (see `optim::Optimizer::sweeps`) multiplies as it steps: `p.grad()` shows clipped values
    /// only after `unscale_gradients`, or with `Operations::Torch`. In an unfinished window does nothing and gives the last norm.
    template <class Model>
    at::Tensor clip_grad_norm(Model const& model, double max_norm, double norm_type = 2) {
        return clip_grad_norm(std::tie(model), max_norm, norm_type);
    }
    /// The same of several models as if they were one: `clip_grad_norm(std::tie(a, b), max_norm)`.
    template <class... Models>
    at::Tensor clip_grad_norm(std::tuple<Models&...> const& models, double max_norm, double norm_type = 2) {
        auto const states = std::apply([](auto const&... model) { return std::array{&state_of(model)...}; }, models);
        return detail::clip_grad_norm(*training_, std::span<model_state* const>(states), max_norm, norm_type);
    }
    /// Clamps every gradient to [-value, value].
    template <class Model>
    void clip_grad_value(Model const& model, double value) {
        detail::clip_grad_value(*training_, state_of(model), value);
    }

    /// Whether the last step left everything as it was, because a gradient was not finite; the same on every rank that shares a model.
    bool optimizer_step_was_skipped() const { return training_->guard->skipped(); }

    /// The gradient scaler: `get_scale()`, `state_dict()`, `load_state_dict(s)`.
    auto& scaler() const {
        static_assert(Shared::scales, "accelerator.scaler: this precision scales no gradient; precision::Fp16<> does");
        return training_->guard->scaler();
    }

    /// Scope of the accelerator's precision for code outside `accumulate`; `autocast(false)` is an island of full precision.
    auto autocast(bool enabled = true) {
        training_->scoped = true;
        return typename Shared::autocast_scope(training_->op_precision.get(), enabled);
    }

    // ---- collectives ------------------------------------------------------------------------------------------------------

    /// Concatenation over the ranks along dim 0 (0-dim tensors become 1-dim), of a tensor or of every tensor in a nested value.
    template <class Value>
    Value gather(Value const& value) { return comm::gather(training_->meeting(), value); }
    /// What the ranks computed of the innermost loop's batch, on every rank, without the samples that only filled it up: over an epoch
    /// each sample comes once. One value, or a tuple of several. See `data::GatherForMetrics` for what is gathered how.
    template <class... Values>
    auto gather_for_metrics(Values const&... values) {
        data::GatherForMetrics const gather(training_->meeting(), *training_->loops);
        if constexpr (sizeof...(Values) == 1) return (gather(values), ...);
        else return std::tuple<Values...>{gather(values)...};  // braces: in their order on every rank
    }
    /// A reduced copy: "sum", "mean", "max" or "min".
    template <class Value>
    Value reduce(Value const& value, std::string const& reduction = "sum") { return comm::reduce(training_->meeting(), value, reduction); }
    /// Every rank gets `from`'s value, in place.
    template <class Value>
    void broadcast(Value& value, int64_t from = 0) { comm::broadcast(training_->meeting(), value, from); }
    /// Every tensor padded along `dim` to the longest one of all ranks, so that it can be gathered.
    template <class Value>
    Value pad_across_processes(Value const& value, int64_t dim = 0, double pad_index = 0, bool pad_first = false) { return comm::pad_across_processes(training_->meeting(), value, dim, pad_index, pad_first); }

    // ---- who and what (process control: ProcessControl; checkpoints: StateControl) ----------------------------------------

    at::Device device() const { return Device::current(); }
    /// What Python calls this kind of run: "NO", "MULTI_CPU", "MULTI_GPU", "FSDP", ...
    std::string distributed_type() const {
        if constexpr (requires { Sharding::distributed_type; }) return Sharding::distributed_type;
        else return accelerate::distributed_type(Device::name, this->num_processes());
    }
    std::string mixed_precision() const { return Precision::name; }
    /// The four policies in a line, to be printed.
    static std::string policies() { return concat("device ", Device::name, ", mixed_precision ", Precision::name, ", sharding ", Sharding::name, ", loader ", Loader::name); }
    /// Whether this micro-batch ends the window of a model that `accumulate` names.
    bool sync_gradients() const { return training_->sync_gradients; }
    int64_t gradient_accumulation_steps() const { return training_->options.gradient_accumulation_steps; }
    /// From the next window on, which is a whole one. A checkpoint does not keep the number. Error E_CALL_ORDER inside a window.
    void set_gradient_accumulation_steps(int64_t steps) { training_->settled().set_accumulation_steps(steps); }
    std::filesystem::path const& project_dir() const { return training_->options.project_dir; }
    communicator& comm() { return training_->settled().comm; }
    communicator const& comm() const { return training_->comm; }

    /// Seeds LibTorch's generators (see `seed_options`).
    void set_seed(int64_t seed, seed_options how = {}) const { accelerate::set_seed(seed, how, this->process_index()); }

    /// The module that was prepared.
    template <class Module>
    std::shared_ptr<Module> unwrap_model(Prepared<Module, Shared> const& model) const { return model.module(); }

    /// Copies of the model's parameters and buffers by name, whole on every rank whatever the sharding. Collective.
    template <class Model>
    TensorMap get_state_dict(Model const& model) {
        training_->settled();
        auto tensors = model_tensors(*model);
        std::vector<at::Tensor> held;
        for (auto const& [name, t] : tensors) held.push_back(t);
        state_of(model).for_each_whole(held, [&](size_t i) { tensors.begin()[static_cast<std::ptrdiff_t>(i)].second = held[i].detach().clone(); });
        return tensors;
    }

    /// Writes the model's parameters and buffers in `dir` as Python's safetensors reads them, in several files above `max_shard_size`; see
    /// `accelerate::save_model`. The main process writes; all return when everything is there, or have its error. Units of a sharded model are
    /// gathered one after another: no rank needs memory for more than two of them. Collective.
    template <class Model>
    void save_model(Model const& model, std::filesystem::path const& dir, save_model_options const& how = {}) {
        auto const begin = std::chrono::steady_clock::now();
        bool const writes = training_->settled().writes();
        state::together(training_->comm, [&] {
            auto const bytes = state::save_shards(drop_aliases(model_tensors(*model)), dir, how, writes,
                                                  [&](auto const& tensors, auto const& f) { state_of(model).for_each_whole(tensors, f); });
            if (!writes) return;
            log::info("save_model: ", dir, ", ", bytes, " bytes, ", std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(), " s");
        });
    }

    /// Lets go of everything that was prepared, of the objects given (models, optimizers, loaders, schedules: they are empty then, as
    /// after a move) and of the memory that the device keeps for later. What the loop still holds lives on until it goes too.
    template <class... Objects>
    void free_memory(Objects&... objects) {
        check(!training_->settled().in_window(), code::call_order, "accelerator.free_memory inside an accumulation window; call it after the loop's body");
        training_->models.clear();
        training_->components.clear();
        (static_cast<void>(Objects(std::move(objects))), ...);
        if constexpr (requires { Device::empty_cache(); }) Device::empty_cache();
    }

    // ---- preparing one thing ----------------------------------------------------------------------------------------------

    /// One model (Python's `prepare_model`); `{.evaluation_mode = true}` for one that is only asked, such as a teacher. Error E_CALL_ORDER when one
    /// of its parameters belongs to a prepared model already.
    template <class Model>
    auto prepare_model(Model&& model, prepare_model_options const& how = {}) {
        auto module = detail::module_of(std::forward<Model>(model));
        auto state = adopt(module, how);
        return Prepared<typename decltype(module)::element_type, Shared>(std::move(module), std::move(state), training_);
    }

    /// Python's `skip_first_batches`: the next range-for over the prepared loader begins behind its first n batches.
    template <class AnyLoader>
    AnyLoader& skip_first_batches(AnyLoader& loader, int64_t n) { return loader.skip_first_batches(n); }

    /// A recipe, or a torch::optim optimizer, for models that are prepared already.
    template <class Recipe, class... Modules>
    auto prepare_optimizer(Recipe&& recipe, Prepared<Modules, Shared> const&... models) {
        return bind_optimizer(std::forward<Recipe>(recipe), std::vector<std::shared_ptr<model_state>>{models.shared_state()...});
    }

    /// A schedule for an optimizer that is prepared already.
    template <class Recipe, class Optimizer>
    auto prepare_scheduler(Recipe&& recipe, Optimizer& optimizer) {
        schedule::Scheduler scheduler(std::forward<Recipe>(recipe), optimizer, {.step_with_optimizer = training_->options.step_scheduler_with_optimizer});
        training_->components.push_back(detail::stateful_component(training_->next_name("scheduler"), training_->shared(), code::ck_sched, scheduler));
        return scheduler;
    }

    template <class AnyLoader>
    auto prepare_loader(AnyLoader&& loader) {
        using Given = std::remove_cvref_t<AnyLoader>;
        if constexpr (!detail::is_loadable<Given>) return detail::recovered<std::vector<typename Given::sample_type>>();  // its type has said why not
        else {
            Given given(std::forward<AnyLoader>(loader));
            if (training_->options.data_seed) given.set_seed(*training_->options.data_seed);
            typename Loader::template prepared<Given> prepared(std::move(given), loader_context());
            if constexpr (requires { typename decltype(prepared)::Handle; })
                training_->components.push_back(detail::stateful_component(training_->next_name("loader"), state::Whose::EachOrFirst, code::ck_loader, typename decltype(prepared)::Handle(prepared)));
            return prepared;
        }
    }

private:
    friend StateControl<Accelerator, communicator>;

    /// `values`: files, or `module::NoValues`.
    template <class Model, class Values, class... Arguments>
    auto construct_model(Values const& values, Arguments&&... arguments) {
        using placement = typename strategy::placement;
        auto const fill = [&](torch::nn::Module& root, module::Tape const& tape) {
            auto const materialize = [&](auto const& given) {
                if constexpr (requires { placement::materialize(root, tape, training_->comm, given); }) placement::materialize(root, tape, training_->comm, given);
                else module::materialize(root, tape, given);
            };
            if constexpr (std::same_as<Values, From>) materialize(state::FileValues(root, values));
            else materialize(values);
        };
        return construct_with<Unit<strategy, Model>>(fill, Seed(training_->options.seed).weights(), std::forward<Arguments>(arguments)...);
    }
    template <class Model, class... Arguments>
    auto make_from(From const& files, Arguments&&... arguments) {
        Unit<strategy, Model> model(nullptr);
        state::together(training_->settled().comm, [&] { model = construct_model<Model>(files, std::forward<Arguments>(arguments)...); });
        return model;
    }

    /// Takes a model among those that are trained.
    std::shared_ptr<model_state> adopt(std::shared_ptr<torch::nn::Module> const& module, prepare_model_options const& how) {
        training_->settled();
        check(module != nullptr, code::config, "prepare: the model is an empty holder");
        if (how.evaluation_mode)
            for (auto const& [name, p] : detail::trainable(*module, training_->models)) p.set_requires_grad(false);
        if constexpr (Precision::parameter != at::kFloat && requires { strategy::placement::cast(*module, Precision::parameter); }) strategy::placement::cast(*module, Precision::parameter);
        if constexpr (requires { Precision::prepare(*module, training_->options.fp8, device()); }) Precision::prepare(*module, training_->options.fp8, device());
        module::place_on(*module, device());
        detail::connect_modules(*module, training_->comm);
        auto state = std::make_shared<model_state>(sharding::ModelParts{module, detail::trainable(*module, training_->models), detail::named_buffers(*module), device()}, training_->comm, training_->guard);
        state->keep_gradients = training_->options.keep_gradients;
        state->frozen = detail::frozen(*module);
        if constexpr (std::same_as<typename strategy::placement, place::Resident>) state->kept_weights = detail::keep_weights(*module);
        if constexpr (requires { Precision::after_update(*module); })
            state->updated = [update = Precision::after_update(*module), comm = training_->comm, device = device()] { update(device, [&](at::Tensor const& t) { comm.all_reduce(t, comm::Reduction::Max); }); };
        training_->models.push_back(state);
        auto const name = training_->next_name("model");
        for (auto& component : detail::model_components(name, module, state, training_->sharded(), training_->options)) training_->components.push_back(std::move(component));
        if constexpr (requires { Precision::state_dict(*module); }) {
            auto const save = [module] { return Precision::state_dict(*module); };
            auto const load = [module](StateDict const& s) { Precision::load_state_dict(*module, s); };
            training_->components.push_back({.name = name + "_precision", .whose = training_->shared(), .save = save, .load = load, .fits = detail::tried(save, load), .unfit = code::ck_precision});
        }
        return state;
    }

    template <class Model>
    static model_state& state_of(Model const& model) {
        static_assert(is_prepared_model<Model>, "pass what accelerator.prepare returned for the model, not the raw model");
        if constexpr (is_prepared_model<Model>) return model.state();
        else return detail::recovered<model_state&>();
    }

    data::Context loader_context() {
        return {this->process_index(), this->num_processes(), device(), training_->loops, data::channel_over(training_->comm, device())};
    }

    template <class Recipe>
    auto bind_optimizer(Recipe&& recipe, std::vector<std::shared_ptr<model_state>> models) {
        auto optimizer = optim::bind(detail::stored_as<Precision>(std::forward<Recipe>(recipe)), models);
        if constexpr (requires { optimizer.sweeps(); })
            for (auto& model : models) {
                model->operations = optimizer.recipe().operations;
                model->sweeps = (model->sweeps || !model->by_recipe) && optimizer.sweeps();  // what one leaves to its sweep, all must
                model->by_recipe = true;
            }
        if constexpr (requires { optimizer.state_dict(); }) {
            training_->components.push_back(detail::stateful_component(training_->next_name("optimizer"), training_->sharded(), code::ck_optim, optimizer));
            training_->components.back().names = state::Names::State;
        }
        return optimizer;
    }

    template <class... Arguments>
    auto prepare_checked(Arguments&&... arguments) {
        using detail::Kind;
        training_->settled();
        auto given = std::forward_as_tuple(std::forward<Arguments>(arguments)...);
        auto models = detail::transform_kind<Kind::Model>(given, [&](auto&& m, auto) { return prepare_model(std::forward<decltype(m)>(m)); });
        auto states = std::apply([](auto const&... m) { return std::vector<std::shared_ptr<model_state>>{m.shared_state()...}; }, models);
        constexpr auto several = detail::count_of<Kind::Optimizer, Arguments...> > 1, shared = several && detail::count_of<Kind::Model, Arguments...> == 1, pairwise = several && !shared;
        auto optimizers = detail::transform_kind<Kind::Optimizer>(given, [&]<class I>(auto&& o, I) {
            return bind_optimizer(std::forward<decltype(o)>(o), pairwise ? std::vector{states[I::value]} : states);
        });
        if constexpr (shared) std::apply([&](auto const&... o) { detail::check_apart(*states.front(), {&o.shares()...}); }, optimizers);
        auto loaders = detail::transform_kind<Kind::Loader>(given, [&](auto&& l, auto) { return prepare_loader(std::forward<decltype(l)>(l)); });
        auto schedules = detail::transform_kind<Kind::Schedule>(given, [&]<class I>(auto&& s, I) { return prepare_scheduler(std::forward<decltype(s)>(s), std::get<I::value>(optimizers)); });
        return [&]<size_t... I>(std::index_sequence<I...>) {
            auto pick = [&]<size_t J>() -> decltype(auto) {
                using Argument = std::tuple_element_t<J, std::tuple<Arguments&&...>>;
                constexpr auto n = detail::ordinal<J, Arguments...>();
                if constexpr (detail::kind_of<Argument>() == Kind::Model) return std::move(std::get<n>(models));
                else if constexpr (detail::kind_of<Argument>() == Kind::Optimizer) return std::move(std::get<n>(optimizers));
                else if constexpr (detail::kind_of<Argument>() == Kind::Loader) return std::move(std::get<n>(loaders));
                else if constexpr (detail::kind_of<Argument>() == Kind::Schedule) return std::move(std::get<n>(schedules));
                else return static_cast<Argument>(std::get<J>(given));
            };
            if constexpr (sizeof...(I) == 1) {
                using Only = std::tuple_element_t<0, std::tuple<Arguments...>>;
                if constexpr (detail::kind_of<Only>() == Kind::Foreign) return std::remove_cvref_t<Only>(pick.template operator()<0>());
                else return pick.template operator()<0>();
            } else {
                return std::tuple<passed_t<decltype(pick.template operator()<I>()), Arguments>...>(pick.template operator()<I>()...);
            }
        }(std::index_sequence_for<Arguments...>());
    }
    /// Lvalue foreigners stay references, everything else is held by value.
    template <class Picked, class Argument>
    using passed_t = std::conditional_t<std::is_lvalue_reference_v<Argument> && detail::kind_of<Argument>() == detail::Kind::Foreign, Picked, std::remove_cvref_t<Picked>>;

    std::shared_ptr<Shared> training_;
    int exceptions_ = std::uncaught_exceptions();
};

}  // namespace accelerate
