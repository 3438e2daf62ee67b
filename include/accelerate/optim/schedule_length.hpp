#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/units.hpp>
#include <initializer_list>
#include <type_traits>
#include <vector>

namespace accelerate::schedule {

/// What a schedule counts. `Any` is a length that was not given: it takes the unit of the others.
enum class Unit { Any, OptimizerSteps, Samples, Tokens, Epochs };

template <class Tag>
inline constexpr Unit unit_of = Unit::Any;
template <>
inline constexpr Unit unit_of<unit::optimizer_steps> = Unit::OptimizerSteps;
template <>
inline constexpr Unit unit_of<unit::samples> = Unit::Samples;
template <>
inline constexpr Unit unit_of<unit::tokens> = Unit::Tokens;
template <>
inline constexpr Unit unit_of<unit::epochs> = Unit::Epochs;

constexpr char const* name(Unit unit) {
    switch (unit) {
        case Unit::OptimizerSteps: return unit::optimizer_steps::name;
        case Unit::Samples: return unit::samples::name;
        case Unit::Tokens: return unit::tokens::name;
        case Unit::Epochs: return unit::epochs::name;
        case Unit::Any: break;
    }
    return "any unit";
}

/// A stretch of training with its unit: made from `OptimizerSteps{100}`, `Samples{n}`, `Tokens{n}` or `Epochs{n}`, and from
/// nothing else, so that a bare number is a compile error.
struct Length {
    int64_t value = 0;
    Unit unit = Unit::Any;

    constexpr Length() = default;
    template <class Tag>
        requires(unit_of<Tag> != Unit::Any)
    constexpr Length(Count<Tag> count) : value(count.value), unit(unit_of<Tag>) {}

    template <class Number>
        requires std::is_arithmetic_v<Number>
    constexpr Length(Number) {
        static_assert(!std::is_arithmetic_v<Number>, "schedule: a length needs its unit, as in acc::OptimizerSteps{2000}; there are Samples, Tokens and Epochs too");
    }

    explicit constexpr operator bool() const { return unit != Unit::Any; }
};

/// The one unit of several lengths (optimizer steps where none is given). Error E_CONFIG when they differ.
inline Unit common_unit(char const* who, std::vector<Length> const& lengths) {
    auto unit = Unit::Any;
    for (auto const& length : lengths) {
        if (length.unit == Unit::Any) continue;
        check(unit == Unit::Any || unit == length.unit, code::config, "schedule::", who, ": lengths in ", name(unit), " and in ", name(length.unit), "; give all in one unit");
        unit = length.unit;
    }
    return unit == Unit::Any ? Unit::OptimizerSteps : unit;
}

}  // namespace accelerate::schedule
