#pragma once

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <accelerate/sharding/layout.hpp>
#include <accelerate/sharding/window.hpp>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

namespace accelerate::sharding {

/// The part of a prepared model that every replicated sharding shares: trainable parameters in flats, gradients as views of flat
/// buffers from the first step on, the accumulation window and the stage of the gradients. Satisfies `flat_model`.
///
/// Parameters keep their TensorImpl (`set_data`): handles that the user holds stay valid.
class FlatModel {
public:
    explicit FlatModel(NamedParameters parameters) : parameters_(std::move(parameters)) {
        for (auto const& [name, p] : parameters_)
            check(p.is_floating_point() || p.is_complex(), code::config, "prepare: trainable parameter ", name, " has dtype ", p.scalar_type());
    }
    FlatModel(FlatModel const&) = delete;
    FlatModel& operator=(FlatModel const&) = delete;

    std::span<Flat const> flats() const { return flats_; }
    std::span<Piece const> pieces() const { return pieces_; }
    int64_t layout() const { return layout_; }
    NamedParameters const& parameters() const { return parameters_; }

    bool window_closed() const { return window_.closed(); }
    Window& window() { return window_; }
    Stage stage() const { return stage_; }

    /// Moves to `stage`; error E_CALL_ORDER naming both states unless the present one is among `allowed`.
    void advance(char const* call, Stage stage, std::initializer_list<Stage> allowed) {
        if (std::find(allowed.begin(), allowed.end(), stage_) == allowed.end())
            throw Error(code::call_order, concat(call, " would take the gradients to ", name(stage), " but they are ", name(stage_), remedy(stage_)));
        stage_ = stage;
    }

    /// The gradients stand where a checkpoint says.
    void restore_stage(Stage stage) {
        stage_ = stage;
        cleared_.reset();
    }

    /// Parameters whose gradient nothing has been added to since the last step: no loss has reached them. To PyTorch they have no gradient, and
    /// its optimizers leave them alone.
    std::vector<Slot const*> unreached() const { return untouched(); }
    /// So it is of the named ones.
    void restore_unreached(std::set<std::string> const& names) {
        for (size_t i = 0; i < parameters_.size(); ++i) touched_[i] = reached_[i] = !names.contains(parameters_[i].first);
        mark_views();
    }
    /// Whether all of them are unreached, and a step has nothing to do here.
    bool idle() const {
        size_t slots = 0;
        for (auto const& flat : flats_) slots += flat.slots.size();
        return stage_ == Stage::Accumulating && untouched().size() == slots;
    }

    /// Gradients that have been unscaled or clipped cannot take more.
    void expect_backward() const {
        check(stage_ != Stage::Unscaled && stage_ != Stage::Clipped, code::call_order, "accelerator.backward would take the gradients to ", name(Stage::Reduced),
              " but they are ", name(stage_), remedy(stage_));
    }

    double gradient_scale() const { return 1; }
    bool clears_in_step() const { return true; }
    void gradients_cleared() {
        cleared_ = writes();
        touched_by_none();
    }
    bool before_step() {
        advance("optimizer.step", Stage::Stepped, waiting_for_step);
        bring_parameters_home();
        return true;
    }
    void after_step() {}

    /// Clears the flat gradients: one operation for each dtype, none where the step has done it and nothing has been written since. Does
    /// nothing inside an unfinished window.
    void zero_grad() {
        if (!window_.closed()) return;
        check(stage_ != Stage::Accumulating || window_.micro_batches() < 2 || idle(), code::call_order,
              "optimizer.zero_grad before backward would drop the gradients of ", window_.micro_batches() - 1,
              " micro-batches of this window; call it after optimizer.step");
        if (stage_ == Stage::Stepped) window_.finish();  // what another model's loss adds from here on may be cleared
        begin_anew();
    }

    /// The sum of the squares of all gradients over all ranks, where it was added up while they were reduced: known where it is finite, and as
    /// long as nobody has written into them since.
    std::optional<double> known_squares() const {
        if (!measured_ || !std::isfinite(squares_) || *measured_ != writes()) return {};
        return squares_;
    }
    std::optional<double> sum_of_squares() const { return known_squares(); }

    std::span<Piece const> owned() const { return pieces_; }
    void settle() {}

    /// Calls `f(i)` for each of the model's `tensors` in their order, when its values are on this rank: all of them always are.
    template <class F>
    void for_each_whole(std::vector<at::Tensor> const& tensors, F&& f) {
        for (size_t i = 0; i < tensors.size(); ++i) f(i);
    }

protected:
    /// Gradients are zero, and nothing has been added to them.
    void begin_anew() {
        if (!cleared_ || *cleared_ != writes()) {
            for (auto& flat : flats_) flat.gradients.zero_();
            touched_by_none();
        }
        cleared_.reset();
        stage_ = Stage::Accumulating;
    }

