#pragma once
// What programs share that draw trainings at random and compare them with LibTorch's own loop in fp64.

#include <torch/torch.h>

#include <accelerate.hpp>
#include <algorithm>
#include <cmath>
#include <iostream>
#include <random>
#include <string>

namespace random_trainings {

namespace acc = accelerate;

/// Draws from a training's number.
class Dice {
public:
    explicit Dice(int64_t number) : generator_(static_cast<uint32_t>(number) * 7919U + 17U) {}
    int64_t operator()(int64_t low, int64_t high) { return low + static_cast<int64_t>(generator_() % static_cast<uint32_t>(high - low + 1)); }
    bool one_in(int64_t n) { return (*this)(1, n) == 1; }

private:
    std::mt19937 generator_;
};

/// The largest difference, and where it was.
class Difference {
public:
    void see(double found, double expected, std::string const& where) {
        auto const error = std::abs(found - expected) / (1e-3 + std::abs(expected));
        if (!(error <= largest_)) largest_ = error, text_ = acc::concat(where, ": ", found, ", LibTorch ", expected);
    }
    void see(at::Tensor const& found, at::Tensor const& expected, std::string const& where) { see(1 + (found - expected).abs().max().item<double>(), 1, where); }
    double largest() const { return largest_; }
    std::string const& text() const { return text_; }

private:
    double largest_ = 0;
    std::string text_;
};

/// Trains as the program's arguments say, FIRST and COUNT; prints what differs, and fails where something did. `train(plan, state)` gives on
/// rank 0 how far a training is from LibTorch's.
template <class Plan, class Train>
void compare_all(int argc, char** argv, Train&& train) {
    acc::check(argc == 3, acc::code::config, "usage: ", argv[0], " FIRST COUNT");
    int64_t const first = std::stoll(argv[1]), count = std::stoll(argv[2]);
    torch::set_default_dtype(caffe2::TypeMeta::Make<double>());
    acc::PartialState state;
    int64_t wrong = 0;
    double largest = 0;
    for (auto number = first; number < first + count; ++number) {
        Plan const plan(number, state.num_processes());
        auto const tell = [&](auto const&... what) { std::cout << acc::concat("training ", number, " on ", state.num_processes(), " ranks ", what..., "\n    ", plan.describe()) << std::endl; };
        Difference difference;
        try {
            difference = train(plan, state);
        } catch (std::exception const& e) {
            if (state.is_main_process()) tell("ends with ", e.what());
            throw;
        }
        if (!(difference.largest() < plan.tolerance())) ++wrong, tell("differs by ", difference.largest(), ": ", difference.text());
        else if (plan.tolerance() < 1e-6) largest = std::max(largest, difference.largest());
    }
    if (state.is_main_process()) std::cout << acc::concat(count, " trainings on ", state.num_processes(), " ranks: ", wrong, " differ from LibTorch's; the others by at most ", largest) << std::endl;
    acc::check(wrong == 0, acc::code::internal, wrong, " trainings differ from LibTorch's");
}

}  // namespace random_trainings
