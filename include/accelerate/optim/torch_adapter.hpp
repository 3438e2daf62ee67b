#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/scalar_tensor.h>

#include <accelerate/core/log.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/optim/groups.hpp>
#include <accelerate/optim/lbfgs_state.hpp>
#include <accelerate/optim/saved_progress.hpp>
#include <accelerate/optim/torch_state.hpp>
#include <accelerate/sharding/flat.hpp>
#include <concepts>
#include <memory>
#include <optional>
#include <span>
#include <type_traits>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace accelerate::optim {

/// Any torch::optim optimizer over prepared models that every rank holds whole, with the interface of `Optimizer`: its step waits
/// for the window's end, its gradients stay views of the flat buffers. It runs LibTorch's own loop over parameters, 8 to 30 times
/// slower than a recipe; use it for optimizers that we have no recipe for. A handle: copies are the same optimizer.
template <std::derived_from<torch::optim::Optimizer> Held, sharding::flat_model Model>
class TorchAdapter {
public:
    using model_type = Model;

    /// Error E_CONFIG when none of its parameters belongs to the models, or when gradients are not gathered on every rank.
    TorchAdapter(std::shared_ptr<Held> held, std::vector<std::shared_ptr<Model>> models) : shared_(std::make_shared<Shared>(std::move(held), std::move(models))) {}

    void step() {
        static_assert(!searches, "optimizer.step(): torch::optim::LBFGS evaluates the loss itself; call optimizer.step(closure)");
        auto& s = *shared_;
        if (!window_closed()) return;
        auto const stepping = sharding::stepping(s.models);
        s.skipped = !sharding::before_step(stepping, s.shares);
        if (!s.skipped) [[likely]] {
            apply_gradient_scales(s.models);
            WithoutGradients const none_where_unreached(s.models);
            static_cast<torch::optim::Optimizer&>(*s.held).step();  // LBFGS has none without a closure, and the assertion says so
            ++s.steps;
            ++s.updates;
        }
        for (auto* model : stepping) model->after_step();
    }

    /// The same of an optimizer that evaluates the loss itself, as torch::optim::LBFGS does, as often as it likes: `closure` clears the
    /// gradients, calls the model and `accelerator.backward`, and gives the loss. The optimizer is shown the mean of the ranks' losses, so that
    /// all of them go the same way. Where a gradient is not finite nothing is changed, only that an LBFGS which was under way forgets its
    /// history. Gives this rank's first loss. Costs a copy of the parameters.
    template <std::invocable Closure>
    at::Tensor step(Closure&& closure) {
        auto& s = *shared_;
        if (!window_closed()) return closure();
        struct Refused {};
        auto const parameters = s.copy_of_parameters();
        std::optional<WithoutGradients> none_where_unreached;
        std::vector<Model*> stepping;
        at::Tensor first;
        int64_t evaluations = 0;
        auto const evaluate = [&] {
            if (evaluations++ > 0) {  // the parameters are others now
                none_where_unreached.reset();
                for (auto* model : stepping) model->after_step(), model->zero_grad();
            }
            at::Tensor const loss = closure();
            stepping = sharding::stepping(s.models);
            if (evaluations == 1) first = loss.detach();
            if (!sharding::before_step(stepping, s.shares)) throw Refused();
            apply_gradient_scales(s.models);
            none_where_unreached.emplace(s.models);
            return s.mean_over_ranks(loss);
        };
        try {
            static_cast<void>(s.held->step(evaluate));
            s.skipped = false;
            ++s.steps;
            ++s.updates;
        } catch (Refused const&) {
            s.skipped = true;
            if (evaluations > 1) s.restore(parameters);
        }
        none_where_unreached.reset();
        for (auto* model : stepping) model->after_step();
        return first;
    }

    /// Clears the gradients in place; those of parameters that no prepared model has are dropped, as the optimizer's own
    /// `zero_grad` does.
    void zero_grad() {
        auto& s = *shared_;
        if (!window_closed()) return;
        for (auto& model : s.models) model->zero_grad();
        for (auto& p : s.others) p.mutable_grad().reset();
    }

    /// Of the first parameter group; the others keep the ratio to it that they had at first. Error E_CONFIG where the first began with 0 and
    /// another did not.
    double lr() const { return shared_->held->param_groups().front().options().get_lr(); }
    void set_lr(double lr) {
        check_hyper(lr, "optimizer.set_lr: the learning rate");
        auto& s = *shared_;
        auto& groups = s.held->param_groups();
        for (auto i = s.initial_lrs.size(); i < groups.size(); ++i) s.initial_lrs.push_back(groups[i].options().get_lr());  // added since
        auto const first = s.initial_lrs[0];
        for (auto const own : s.initial_lrs)
            check(first != 0 || own == 0, code::config, "optimizer.set_lr: the first parameter group began with a learning rate of 0, another with ", own,
                  ", so there is no ratio to keep; put a group whose rate is not 0 first");
        for (size_t i = 0; i < groups.size(); ++i) groups[i].options().set_lr(s.initial_lrs[i] == first ? lr : s.initial_lrs[i] * (lr / first));
    }