    /// One flat for each dtype, in memory of this rank's own, which updates all of it.
    void adopt_whole() {
        constexpr auto whole = std::numeric_limits<int64_t>::max();
        adopt(plan_layout(parameters_, registration_order(), whole, whole),
              [](int64_t, int64_t numel, at::TensorOptions const& options) { return at::zeros({numel}, options); });
        for (size_t f = 0; f < flats_.size(); ++f) pieces_.push_back({static_cast<int64_t>(f), 0, flats_[f].gradients.numel(), flats_[f].gradients});
    }

    /// Moves parameters into flats of the given layout; gradients that exist move along.
    /// `allocate(flat index, numel, options)` gives the zeroed 1-D memory for the gradients of one flat.
    template <class Allocate>
    void adopt(Layout const& plan, Allocate&& allocate) {
        at::NoGradGuard no_grad;
        auto const still_untouched = untouched();  // as the old views show it
        std::vector<Flat> made;
        std::vector<std::vector<at::Tensor>> views;
        for (size_t f = 0; f < plan.flats.size(); ++f) {
            auto const& part = plan.flats[f];
            auto const options = parameter(part.places.front().parameter).options().requires_grad(false);
            Flat flat{at::zeros({part.numel}, options), {}, {}};
            std::vector<at::Tensor> old_gradients;
            for (auto const& place : part.places) {
                auto& p = parameter(place.parameter);
                auto view = view_like(flat.parameters, place.begin, p);
                view.copy_(p.detach());
                old_gradients.push_back(p.grad().defined() ? p.grad().detach().clone() : at::Tensor());
                p.set_data(view);
                flat.slots.push_back({parameters_[static_cast<size_t>(place.parameter)].first, p, place.begin, p.numel(), place.parameter});
            }
            flat.gradients = allocate(static_cast<int64_t>(f), part.numel, options);
            auto& slot_views = views.emplace_back();
            for (size_t s = 0; s < flat.slots.size(); ++s) {
                auto& p = flat.slots[s].parameter;
                auto view = view_like(flat.gradients, flat.slots[s].begin, p).variable_data();
                touched_[static_cast<size_t>(flat.slots[s].registration)] = old_gradients[s].defined();
                if (old_gradients[s].defined()) view.copy_(old_gradients[s]);
                p.mutable_grad() = view;
                slot_views.push_back(view);
            }
            made.push_back(std::move(flat));
        }
        for (auto const* slot : still_untouched) touched_[static_cast<size_t>(slot->registration)] = 0;
        flats_ = std::move(made);
        views_ = std::move(views);
        mark_views();
        buckets_ = plan.buckets;
        cleared_.reset();
        forget_squares();
        ++layout_;
    }

    /// A parameter that was given other memory since (`set_data`, `module->to`) goes back into its flat with its new values: an optimizer would
    /// update what nobody uses. Error E_CONFIG when it has become something else.
    void bring_parameters_home() {
        for (size_t f = 0; f < views_.size(); ++f)
            for (size_t s = 0; s < flats_[f].slots.size(); ++s) {
                auto& [name, p, begin, numel, registration] = flats_[f].slots[s];
                auto const& flat = flats_[f].parameters;
                if (p.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() == flat.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl()) [[likely]]
                    continue;
                check(p.dtype() == flat.dtype() && p.device() == flat.device() && p.sizes() == views_[f][s].sizes(), code::config, "optimizer.step: parameter ", name, " is ", p.toString(), " ", p.sizes(),
                      " now; when it was prepared it was ", flat.toString(), " ", views_[f][s].sizes(), ". Change a model before prepare");
                at::NoGradGuard const no_grad;
                auto const home = view_like(flat, begin, views_[f][s]);
                home.copy_(p.detach());
                p.set_data(home);
            }
    }

    /// True when the gradient of a slot is still the view that we gave it. It is not after `module->zero_grad()` (sets to none)
    /// or a backward with create_graph.
    bool aliased(size_t flat, size_t slot) const {
        return flats_[flat].slots[slot].parameter.grad().unsafeGetTensorImpl() == views_[flat][slot].unsafeGetTensorImpl();
    }

    /// Puts a gradient that lives elsewhere back into its place in the flat buffer.
    void repair(size_t flat, size_t slot) {
        at::NoGradGuard no_grad;
        auto& gradient = flats_[flat].slots[slot].parameter.mutable_grad();
        auto& view = views_[flat][slot];
        if (gradient.defined()) view.copy_(gradient.detach());
        else {
            view.zero_();
            seen_[flat][slot] = writes_into(view);
            touched_[static_cast<size_t>(flats_[flat].slots[slot].registration)] = 0;
        }
        gradient = view;
    }

