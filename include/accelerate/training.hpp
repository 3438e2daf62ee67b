#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <accelerate/model_components.hpp>
#include <accelerate/optim/clip.hpp>
#include <accelerate/precision/policy.hpp>
#include <accelerate/precision/weight_cache.hpp>
#include <accelerate/sharding/none.hpp>
#include <accelerate/sharding/policy.hpp>
#include <accelerate/sharding/unused.hpp>
#include <accelerate/step_guard.hpp>
#include <accelerate/training_base.hpp>
#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace accelerate {

/// A model as an accelerator trains it: the sharding policy's model, plus what the loop must remember of it.
template <class Base, class Precision>
class TrainedModel : public Base {
public:
    using guard_type = StepGuard<TrainedModel, precision::scaler_of<Precision>>;
    static constexpr at::ScalarType master = Precision::master;  ///< what an optimizer updates

    template <class Communicator>
    TrainedModel(sharding::ModelParts parts, Communicator const& communicator, std::shared_ptr<guard_type> g) : Base(std::move(parts), communicator), guard(std::move(g)) {
        guard->join(this);
    }
    ~TrainedModel() { guard->leave(this); }

    /// `share`: what of it the optimizer has; empty: all. Where others, which have none of that, have made the window's step, this is another part
    /// of it, under the same verdict and with the gradients as they have been scaled for it.
    bool before_step(sharding::Share const& share = {}) {
        further_ = this->stage() == sharding::Stage::Stepped && sharding::apart(stepped_, share);
        if (further_) {
            for (size_t i = 0; i < share.size(); ++i) stepped_[i] = stepped_[i] || share[i];
            return may_step_;
        }
        Base::before_step();
        stepped_ = share;
        may_step_ = guard->allows(*this);
        if (may_step_) scale_gradients(take_scale());
        return may_step_;
    }
    void after_step() {
        guard->stepped();
        parameters_changed();
        forget_gradients();
        if (updated && !further_) updated();
    }
    /// Somebody has written into the parameters that this rank keeps: copies of them (gathered, cast) are stale.
    void parameters_changed() {
        Base::after_step();
        Precision::parameters_changed();
        for (auto const& kept : kept_weights) kept->forget();
    }
    void zero_grad() {
        Base::zero_grad();
        if (!this->window_closed()) return;
        unfinished = false;
        forget_gradients();
    }
    /// Behind a backward that was for other models: the gradients are where they belong, and wait for no step.
    void let_pass() {
        auto const before = this->stage();
        Base::after_backward();
        this->restore_stage(before);
        forwarded = false;
    }
    void forget_verdict() { finite.reset(), allowed.reset(); }
    /// Gradients that no backward has completed go on into the next window, with their weights; without weights they are left over, since what
    /// makes a short window's mean (`ShortWindow::Rescale`) does not count them.
    void begin_window() {
        left_over = (unfinished && (left_over || weighted == 0)) || sharding::waits_for_step(this->stage());
        if (!unfinished) losses = weighted = 0, weight = 0, finished = 1;
    }

    /// Gradients are this times what is in memory (and than the loss scale smaller): a clipping that the optimizer's sweep will do.
    double gradient_scale() const { return gradient_scale_; }
    /// Multiplies the gradients: in the optimizer's sweep if it can, else now.
    void scale_gradients(double factor) {
        if (sweeps) gradient_scale_ *= factor;
        else optim::scale_gradients(*this, factor);
    }
    /// What turns memory into gradients: its caller will multiply by it, now or in the sweep.
    double take_scale() {
        auto const factor = gradient_scale_ / (loss_scale == 0 ? 1 : loss_scale);
        gradient_scale_ = 1, loss_scale = 0;
        return factor;
    }

    bool clears_in_step() const { return !keep_gradients && Base::clears_in_step(); }
    void expect_backward() const {
        Base::expect_backward();
        if (by_recipe || this->replicas() > 1)
            for (auto const& [name, p] : frozen)
                check(!p.requires_grad(), code::config, "accelerator.backward: parameter ", name, " was frozen when its model was prepared; now it asks for a gradient, which no optimizer would see. "
                      "What is to be trained some day must require gradients when prepare sees it; freeze it after that");
        check(!keep_gradients || Base::clears_in_step() || this->stage() != sharding::Stage::Stepped, code::call_order,
              "accelerator.backward behind optimizer.step: gradients that stay in slices on their ranks (gather_gradients = false) can be kept, but not added to; call optimizer.zero_grad first");
    }