    int64_t steps() const { return shared_->steps; }
    int64_t updates() const { return shared_->updates; }
    bool step_was_skipped() const { return shared_->skipped; }
    Held& unwrap() const { return *shared_->held; }  ///< the optimizer itself
    std::vector<std::shared_ptr<Model>> const& models() const { return shared_->models; }
    sharding::Shares<Model> const& shares() const { return shared_->shares; }  ///< what of them it updates, where that is not all

    bool window_closed() const {
        for (auto const& model : shared_->models)
            if (!model->window_closed()) return false;
        return true;
    }

    /// Under the same names as a recipe's. Error E_CONFIG for a class that has no `torch_state`, and for one held by its base.
    StateDict state_dict() const {
        [[maybe_unused]] auto& s = *shared_;
        StateDict state;
        if constexpr (torch_state<Held>::kind == nullptr) refuse("state_dict");
        else {
            state.values = {{"kind", torch_state<Held>::kind}, {"lr", lr()}, {"steps", s.steps}, {"parameter_steps", nlohmann::json::object()}};
            if constexpr (searches) {
                auto const parameters = s.named_parameters();
                auto const found = s.held->state().find(parameters.front().second.unsafeGetTensorImpl());
                if (found != s.held->state().end()) save_search(static_cast<typename torch_state<Held>::type const&>(*found->second), parameters, state);
            } else s.for_each_parameter([&](std::string const& key, at::Tensor const& parameter) {
                auto found = s.held->state().find(parameter.unsafeGetTensorImpl());
                if (found == s.held->state().end()) return;
                auto& own = static_cast<typename torch_state<Held>::type&>(*found->second);
                for_each_field(own, [&](char const* name, at::Tensor const& t, auto&&) {
                    if (t.defined()) state.tensors.insert(concat(name, ".", key), t.detach().clone());
                });
                if constexpr (requires { own.step(); }) state.values["parameter_steps"][key] = own.step();
            });
        }
        return state;
    }

    /// Takes what `state_dict` gave, or the state of a recipe of the same kind.
    void load_state_dict([[maybe_unused]] StateDict const& state) {
        if constexpr (torch_state<Held>::kind == nullptr) refuse("load_state_dict");
        else {
            auto& s = *shared_;
            auto const saved = saved_progress(state, who(), torch_state<Held>::kind);
            auto loaded = states_in(state, saved);
            s.held->state().clear();
            for (auto& [parameter, own] : loaded) s.held->state()[parameter] = std::move(own);
            set_lr(saved.lr);
            s.steps = saved.steps;
        }
    }
    /// Throws what `load_state_dict` would, and changes nothing. Costs a copy of the state.
    void check_state_dict([[maybe_unused]] StateDict const& state) const {
        if constexpr (torch_state<Held>::kind == nullptr) refuse("load_state_dict");
        else static_cast<void>(states_in(state, saved_progress(state, who(), torch_state<Held>::kind)));
    }

private:
    static constexpr bool searches = std::is_same_v<Held, torch::optim::LBFGS>;  ///< evaluates the loss itself

    static std::string who() { return concat("torch::optim::", torch_state<Held>::kind); }

    /// While alive, parameters that no loss has reached have no gradient, which LibTorch's optimizers take as leave to pass them over.
    class WithoutGradients {
    public:
        explicit WithoutGradients(std::vector<std::shared_ptr<Model>> const& models) {
            if constexpr (sharding::tells_unreached<Model>)
                for (auto const& model : models)
                    for (auto const* slot : model->unreached()) kept_.emplace_back(slot->parameter, std::exchange(slot->parameter.mutable_grad(), {}));
        }
        ~WithoutGradients() {
            for (auto& [parameter, gradient] : kept_) parameter.mutable_grad() = gradient;
        }
        WithoutGradients(WithoutGradients const&) = delete;
        WithoutGradients& operator=(WithoutGradients const&) = delete;

    private:
        std::vector<std::pair<at::Tensor, at::Tensor>> kept_;
    };

    /// LibTorch's own form of a state, by parameter.
    auto states_in(StateDict const& state, SavedProgress const& saved) const {
        using State = typename torch_state<Held>::type;
        std::vector<std::pair<void*, std::unique_ptr<State>>> loaded;
        if constexpr (searches) {
            auto const parameters = shared_->named_parameters();
            if (auto own = load_search<State>(state, parameters, who())) loaded.emplace_back(parameters.front().second.unsafeGetTensorImpl(), std::move(own));
        } else shared_->for_each_parameter([&](std::string const& key, at::Tensor const& parameter) {
            auto own = std::make_unique<State>();
            bool any = false;
            for_each_field(*own, [&](char const* name, at::Tensor const&, auto&& write) {
                auto const t = saved_tensor(state, concat(name, ".", key), parameter, who());
                if (!t.defined()) return;
                write(t.to(parameter.options(), false, true));
                any = true;
            });
            if constexpr (requires { own->step(); }) {
                auto const found = saved.parameter_steps.find(key);
                own->step(found != saved.parameter_steps.end() ? found->second : saved.steps);
            }
            if (any) loaded.emplace_back(parameter.unsafeGetTensorImpl(), std::move(own));
        });
        check(!loaded.empty() || state.tensors.empty(), code::data, who(), ".load_state_dict: no tensor of the state belongs to a parameter of this optimizer");
        return loaded;
    }