    void repair_all() {
        for (size_t f = 0; f < flats_.size(); ++f)
            for (size_t s = 0; s < flats_[f].slots.size(); ++s)
                if (!aliased(f, s)) [[unlikely]]
                    repair(f, s);
    }

    std::vector<int64_t> registration_order() const {
        std::vector<int64_t> order(parameters_.size());
        std::iota(order.begin(), order.end(), 0);
        return order;
    }

    /// To whose gradient this rank has added nothing since the last step.
    std::vector<Slot const*> untouched() const {
        std::vector<Slot const*> slots;
        for (size_t f = 0; f < flats_.size(); ++f)
            for (size_t s = 0; s < flats_[f].slots.size(); ++s) {
                auto const& slot = flats_[f].slots[s];
                bool const written = f < views_.size() && writes_into(views_[f][s]) != seen_[f][s];
                if (!written && !touched_[static_cast<size_t>(slot.registration)]) [[unlikely]]
                    slots.push_back(&slot);
            }
        return slots;
    }
    /// Which no rank has reached, as of the last `agree`.
    std::vector<Slot const*> reached_by_none() const {
        std::vector<Slot const*> slots;
        for (auto const& flat : flats_)
            for (auto const& slot : flat.slots)
                if (!reached_[static_cast<size_t>(slot.registration)]) [[unlikely]]
                    slots.push_back(&slot);
        return slots;
    }
    /// Where gradients have been reduced: gives the sum of `value` over the ranks, and in the same message tells which parameters any of them has
    /// reached. `sum(t)` adds a tensor up over the ranks.
    template <class Sum>
    double agree(double value, Sum&& sum) {
        auto const message = at::ones({static_cast<int64_t>(parameters_.size()) + 1}, at::kDouble);
        auto* const numbers = message.mutable_data_ptr<double>();
        numbers[parameters_.size()] = value;
        for (auto const* slot : untouched()) numbers[slot->registration] = 0;
        sum(message);
        for (size_t i = 0; i < reached_.size(); ++i) reached_[i] = numbers[i] > 0;
        return numbers[parameters_.size()];
    }

    /// The sum of the squares of all gradients as they are now.
    void set_squares(double sum) { squares_ = sum, measured_ = writes(); }
    void forget_squares() { measured_.reset(); }
    /// Grows with every write that LibTorch counts: into a flat of gradients, or through `p.grad()`.
    uint64_t writes() const {
        uint64_t sum = 0;
        for (auto const& flat : flats_) sum += writes_into(flat.gradients);
        for (auto const& views : views_)
            for (auto const& view : views) sum += writes_into(view);
        return sum;
    }

    at::Tensor& parameter(int64_t i) { return parameters_[static_cast<size_t>(i)].second; }

    NamedParameters parameters_;
    std::vector<Flat> flats_;
    std::vector<std::vector<at::Tensor>> views_;  ///< the gradient view of each slot, which counts the writes into it alone
    std::vector<uint8_t> touched_ = std::vector<uint8_t>(parameters_.size());     ///< by this rank since the last step, where its view does not show it
    std::vector<uint8_t> reached_ = std::vector<uint8_t>(parameters_.size(), 1);  ///< by any rank
    std::vector<Bucket> buckets_;
    std::vector<Piece> pieces_;
    int64_t layout_ = 0;
    Window window_;
    Stage stage_ = Stage::Accumulating;

private:
    static uint32_t writes_into(at::Tensor const& t) { return t.unsafeGetTensorImpl()->version_counter().current_version(); }
    void mark_views() {
        seen_.resize(views_.size());
        for (size_t f = 0; f < views_.size(); ++f) {
            seen_[f].resize(views_[f].size());
            for (size_t s = 0; s < views_[f].size(); ++s) seen_[f][s] = writes_into(views_[f][s]);
        }
    }
    void touched_by_none() {
        std::fill(touched_.begin(), touched_.end(), uint8_t{0});
        mark_views();
    }

    double squares_ = 0;                             ///< of the gradients after `measured_` writes
    std::optional<uint64_t> measured_;
    std::optional<uint64_t> cleared_;                ///< writes after which the last step has left them cleared
    std::vector<std::vector<uint32_t>> seen_;        ///< writes into each view that are no loss's

    static char const* remedy(Stage stage) {
        switch (stage) {
            case Stage::Accumulating: return "; call accelerator.backward first, with a loss that reaches this model, outside no_sync";
            case Stage::Stepped: return "; this window's step has been made, begin the next with zero_grad and backward";
            case Stage::Clipped: return "; step before going on";
            default: return "";
        }
    }
};

}  // namespace accelerate::sharding
