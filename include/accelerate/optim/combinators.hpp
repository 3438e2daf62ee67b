#pragma once

#include <accelerate/optim/curves.hpp>
#include <tuple>

namespace accelerate::schedule {

/// A linear warm-up before any schedule, which begins when the warm-up has ended:
/// `schedule::Warmup{OptimizerSteps{100}, schedule::Exponential{.gamma = 0.99}}`. From `start` (a fraction of what follows) to
/// the first value of what follows. (torch's `LinearLR(start, 1, length)` before another.)
template <curve Inner>
class Warmup {
public:
    explicit Warmup(Length length, Inner inner, double start = 0) : length_(length), inner_(std::move(inner)), start_(start) {}

    static constexpr char const* kind = "Warmup";
    Unit unit() const {
        auto const inside = inner_.unit();
        check(!length_ || length_.unit == inside, code::config, "schedule::Warmup: a warm-up in ", name(length_.unit), " before a schedule in ", name(inside));
        return inside;
    }
    void validate() const {
        check(length_.value >= 0, code::config, "schedule::Warmup: the length must not be negative");
        inner_.validate();
    }
    double factor(int64_t s) const {
        if (s >= length_.value) return inner_.factor(s - length_.value);
        return (start_ + (1 - start_) * (static_cast<double>(s) / static_cast<double>(length_.value))) * inner_.factor(0);
    }

private:
    Length length_;
    Inner inner_;
    double start_;
};

/// Schedules one after the other: `schedule::Chain{{OptimizerSteps{100}}, schedule::Linear{...}, schedule::Cosine{...}}` changes
/// over at the milestones, one fewer than schedules. Each counts from its own beginning (torch's `SequentialLR`).
template <curve... Curves>
class Chain {
    static_assert(sizeof...(Curves) > 0, "schedule::Chain: give it at least one schedule");

public:
    explicit Chain(std::vector<Length> milestones, Curves... curves) : milestones_(std::move(milestones)), curves_(std::move(curves)...) {}

    static constexpr char const* kind = "Chain";
    Unit unit() const {
        auto const first = std::get<0>(curves_).unit();
        std::apply([&](auto const&... c) { (agree(first, c.unit()), ...); }, curves_);
        for (auto const& m : milestones_) agree(first, m.unit);
        return first;
    }
    void validate() const {
        check(milestones_.size() + 1 == sizeof...(Curves), code::config, "schedule::Chain: ", sizeof...(Curves), " schedules need ", sizeof...(Curves) - 1, " milestones, found ",
              milestones_.size());
        check(std::is_sorted(milestones_.begin(), milestones_.end(), [](Length a, Length b) { return a.value < b.value; }), code::config,
              "schedule::Chain: milestones must ascend");
        std::apply([](auto const&... c) { (c.validate(), ...); }, curves_);
    }
    double factor(int64_t s) const {
        size_t current = 0;
        while (current < milestones_.size() && milestones_[current].value <= s) ++current;
        auto const local = current == 0 ? s : s - milestones_[current - 1].value;
        double result = 0;
        [&]<size_t... I>(std::index_sequence<I...>) { ((I == current ? void(result = std::get<I>(curves_).factor(local)) : void()), ...); }(std::index_sequence_for<Curves...>());
        return result;
    }

private:
    static void agree(Unit a, Unit b) { check(a == b, code::config, "schedule::Chain: parts in ", name(a), " and in ", name(b), "; give all in one unit"); }

    std::vector<Length> milestones_;
    std::tuple<Curves...> curves_;
};

}  // namespace accelerate::schedule