    struct Shared {
        Shared(std::shared_ptr<Held> h, std::vector<std::shared_ptr<Model>> m) : held(std::move(h)), models(std::move(m)) {
            check(held != nullptr && !models.empty() && !held->param_groups().empty(), code::config, "prepare: a torch::optim optimizer needs parameters and a model");
            std::unordered_set<at::TensorImpl const*> ours;
            for (auto const& model : models) {
                std::span<sharding::Flat const> const flats = model->flats();
                std::vector<int64_t> covered(flats.size());
                bool gathered = true;
                for (auto const& piece : std::span<sharding::Piece const>(model->pieces())) {
                    auto const f = static_cast<size_t>(piece.flat);
                    covered[f] += piece.end - piece.begin;
                    gathered = gathered && (piece.begin == piece.end || piece.gradients.is_alias_of(flats[f].gradients));
                }
                for (size_t f = 0; f < flats.size(); ++f) {
                    gathered = gathered && covered[f] == flats[f].parameters.numel();
                    for (auto const& slot : flats[f].slots) ours.insert(slot.parameter.unsafeGetTensorImpl());
                }
                check(gathered, code::config, "prepare: a torch::optim optimizer reads p.grad(), which this sharding does not complete on every rank; use a recipe such as "
                      "acc::optim::AdamW{...}, or sharding::Ddp<> with gather_gradients = true");
            }
            std::unordered_set<at::TensorImpl const*> found;
            for (auto& group : held->param_groups()) {
                initial_lrs.push_back(group.options().get_lr());
                for (auto const& p : group.params())
                    if (ours.contains(p.unsafeGetTensorImpl())) found.insert(p.unsafeGetTensorImpl());
                    else others.push_back(p);
            }
            shares = sharding::shares_of(models, [&](std::string const&, at::Tensor const& p) { return found.contains(p.unsafeGetTensorImpl()); });
            check(!found.empty(), code::config, "prepare: none of the optimizer's parameters belongs to the models given with it; make it from the parameters of the module that is prepared");
        }

        std::vector<at::Tensor> copy_of_parameters() const {
            std::vector<at::Tensor> copies;
            for (auto const& model : models)
                for (auto const& flat : std::span<sharding::Flat const>(model->flats())) copies.push_back(flat.parameters.clone());
            return copies;
        }
        /// To where a step began that was broken off.
        void restore(std::vector<at::Tensor> const& copies) {
            at::NoGradGuard const no_grad;
            auto copy = copies.begin();
            for (auto const& model : models)
                for (auto const& flat : std::span<sharding::Flat const>(model->flats())) flat.parameters.copy_(*copy++);
            held->state().clear();
        }
        at::Tensor mean_over_ranks(at::Tensor const& loss) const {
            if constexpr (requires { models.front()->sum_over_ranks(1.0); }) {
                auto const& model = *models.front();
                if (model.replicas() > 1) return at::scalar_tensor(model.sum_over_ranks(loss.template item<double>()) / static_cast<double>(model.replicas()), loss.options());
            }
            return loss;
        }

        template <class F>
        void for_each_parameter(F&& f) const {
            for (size_t m = 0; m < models.size(); ++m)
                for (auto const& flat : std::span<sharding::Flat const>(models[m]->flats()))
                    for (auto const& slot : flat.slots) f(models.size() > 1 ? concat(m, ".", slot.name) : slot.name, slot.parameter);
        }

        /// Of the optimizer, in its own order. Error E_CONFIG for one that is in no prepared model.
        sharding::NamedParameters named_parameters() const {
            check(others.empty(), code::config, "optimizer.state_dict: ", others.size(), " of the optimizer's parameters are in none of its models, so they have no name");
            std::unordered_map<at::TensorImpl const*, std::string> names;
            for_each_parameter([&](std::string const& key, at::Tensor const& parameter) { names.emplace(parameter.unsafeGetTensorImpl(), key); });
            sharding::NamedParameters named;
            for (auto const& group : held->param_groups())
                for (auto const& p : group.params()) named.emplace_back(names.at(p.unsafeGetTensorImpl()), p);
            return named;
        }

        std::shared_ptr<Held> held;
        std::vector<std::shared_ptr<Model>> models;
        sharding::Shares<Model> shares;
        std::vector<at::Tensor> others;  // held by the optimizer, in no prepared model
        std::vector<double> initial_lrs;
        int64_t steps = 0;
        int64_t updates = 0;
        bool skipped = false;
    };

    [[noreturn]] static void refuse(char const* call) {
        throw Error(code::config, concat("optimizer.", call, ": the state of this torch::optim optimizer is not known by its type; hold it as its own class (not as "
                                         "torch::optim::Optimizer), specialise accelerate::optim::torch_state for a class of your own, or use a recipe such as acc::optim::AdamW{...}"));
    }

    std::shared_ptr<Shared> shared_;
};

}  // namespace accelerate::optim
