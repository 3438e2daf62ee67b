#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/state_dict.hpp>
#include <cmath>
#include <concepts>
#include <cstdint>

namespace accelerate {

/// Options of the gradient scaler; names and defaults are those of PyTorch's GradScaler (Accelerate's GradScalerKwargs).
struct grad_scaler_options {
    double init_scale = 65536;
    double growth_factor = 2;        ///< of the scale after `growth_interval` steps in a row without an overflow
    double backoff_factor = 0.5;     ///< of the scale when gradients overflow
    int64_t growth_interval = 2000;
    int64_t hysteresis = 1;          ///< overflows since the last growth that are needed to back off (Megatron's; 1: each)
};

namespace precision {

/// The precision scales no gradient.
struct NoScaler {
    explicit NoScaler(grad_scaler_options const&) {}
};

/// The loss is multiplied by one number for the whole run. Error E_CONFIG for a scale that is not positive and finite.
class ConstantScaler {
public:
    static constexpr bool dynamic = false;

    explicit ConstantScaler(grad_scaler_options const& options) : scale_(static_cast<float>(options.init_scale)) {
        check(std::isfinite(scale_) && scale_ > 0, code::config, "gradient scaler: init_scale is ", options.init_scale, "; it must be positive and finite in fp32");
    }

    float get_scale() const { return scale_; }
    void update(bool /*found_inf*/) {}

    template <std::same_as<StateDict> State = StateDict>  // templates: who saves nothing does not compile JSON
    State state_dict() const {
        State state;
        state.values = {{"scale", scale_}};
        return state;
    }
    template <std::same_as<StateDict> State>
    void load_state_dict(State const& state) {
        *this = ConstantScaler({.init_scale = state.template value<double>("scale", "gradient scaler")});
    }

private:
    float scale_;
};

/// Dynamic loss scaling (Micikevicius et al., "Mixed Precision Training", ICLR 2018; the arithmetic of PyTorch's GradScaler): the scale
/// shrinks when gradients overflow and grows after a long run without. One `update` a step, whatever the number of optimizers.
/// Error E_CONFIG for options that cannot work.
class DynamicScaler {
public:
    static constexpr bool dynamic = true;

    explicit DynamicScaler(grad_scaler_options const& options) : options_(options), scale_(static_cast<float>(options.init_scale)), patience_(options.hysteresis) {
        auto const require = [](bool holds, char const* what, auto value, char const* range) { check(holds, code::config, "gradient scaler: ", what, " is ", value, "; it must be ", range); };
        require(std::isfinite(scale_) && scale_ > 0, "init_scale", options.init_scale, "positive and finite in fp32");
        require(options.growth_factor > 1 && std::isfinite(options.growth_factor), "growth_factor", options.growth_factor, "above 1");
        require(options.backoff_factor > 0 && options.backoff_factor < 1, "backoff_factor", options.backoff_factor, "between 0 and 1");
        require(options.growth_interval >= 1, "growth_interval", options.growth_interval, "at least 1");
        require(options.hysteresis >= 1, "hysteresis", options.hysteresis, "at least 1");
    }

    float get_scale() const { return scale_; }

    /// After each step: whether a gradient of it was not finite.
    void update(bool found_inf) {
        if (found_inf) {
            growth_tracker_ = 0;
            if (--patience_ <= 0) scale_ = static_cast<float>(scale_ * options_.backoff_factor);
            return;
        }
        if (++growth_tracker_ < options_.growth_interval) return;
        growth_tracker_ = 0;
        patience_ = options_.hysteresis;
        auto const grown = static_cast<float>(scale_ * options_.growth_factor);
        if (std::isfinite(grown)) scale_ = grown;
    }

    /// Python's names for what Python has.
    template <std::same_as<StateDict> State = StateDict>
    State state_dict() const {
        State state;
        state.values = {{"scale", scale_},
                        {"growth_factor", options_.growth_factor},
                        {"backoff_factor", options_.backoff_factor},
                        {"growth_interval", options_.growth_interval},
                        {"_growth_tracker", growth_tracker_},
                        {"hysteresis", options_.hysteresis},
                        {"patience", patience_}};
        return state;
    }

    /// Restores scale and trackers, and the options as Python does. Error E_DATA for a state that is not a scaler's; nothing has been
    /// changed then.
    template <std::same_as<StateDict> State>
    void load_state_dict(State const& state) {
        auto const who = "gradient scaler";
        grad_scaler_options options{state.template value<double>("scale", who), state.template value<double>("growth_factor", who), state.template value<double>("backoff_factor", who),
                                    state.template value<int64_t>("growth_interval", who), options_.hysteresis};
        if (state.values.contains("hysteresis")) options.hysteresis = state.template value<int64_t>("hysteresis", who);
        DynamicScaler loaded(options);
        loaded.growth_tracker_ = state.template value<int64_t>("_growth_tracker", who);
        if (state.values.contains("patience")) loaded.patience_ = state.template value<int64_t>("patience", who);
        check(loaded.growth_tracker_ >= 0 && loaded.growth_tracker_ <= options.growth_interval && loaded.patience_ <= options.hysteresis, code::data, who, ".load_state_dict: a growth tracker of ", loaded.growth_tracker_,
              " and a patience of ", loaded.patience_, " cannot be");
        *this = loaded;
    }

private:
    grad_scaler_options options_;
    float scale_;
    int64_t growth_tracker_ = 0;
    int64_t patience_;
};

/// The scaler of a precision policy; `NoScaler` where it has none.
template <class Precision>
struct scaler_of_policy {
    using type = NoScaler;
};
template <class Precision>
    requires requires { typename Precision::scaler; }
struct scaler_of_policy<Precision> {
    using type = typename Precision::scaler;
};
template <class Precision>
using scaler_of = typename scaler_of_policy<Precision>::type;

}  // namespace precision
}  // namespace accelerate
