#pragma once

#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>

#include <accelerate/optim/recipes.hpp>
#include <accelerate/optim/sweeps.hpp>
#include <cmath>
#include <concepts>

namespace accelerate::optim {

/// What one update reads and writes, column by column: entry i of every list belongs to the same stretch of memory.
/// Built when the optimizer is bound; a step only passes the lists on.
struct Columns {
    std::vector<at::Tensor> parameters;
    std::vector<at::Tensor> gradients;
    std::vector<std::vector<at::Tensor>> states;  ///< one list per name in the rule's `states`
    std::vector<at::Tensor> steps;                ///< 0-dim fp32 on the parameters' device: the number of this update, from 1
    std::vector<std::vector<at::Tensor>> exponents = {};  ///< of the states that are kept in blocks; undefined elsewhere
    std::vector<at::Tensor> masters = {};         ///< fp32 copies that are updated instead of the parameters; undefined where there are none
};

/// One update of one entry in one pass (see sweeps.hpp): what a rule's `sweep` gets besides recipe and hyper-parameters.
struct SweepCall {
    kernel::Strip strip;
    int64_t step = 1;    ///< the number of this update, from 1
    double scale = 1;    ///< what the gradients in memory are multiplied by first
};

/// The arithmetic of a recipe, apart from binding, grouping and the storage of state. To add an optimizer write an aggregate with
/// the members that all recipes share and specialise this beside it. A rule that can update fp32 memory in one pass has `sweep`, and
/// `sweeps(recipe)` says whether the recipe's options allow it.
template <class Recipe>
struct Rule;

template <class R>
concept sweepable = requires(R const& r, Hyper const& hyper, SweepCall const& call) {
    { Rule<R>::sweeps(r) } -> std::convertible_to<bool>;
    Rule<R>::sweep(r, hyper, call);
};

/// An aggregate of hyper-parameters with a `Rule`.
template <class R>
concept recipe = requires(R const& r, Hyper const& hyper, Columns const& columns, bool first) {
    { r.lr } -> std::convertible_to<double>;
    { r.weight_decay } -> std::convertible_to<double>;
    { r.no_decay_on_norms_and_biases } -> std::convertible_to<bool>;
    { r.groups } -> std::convertible_to<std::vector<ParameterGroup>>;
    { r.operations } -> std::convertible_to<Operations>;
    { r.storage } -> std::convertible_to<optimizer_storage>;
    { r.ema_decay } -> std::convertible_to<double>;
    { Rule<R>::kind } -> std::convertible_to<std::string>;                         // in state dicts
    { Rule<R>::states(r) } -> std::convertible_to<std::vector<std::string>>;       // names of what is kept per parameter
    { Rule<R>::initial(r) } -> std::convertible_to<double>;                        // their value before the first update
    Rule<R>::validate(r);                                                          // Error E_CONFIG for values that cannot work
    Rule<R>::update(r, hyper, columns, first);                                     // one update of every entry of the lists
};

namespace detail {

inline void validate(bool holds, char const* kind, char const* what) { check(holds, code::config, "optim::", kind, ": ", what); }

inline void validate_betas(std::pair<double, double> const& betas, char const* kind) {
    validate(betas.first >= 0 && betas.first < 1 && betas.second >= 0 && betas.second < 1, kind, "betas must be in [0, 1)");
}

template <class R>
void validate_common(R const& r, char const* kind) {
    check_hyper(r.lr, concat("optim::", kind, ": lr"));
    check_hyper(r.weight_decay, concat("optim::", kind, ": weight_decay"));
    validate(r.ema_decay >= 0 && r.ema_decay < 1, kind, "ema_decay must be in [0, 1)");
    validate_storage(r.storage, r.operations, kind);
}

inline float narrowed(double x) { return static_cast<float>(x); }
inline float signed_scale(double scale, bool maximize) { return narrowed(maximize ? -scale : scale); }

template <class R, bool DecoupledDecay>
struct AdamFamily {
    static std::vector<std::string> states(R const& r) {
        std::vector<std::string> names{"exp_avg", "exp_avg_sq"};
        if (r.amsgrad) names.emplace_back("max_exp_avg_sq");
        return names;
    }
    static double initial(R const&) { return 0; }
    static void validate(R const& r) {
        validate_common(r, Rule<R>::kind);
        validate_betas(r.betas, Rule<R>::kind);
        detail::validate(r.eps >= 0, Rule<R>::kind, "eps must not be negative");
    }
    static bool sweeps(R const& r) { return !r.amsgrad; }
    static void sweep(R const& r, Hyper const& h, SweepCall const& call) {
        auto const t = static_cast<double>(call.step);
        auto const bias1 = 1 - std::pow(r.betas.first, t), bias2 = 1 - std::pow(r.betas.second, t);
        kernel::sweep(kernel::AdamNumbers<DecoupledDecay>{.scale = signed_scale(call.scale, r.maximize), .decay = narrowed(DecoupledDecay ? h.lr * h.weight_decay : h.weight_decay),
                                                          .one_minus_beta1 = narrowed(1 - r.betas.first), .beta2 = narrowed(r.betas.second),
                                                          .one_minus_beta2 = narrowed(1 - r.betas.second), .step = narrowed(h.lr / bias1), .root = narrowed(1 / std::sqrt(bias2)),
                                                          .eps = narrowed(r.eps)},
                      call.strip);
    }
    static at::TensorList largest(R const& r, Columns const& c) { return r.amsgrad ? at::TensorList(c.states[2]) : at::TensorList(); }
};

}  // namespace detail

/// `p *= 1 - lr*wd; m = b1*m + (1-b1)*g; v = b2*v + (1-b2)*g*g; p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)`
template <>
struct Rule<AdamW> : detail::AdamFamily<AdamW, true> {
    static constexpr char const* kind = "AdamW";
    static void update(AdamW const& r, Hyper const& h, Columns const& c, bool) {
        at::_fused_adamw_(c.parameters, c.gradients, c.states[0], c.states[1], largest(r, c), c.steps, h.lr, r.betas.first, r.betas.second, h.weight_decay, r.eps,
                          r.amsgrad, r.maximize);
    }
};

/// As AdamW's without its first line, and with `g += wd*p` instead.
template <>
struct Rule<Adam> : detail::AdamFamily<Adam, false> {
    static constexpr char const* kind = "Adam";
    static void update(Adam const& r, Hyper const& h, Columns const& c, bool) {
        at::_fused_adam_(c.parameters, c.gradients, c.states[0], c.states[1], largest(r, c), c.steps, h.lr, r.betas.first, r.betas.second, h.weight_decay, r.eps,
                         r.amsgrad, r.maximize);
    }
};

/// `g += wd*p; b = first ? g : momentum*b + (1-dampening)*g; p -= lr * (nesterov ? g + momentum*b : b)`
template <>
struct Rule<Sgd> {
    static constexpr char const* kind = "Sgd";
    static std::vector<std::string> states(Sgd const& r) { return r.momentum != 0 ? std::vector<std::string>{"momentum_buffer"} : std::vector<std::string>{}; }
    static double initial(Sgd const&) { return 0; }
    static void validate(Sgd const& r) {
        detail::validate_common(r, kind);
        detail::validate(r.momentum >= 0, kind, "momentum must not be negative");
        detail::validate(!r.nesterov || (r.momentum > 0 && r.dampening == 0), kind, "nesterov needs a momentum and no dampening");
    }
    static bool sweeps(Sgd const&) { return true; }
    static void sweep(Sgd const& r, Hyper const& h, SweepCall const& call) {
        using detail::narrowed;
        bool const buffered = r.momentum != 0;
        // At the first update the buffer is zero and takes the whole gradient.
        auto const take = call.step == 1 ? 1 : 1 - r.dampening, gradient = buffered && !r.nesterov ? 0.0 : 1.0, buffer = r.nesterov ? r.momentum : 1.0;
        kernel::sweep(kernel::SgdNumbers{.scale = detail::signed_scale(call.scale, r.maximize), .l2 = narrowed(h.weight_decay), .momentum = narrowed(r.momentum), .take = narrowed(take),
                                         .lr = narrowed(h.lr), .gradient = narrowed(gradient), .buffer = narrowed(buffer), .buffered = buffered},
                      call.strip);
    }
    static void update(Sgd const& r, Hyper const& h, Columns const& c, bool first) {
        at::_fused_sgd_(c.parameters, c.gradients, c.states.empty() ? at::TensorList() : at::TensorList(c.states[0]), h.weight_decay, r.momentum, h.lr, r.dampening,
                        r.nesterov, r.maximize, first);
    }
};

/// `g += wd*p; s += g*g; p -= lr/(1 + (t-1)*lr_decay) * g / (sqrt(s) + eps)`
template <>
struct Rule<Adagrad> {
    static constexpr char const* kind = "Adagrad";
    static std::vector<std::string> states(Adagrad const&) { return {"sum"}; }
    static double initial(Adagrad const& r) { return r.initial_accumulator_value; }
    static void validate(Adagrad const& r) {
        detail::validate_common(r, kind);
        detail::validate(r.lr_decay >= 0 && r.eps >= 0 && r.initial_accumulator_value >= 0, kind, "lr_decay, eps and initial_accumulator_value must not be negative");
    }
    static bool sweeps(Adagrad const&) { return true; }
    static void sweep(Adagrad const& r, Hyper const& h, SweepCall const& call) {
        using detail::narrowed;
        auto const lr = h.lr / (1 + static_cast<double>(call.step - 1) * r.lr_decay);
        kernel::sweep(kernel::AdagradNumbers{.scale = detail::signed_scale(call.scale, r.maximize), .l2 = narrowed(h.weight_decay), .lr = narrowed(lr), .eps = narrowed(r.eps)}, call.strip);
    }
    static void update(Adagrad const& r, Hyper const& h, Columns const& c, bool) {
        at::_fused_adagrad_(c.parameters, c.gradients, c.states[0], c.steps, h.lr, r.lr_decay, h.weight_decay, r.eps, r.maximize);
    }
};

/// `u = b1*m + (1-b1)*g; p = (1 - lr*wd)*p - lr*sign(u); m = b2*m + (1-b2)*g`
template <>
struct Rule<Lion> {
    static constexpr char const* kind = "Lion";
    static std::vector<std::string> states(Lion const&) { return {"exp_avg"}; }
    static double initial(Lion const&) { return 0; }
    static void validate(Lion const& r) {
        detail::validate_common(r, kind);
        detail::validate_betas(r.betas, kind);
    }
    static bool sweeps(Lion const&) { return true; }
    static void sweep(Lion const& r, Hyper const& h, SweepCall const& call) {
        using detail::narrowed;
        kernel::sweep(kernel::LionNumbers{.scale = detail::signed_scale(call.scale, r.maximize), .keep = narrowed(1 - h.lr * h.weight_decay), .lr = narrowed(h.lr),
                                          .beta1 = narrowed(r.betas.first), .one_minus_beta1 = narrowed(1 - r.betas.first), .beta2 = narrowed(r.betas.second),
                                          .one_minus_beta2 = narrowed(1 - r.betas.second)},
                      call.strip);
    }
    static void update(Lion const& r, Hyper const& h, Columns const& c, bool) {
        auto const sign = r.maximize ? -1.0 : 1.0;
        for (size_t i = 0; i < c.parameters.size(); ++i) {
            auto& mean = c.states[0][i];
            auto const direction = mean.mul(r.betas.first).add_(c.gradients[i], sign * (1 - r.betas.first)).sign_();
            c.parameters[i].mul_(1 - h.lr * h.weight_decay).add_(direction, -h.lr);
            mean.mul_(r.betas.second).add_(c.gradients[i], sign * (1 - r.betas.second));
        }
    }
};

}  // namespace accelerate::optim