    std::shared_ptr<guard_type> guard;
    bool keep_gradients = false;   ///< as in the accelerator's options
    bool forwarded = false;        ///< has run a forward under grad mode since the last backward
    bool reached = true;           ///< by the loss of the present backward
    bool unfinished = false;       ///< has gradients of earlier micro-batches of this window, or of `no_sync`, that no backward has completed
    int64_t losses = 0;            ///< backwards of this window
    int64_t weighted = 0;          ///< of them, those of weighted losses
    double weight = 0;             ///< of those
    double finished = 1;           ///< what the window's end has multiplied its gradients by
    bool left_over = false;        ///< there are gradients of earlier windows, too, which no step has used
    at::Tensor last_norm;          ///< what the last clipping of a closed window returned
    sharding::NamedParameters frozen;  ///< when it was prepared
    bool by_recipe = false;        ///< its optimizer is a recipe, and has only what was not
    Operations operations = Operations::Fused;
    bool sweeps = false;           ///< its optimizer multiplies by `gradient_scale()`
    double loss_scale = 0;         ///< that is still in the gradients; 0: none
    std::optional<bool> finite;    ///< whether this window's gradients are, once somebody has looked
    std::optional<bool> allowed;   ///< whether this window's step may be made, once decided
    std::function<void()> updated; ///< what the precision does after a step, on every rank; empty: nothing
    std::vector<std::shared_ptr<precision::WeightCache>> kept_weights;  ///< of its layers; weights that are spread over ranks have none

private:
    void forget_gradients() {
        forget_verdict();
        take_scale();
        begin_window();
    }

    double gradient_scale_ = 1;
    sharding::Share stepped_;   // what has made the last step; empty: all of it
    bool further_ = false;      // the present step is another part of it
    bool may_step_ = true;      // its verdict
};

/// What an accelerator and everything that it prepared share: the loop's state. Owned by all of them, so their order of
/// destruction does not matter.
template <class Device, class Precision, class Sharding>
class Training : public TrainingBase<typename Device::communicator> {
    using Base = TrainingBase<typename Device::communicator>;

public:
    using Base::comm, Base::loops, Base::options;
    using typename Base::communicator;
    using model_type = TrainedModel<typename Sharding::template model<Device>, Precision>;
    using autocast_scope = module::ListedScope<typename Precision::template scope<Device>>;
    using autocast_pause = typename Precision::template pause<Device>;
    static constexpr bool autocasts = !std::is_empty_v<autocast_scope>;
    static constexpr bool scales = model_type::guard_type::scales;

    Training(accelerator_options given, communicator c)
        : Base(std::move(given), std::move(c)), rerun(options.non_finite.reruns() ? std::make_shared<Rerun>(loops, Device::type) : nullptr),
          guard(std::make_shared<typename model_type::guard_type>(options.non_finite, options.grad_scaler, comm.rank(), rerun)) {
        if constexpr (autocasts) {
            if (!options.autocast_ops.empty()) op_precision = std::make_unique<module::OpPrecision>(options.autocast_ops, Device::type);
        } else check(options.autocast_ops.empty(), code::config, "Accelerator: autocast_ops needs a precision that casts, such as precision::Bf16<>; this one is ", Precision::name);
        if constexpr (scales) this->own_components.push_back(detail::scaler_component(guard, shared()));
        this->own_components.push_back(detail::random_component(Device::type, rerun));
        this->own_components.push_back(detail::progress_component(guard, state::is_own(shared()), rerun));
    }

    /// Whose that is in a checkpoint of which every rank has the same; without sharding each of several ranks trains on its own.
    state::Whose shared() const { return std::same_as<Sharding, sharding::None> && comm.size() > 1 ? state::Whose::EachOrFirst : state::Whose::All; }
    /// The same of parameters and what optimizers keep of them.
    state::Whose sharded() const { return detail::in_parts<model_type> ? state::Whose::Parts : shared(); }

