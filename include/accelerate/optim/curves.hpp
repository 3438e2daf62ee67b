#pragma once

#include <accelerate/optim/callable.hpp>
#include <accelerate/optim/schedule_length.hpp>
#include <algorithm>
#include <cmath>
#include <concepts>
#include <numbers>

namespace accelerate::schedule {

/// A schedule that is a pure function of how far training is: `factor(position)` times the optimizer's lr. Closed forms only, so
/// that any position costs the same and a resumed run computes the same numbers.
template <class C>
concept curve = requires(C const& c, int64_t position) {
    { C::kind } -> std::convertible_to<char const*>;
    { c.factor(position) } -> std::convertible_to<double>;
    { c.unit() } -> std::convertible_to<Unit>;
    c.validate();  // Error E_CONFIG for values that cannot work
};

namespace detail {

/// Linear from 0 to 1 over the warm-up, `s / max(1, warmup)`, then `after(s - warmup)`.
template <class After>
double warmed(int64_t s, Length warmup, After&& after) {
    if (s < warmup.value) return static_cast<double>(s) / static_cast<double>(std::max<int64_t>(1, warmup.value));
    return after(s - warmup.value);
}

/// How much of (warmup, total] is done after t, in [0, 1].
inline double progress(int64_t t, Length warmup, Length total) {
    return std::min(1.0, static_cast<double>(t) / static_cast<double>(std::max<int64_t>(1, total.value - warmup.value)));
}

inline void validate_lengths(char const* who, Length warmup, Length total) {
    check(total.value > 0, code::config, "schedule::", who, ": give .total, as in .total = OptimizerSteps{2000}");
    check(warmup.value >= 0 && warmup.value <= total.value, code::config, "schedule::", who, ": .warmup (", warmup.value, ") must be between 0 and .total (", total.value, ")");
}

}  // namespace detail

/// `value`, after a linear warm-up from 0 (transformers' `get_constant_schedule_with_warmup`).
struct Constant {
    Length warmup = {};
    double value = 1;

    static constexpr char const* kind = "Constant";
    Unit unit() const { return common_unit(kind, {warmup}); }
    void validate() const { check(warmup.value >= 0, code::config, "schedule::Constant: .warmup must not be negative"); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t) { return 1.0; }) * value;
    }
};

/// `1 - (1 - min) * x` with x = (s - warmup) / (total - warmup), `min` after total
/// (transformers' `get_linear_schedule_with_warmup`).
struct Linear {
    Length warmup = {};
    Length total = {};
    double min = 0;  ///< as a fraction of the optimizer's lr

    static constexpr char const* kind = "Linear";
    Unit unit() const { return common_unit(kind, {warmup, total}); }
    void validate() const { detail::validate_lengths(kind, warmup, total); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t t) { return min + (1 - min) * (1 - detail::progress(t, warmup, total)); });
    }
};

/// `min + (1 - min) * (1 + cos(2 pi cycles x)) / 2` with x as in `Linear`: half a wave by default (transformers'
/// `get_cosine_schedule_with_warmup`, torch's `CosineAnnealingLR`). With `restarts`, `cycles` falling half waves, each from the
/// top, and `min` at the end (`get_cosine_with_hard_restarts_schedule_with_warmup`). Stays where it is after total.
struct Cosine {
    Length warmup = {};
    Length total = {};
    double min = 0;
    double cycles = 0.5;
    bool restarts = false;

    static constexpr char const* kind = "Cosine";
    Unit unit() const { return common_unit(kind, {warmup, total}); }
    void validate() const {
        detail::validate_lengths(kind, warmup, total);
        check(std::isfinite(cycles), code::config, "schedule::Cosine: .cycles is ", cycles, "; it must be finite");  // its factor would be 0
    }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t t) {
            auto const x = detail::progress(t, warmup, total);
            if (restarts && x >= 1) return min;
            auto const angle = restarts ? std::numbers::pi * std::fmod(cycles * x, 1.0) : std::numbers::pi * cycles * 2.0 * x;
            return min + (1 - min) * std::max(0.0, 0.5 * (1.0 + std::cos(angle)));
        });
    }
};

/// `min + (1 - min) * (1 - x)^power` with x as in `Linear` (transformers' `get_polynomial_decay_schedule_with_warmup`, torch's
/// `PolynomialLR`).
struct Polynomial {
    Length warmup = {};
    Length total = {};
    double power = 1;
    double min = 0;

    static constexpr char const* kind = "Polynomial";
    Unit unit() const { return common_unit(kind, {warmup, total}); }
    void validate() const { detail::validate_lengths(kind, warmup, total); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t t) { return min + (1 - min) * std::pow(1 - detail::progress(t, warmup, total), power); });
    }
};

/// `1 / sqrt((s - warmup + timescale) / timescale)`; `timescale` is the warm-up, or 10000 without one
/// (transformers' `get_inverse_sqrt_schedule`).
struct InverseSqrt {
    Length warmup = {};
    Length timescale = {};

    static constexpr char const* kind = "InverseSqrt";
    Unit unit() const { return common_unit(kind, {warmup, timescale}); }
    void validate() const { check(warmup.value >= 0 && timescale.value >= 0, code::config, "schedule::InverseSqrt: lengths must not be negative"); }
    double factor(int64_t s) const {
        auto const scale = static_cast<double>(timescale.value > 0 ? timescale.value : warmup.value > 0 ? warmup.value : 10000);
        return detail::warmed(s, warmup, [&](int64_t t) { return 1.0 / std::sqrt((static_cast<double>(t) + scale) / scale); });
    }
};

/// `gamma^((s - warmup) / every)`, without steps (torch's `ExponentialLR` at every = 1).
struct Exponential {
    Length warmup = {};
    double gamma = 0.95;
    Length every = OptimizerSteps{1};

    static constexpr char const* kind = "Exponential";
    Unit unit() const { return common_unit(kind, {warmup, every}); }
    void validate() const { check(every.value > 0 && gamma > 0, code::config, "schedule::Exponential: .every and .gamma must be positive"); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t t) { return std::pow(gamma, static_cast<double>(t) / static_cast<double>(every.value)); });
    }
};

/// `gamma^floor((s - warmup) / every)` (torch's `StepLR`).
struct Step {
    Length warmup = {};
    Length every = {};
    double gamma = 0.1;

    static constexpr char const* kind = "Step";
    Unit unit() const { return common_unit(kind, {warmup, every}); }
    void validate() const { check(every.value > 0, code::config, "schedule::Step: give .every, as in .every = Epochs{30}"); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t t) { return std::pow(gamma, static_cast<double>(t / every.value)); });
    }
};

/// `gamma^(number of milestones <= s)` (torch's `MultiStepLR`). Milestones count from the beginning, not from the warm-up's end.
struct MultiStep {
    Length warmup = {};
    std::vector<Length> milestones = {};
    double gamma = 0.1;

    static constexpr char const* kind = "MultiStep";
    Unit unit() const {
        auto lengths = milestones;
        lengths.push_back(warmup);
        return common_unit(kind, lengths);
    }
    void validate() const { check(!milestones.empty(), code::config, "schedule::MultiStep: give .milestones, as in .milestones = {Epochs{30}, Epochs{60}}"); }
    double factor(int64_t s) const {
        return detail::warmed(s, warmup, [&](int64_t) {
            return std::pow(gamma, static_cast<double>(std::count_if(milestones.begin(), milestones.end(), [&](Length m) { return m.value <= s; })));
        });
    }
};

/// Up from `1/div_factor` to 1 over `pct_start` of total, then down to `1/(div_factor * final_div_factor)` (torch's `OneCycleLR`;
/// the optimizer's lr is its `max_lr`; momentum is left alone). `three_phase`: down to `1/div_factor` over another `pct_start`
/// first. Each phase runs from lo to hi as `hi + (lo - hi) * (1 + cos(pi x)) / 2`, or straight with `linear`.
struct OneCycle {
    Length total = {};
    double pct_start = 0.3;
    double div_factor = 25;
    double final_div_factor = 1e4;
    bool three_phase = false;
    bool linear = false;

    static constexpr char const* kind = "OneCycle";
    Unit unit() const { return common_unit(kind, {total}); }
    void validate() const {
        detail::validate_lengths(kind, {}, total);
        check(pct_start >= 0 && pct_start <= 1 && div_factor > 0 && final_div_factor > 0, code::config,
              "schedule::OneCycle: .pct_start must be in [0, 1], .div_factor and .final_div_factor positive");
    }
    double factor(int64_t s) const {
        auto const T = static_cast<double>(total.value), at = std::min(static_cast<double>(s), T - 1);
        auto const low = 1 / div_factor, last = low / final_div_factor;
        auto const up = pct_start * T - 1, down = 2 * pct_start * T - 2;
        if (at <= up) return phase(low, 1, at, 0, up);
        if (!three_phase) return phase(1, last, at, up, T - 1);
        return at <= down ? phase(1, low, at, up, down) : phase(low, last, at, down, T - 1);
    }

private:
    double phase(double from, double to, double at, double begin, double end) const {
        auto const x = end > begin ? (at - begin) / (end - begin) : 1.0;
        return linear ? (to - from) * x + from : to + (from - to) / 2.0 * (std::cos(std::numbers::pi * x) + 1);
    }
};

/// Any function of the position (torch's `LambdaLR`). Keep it pure: it is called for the position after a resume, not for those
/// before.
struct Lambda {
    optim::Callable<double(int64_t)> function = {};
    Unit counts = Unit::OptimizerSteps;

    static constexpr char const* kind = "Lambda";
    Unit unit() const { return counts; }
    void validate() const { check(bool(function), code::config, "schedule::Lambda: give .function, as in .function = [](int64_t s) { return 1.0; }"); }
    double factor(int64_t s) const { return function(s); }
};

}  // namespace accelerate::schedule