    /// Called by a prepared model before its forward. Outside a window the autocast scope stays open behind the forward, so
    /// that it covers the loss as well, until the next call of this library that is not a forward.
    void before_forward(model_type& model) {
        if (at::GradMode::is_enabled()) model.forwarded = scoped = true;
        model.before_forward();
    }
    /// LibTorch's `model->forward(x)` goes past `before_forward`: outside a window nothing puts it under a precision that casts.
    void mention_bare_forward() const {
        if (scoped) return;
        log::warning_once("accelerator.backward: no prepared model has been called, nor a window opened: what model->forward(x) does runs without ", Precision::name,
                          "; call model(x), or open accelerator.accumulate(model) or accelerator.autocast()");
    }

    bool in_window() const { return !window.empty(); }
    /// From the next window on, which is a whole one.
    void set_accumulation_steps(int64_t steps) {
        constexpr auto call = "accelerator.set_gradient_accumulation_steps";
        check(!in_window() && std::ranges::all_of(models, &model_type::window_closed), code::call_order, call, " inside an accumulation window; call it where one has ended, behind the loop's body");
        this->check_accumulation_steps(call, steps);
        options.gradient_accumulation_steps = steps;
        for (auto const& model : models) model->window().restart();
    }

    /// Ends the autocast scope that a forward outside a window left open. Every entry point but forward begins with it.
    Training& settled() {
        if constexpr (autocasts) lingering.reset();
        return *this;
    }

    /// All ranks, for a collective that the user asks for by name: whatever loop's body they are in, they are all there.
    communicator& meeting() {
        loops->meet();
        return settled().comm;
    }

    /// The models that a backward from `loss` is of: those of the open window, or those that have run a forward since their last backward; of
    /// several only those that it reaches (a discriminator's loss does not reach the generator). Beside them those whose window ends here with
    /// what earlier micro-batches have left, which are not `reached`: another loss of theirs may follow, or none.
    std::span<model_type* const> armed(at::Tensor const& loss) {
        scratch_.assign(window.begin(), window.end());
        if (scratch_.empty())
            for (auto const& model : models)
                if (model->forwarded) scratch_.push_back(model.get());
        if (scratch_.empty())
            for (auto const& model : models) scratch_.push_back(model.get());
        std::optional<sharding::ReachableLeaves> leaves;
        if (scratch_.size() > 1) leaves.emplace(loss);
        for (auto* model : scratch_) model->reached = !leaves || leaves->contains_any(model->parameters());
        if (std::ranges::none_of(scratch_, &model_type::reached))
            for (auto* model : scratch_) model->reached = true;  // each says that it is not
        else std::erase_if(scratch_, [&](model_type const* model) { return !model->reached && !(in_window() && model->unfinished && model->window_closed()); });
        return scratch_;
    }

    /// Models of no open window that a loss of one passes through, as a generator's does through the discriminator, where their gradients must be
    /// brought to where they are kept.
    std::vector<model_type*> passed(at::Tensor const& loss) const {
        std::vector<model_type*> through;
        if constexpr (detail::in_parts<model_type>) {
            if (!in_window()) return through;
            for (auto const& model : models)
                if (model->forwarded && std::ranges::find(window, model.get()) == window.end()) through.push_back(model.get());
            if (through.empty()) return through;
            sharding::ReachableLeaves const reached(loss);
            std::erase_if(through, [&](model_type const* model) { return !reached.contains_any(model->parameters()); });
        }
        return through;
    }

    /// Keeps the autocast scope of one forward; open afterwards only if the forward succeeded.
    class Lingering {
    public:
        explicit Lingering(Training& training) : training_(training) {
            if (!training_.lingering) training_.lingering.emplace(training_.op_precision.get()), ours_ = true;
        }
        ~Lingering() {
            if (ours_) training_.lingering.reset();
        }
        Lingering(Lingering const&) = delete;
        Lingering& operator=(Lingering const&) = delete;
        void keep() { ours_ = false; }

    private:
        Training& training_;
        bool ours_ = false;
    };

    std::shared_ptr<Rerun> rerun;  ///< where `non_finite` asks for it
    std::shared_ptr<typename model_type::guard_type> guard;
    std::unique_ptr<module::OpPrecision> op_precision;  ///< where `autocast_ops` lists something
    std::vector<std::shared_ptr<model_type>> models;  ///< everything prepared
    std::vector<model_type*> window;                  ///< the models of the window that is open now
    std::optional<autocast_scope> lingering;          ///< the scope that a forward outside a window left open
    bool scoped = false;     ///< something has run, or somebody has meant it to, in the precision's scope

private:
    std::vector<model_type*> scratch_;
};

}  // namespace accelerate
