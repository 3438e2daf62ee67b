// Trainings of three models drawn at random, against LibTorch's own loop in fp64: whose window a micro-batch is part of, which models a loss
// reaches and in what way, which losses are infinite on one rank, what stays on its rank for now, which gradients are clipped together, who
// steps, where it stops and goes on; under half of the shardings gradients are scaled. Each follows from its number and the number of ranks.
//
//   random_models FIRST COUNT
//
// Prints what differs, and fails where something did. Run by `tools/test --full --stage random`.
#include "support/random_trainings.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <array>
#include <bitset>
#include <cmath>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace acc = accelerate;
using random_trainings::Dice, random_trainings::Difference;
constexpr size_t models = 3;
constexpr int64_t width = 4;
constexpr double max_norm = 0.7;
constexpr acc::grad_scaler_options scaler{.init_scale = 1024, .growth_interval = 3};
using Some = std::bitset<models>;  ///< of the models

enum class How { Ddp, DdpOverlapped, DdpSliced, Fsdp };

struct Loss {
    Some reached;
    bool chained;    ///< through one model after another; else a sum of them side by side
    int64_t number;  ///< what its data are drawn from
    Some held;       ///< the models under `no_sync`
    int64_t broken = -1;  ///< the rank on which it is infinite
};

struct MicroBatch {
    bool in_window;  ///< of the models `window`
    Some window;
    std::vector<Loss> losses;
    Some clipped, stepped;
    bool looks;      ///< evaluates all models behind each backward
    bool norm_is_finite = true;
    Some skipped = {};  ///< of the steps, where a gradient is not finite
    bool last_skipped = false;  ///< by the last verdict so far
};

/// Which gradients may be used: one verdict for all that are complete when the first of them is, and whether they were not finite; the loss scale
/// follows from it.
class Verdicts {
public:
    explicit Verdicts(bool scales) : scales_(scales) {}

    /// Of the models that a loss is to reach, those that it may: the loss scale of one is that of all.
    Some under_one_scale(Some reached) const {
        if (!scales_) return reached;
        for (size_t i = 0; i < models; ++i)
            for (size_t j = 0; j < models; ++j)
                if (reached[i] && reached[j] && scale_of_[i] != scale_of_[j] && scale_of_[i] != 0 && scale_of_[j] != 0) return Some().set(i);
        return reached;
    }
    /// A backward adds to the gradients of `reached`, and completes what is there of `others`.
    void backward(Some reached, Some others, bool broken) {
        if (broken) broken_ |= reached;
        double scale = 0;
        for (size_t i = 0; i < models; ++i) {
            if (reached[i] && scale_of_[i] != 0) scale = scale_of_[i];
            if (reached[i] || others[i]) decided_[i] = false;
        }
        for (size_t i = 0; i < models; ++i)
            if (reached[i]) scale_of_[i] = scale != 0 ? scale : scale_;
    }
    /// Whether the norm is a number; where it is not, none of what it is of may be used.
    bool clip(Some clipped) {
        bool const finite = (clipped & broken_).none();
        if (!finite) broken_ |= clipped, decided_ &= ~(clipped & allowed_);
        return finite;
    }
    /// Which of the models that step, one after another, skip it. `complete`: those whose gradients wait for a step.
    Some step(Some stepped, Some complete) {
        Some skipped;
        for (size_t i = 0; i < models; ++i) {
            if (!stepped[i]) continue;
            if (!decided_[i]) decide(complete & ~decided_);
            skipped[i] = !allowed_[i];
            complete[i] = false;
        }
        decided_ &= ~stepped, broken_ &= ~stepped;
        for (size_t i = 0; i < models; ++i)
            if (stepped[i]) scale_of_[i] = 0;
        return skipped;
    }
    bool last_skipped() const { return last_skipped_; }

private:
    void decide(Some members) {
        last_skipped_ = (members & broken_).any();
        decided_ |= members;
        allowed_ = (allowed_ & ~members) | (last_skipped_ ? Some() : members);
        if (last_skipped_) scale_ /= 2, in_a_row_ = 0;
        else if (++in_a_row_ == scaler.growth_interval) scale_ *= 2, in_a_row_ = 0;
    }

    bool scales_, last_skipped_ = false;
    Some broken_, decided_, allowed_;
    double scale_ = scaler.init_scale;
    std::array<double, models> scale_of_{};
    int64_t in_a_row_ = 0;
};

/// All that is drawn.
struct Plan {
    Plan(int64_t n, int64_t world) : number(n) {
        Dice dice(n);
        how = static_cast<How>(dice(0, 3)), steps = dice(1, 3), adam = dice.one_in(2), keep = dice.one_in(3);
        weighted = dice.one_in(2);  // then each window is stepped: its weight would divide what another one has left
        bool const outside = !weighted && dice.one_in(2), windows = !outside || dice.one_in(3), holds = dice.one_in(2), breaks = dice.one_in(2);
        micro_batches.resize(static_cast<size_t>(dice(3, 12)));
        if (dice.one_in(2)) stop = dice(1, static_cast<int64_t>(micro_batches.size()) - 1);
        auto const some = [&] { return Some(static_cast<unsigned long>(dice(1, 7))); };
        std::array<int64_t, models> position{};
        Some open, waiting, complete;  // windows; models whose gradients wait for a step; those of which no micro-batch is on its rank alone
        Verdicts verdicts(scales());
        for (auto& m : micro_batches) {
            m.in_window = windows && (!outside || dice.one_in(2));
            m.window = some();
            m.looks = dice.one_in(4);
            auto const allowed = m.in_window ? m.window : Some().set();
            if (m.in_window)
                for (size_t i = 0; i < models; ++i)
                    if (m.window[i]) open[i] = ++position[i] % steps != 0;
            auto const add = [&](Loss loss) {
                loss.reached = verdicts.under_one_scale(loss.reached);
                loss.broken = breaks && dice.one_in(6) ? dice(0, world - 1) : -1;
                // Of a window that ends here each backward that is not held completes what is there; else only one that reaches it.
                auto const seen_to = m.in_window ? loss.reached | (m.window & waiting) : loss.reached;
                verdicts.backward(loss.reached, seen_to & ~complete & ~open & ~loss.held, loss.broken >= 0);
                waiting |= loss.reached;
                complete = (complete & ~loss.reached) | (seen_to & ~open & ~loss.held);
                m.losses.push_back(std::move(loss));
            };
            for (auto count = dice.one_in(8) ? 0 : dice(1, 2); count > 0; --count) {  // a batch may be passed over
                auto reached = some() & allowed;
                if (reached.none()) reached = allowed;
                add({reached, dice.one_in(2), dice(0, 1 << 20), holds && dice.one_in(2) ? some() : Some()});
            }
            for (size_t i = 0; i < models; ++i)  // some of what is held so far goes on
                if (auto const held = allowed & waiting & ~open & ~complete; held[i] && dice.one_in(2)) add({Some().set(i), false, dice(0, 1 << 20), {}});
            auto const ready = allowed & waiting & complete & ~open;
            m.stepped = weighted ? ready : ready & (some() | some());
            if (dice.one_in(2)) m.clipped = m.stepped & some();
            m.norm_is_finite = verdicts.clip(m.clipped);
            m.skipped = verdicts.step(m.stepped, waiting & complete & ~open);
            m.last_skipped = verdicts.last_skipped();
            waiting &= ~m.stepped, complete &= ~m.stepped;
        }
    }

    int64_t number;
    How how;
    int64_t steps, stop = -1;
    bool adam, keep, weighted;
    std::vector<MicroBatch> micro_batches;

    bool scales() const { return how == How::DdpOverlapped || how == How::Fsdp; }
    double tolerance() const { return 1e-9; }
    std::string describe() const {
        auto text = acc::concat("sharding ", static_cast<int>(how), ", steps ", steps, ", adam ", adam, ", keep ", keep, ", weighted ", weighted, ", stop ", stop);
        for (auto const& m : micro_batches) {
            text += acc::concat("\n    ", m.in_window ? "window of " + m.window.to_string() : "no window", m.looks ? ", looks" : "", ":");
            for (auto const& loss : m.losses) text += acc::concat(" [", loss.reached.to_string(), loss.chained ? " chained" : "", loss.held.any() ? " held " + loss.held.to_string() : "", loss.broken >= 0 ? " broken" : "", "]");
            text += acc::concat(" clips ", m.clipped.to_string(), " steps ", m.stepped.to_string(), " skips ", m.skipped.to_string());
        }
        return text;
    }
};

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    Net() : first(this, "first", width, width), second(this, "second", width, width), gain(register_parameter("gain", torch::randn({width}))) {}
    torch::Tensor forward(torch::Tensor x) { return second(torch::tanh(first(x))) * gain + x; }
    acc::Unit<S, torch::nn::Linear> first, second;  // which casts nothing in fp64, so that precisions that scale compute the same
    torch::Tensor gain;
};

/// The loss on a rank's data; `forward(i, x)` is through a model.
template <class Forward>
at::Tensor value_of(Plan const& plan, Loss const& loss, int64_t rank, Forward&& forward) {
    Dice dice(plan.number * 131 + loss.number * 7 + rank);
    auto const x = torch::empty({dice(1, 3), width});
    for (int64_t i = 0; i < x.numel(); ++i) x.view(-1)[i] = static_cast<double>(dice(-100, 100)) / 50;
    auto through = x, sum = torch::zeros_like(x);
    for (size_t i = 0; i < models; ++i) {
        if (!loss.reached[i]) continue;
        if (loss.chained) through = forward(i, through);
        else sum = sum + forward(i, x) * static_cast<double>(i + 1);
    }
    auto const squares = (loss.chained ? through : sum).square();
    return plan.weighted ? squares.sum() : squares.mean();
}
double weight_of(Plan const& plan, Loss const& loss, int64_t rank) { return static_cast<double>(Dice(plan.number * 31 + loss.number * 3 + rank)(1, 5)); }

// ---- the training -------------------------------------------------------------------------------------------------------------------

using States = std::array<acc::TensorMap, models>;

struct Result {
    States initial, final;
    std::vector<double> norms;
    std::vector<std::pair<Some, bool>> skipped;  ///< of a micro-batch's steps; and whether the last step was
};

/// `f` of some of three things.
template <class A, class B, class C, class F>
void apply_to(Some some, A& a, B& b, C& c, F&& f) {
    switch (some.to_ulong()) {
        case 1: return f(a);
        case 2: return f(b);
        case 3: return f(a, b);
        case 4: return f(c);
        case 5: return f(a, c);
        case 6: return f(b, c);
        case 7: return f(a, b, c);
    }
}

/// Trains from the beginning, or from where it has been stopped; false: it has been stopped.
template <class Run, class Recipe>
bool run_with(Plan const& plan, Recipe const& recipe, std::filesystem::path const& dir, Result& result, bool resumed) {
    Run accelerator({.gradient_accumulation_steps = plan.steps, .seed = plan.number, .keep_gradients = plan.keep, .grad_scaler = scaler});
    auto const make = [&] { return accelerator.template make<Net>(); };
    auto [a, b, c, of_a, of_b, of_c] = accelerator.prepare(make(), make(), make(), recipe, acc::optim::Sgd{.lr = 0.004, .momentum = 0.5}, recipe);
    auto const states = [&, &a = a, &b = b, &c = c] { return States{accelerator.get_state_dict(a), accelerator.get_state_dict(b), accelerator.get_state_dict(c)}; };
    auto const forward = [&a = a, &b = b, &c = c](size_t i, at::Tensor const& x) { return i == 0 ? a(x) : i == 1 ? b(x) : c(x); };
    auto const rank = accelerator.process_index();
    auto const backward = [&](Loss const& loss) {
        auto const value = value_of(plan, loss, rank, forward) * (loss.broken == rank ? std::numeric_limits<double>::infinity() : 1);
        if (plan.weighted) accelerator.backward(acc::weighted(value, weight_of(plan, loss, rank)));
        else accelerator.backward(value);
    };
    auto const body = [&, &a = a, &b = b, &c = c, &of_a = of_a, &of_b = of_b, &of_c = of_c](MicroBatch const& m) {
        for (auto const& loss : m.losses) {
            if (loss.held.none()) backward(loss);
            apply_to(loss.held, a, b, c, [&](auto&... held) {
                auto const local = accelerator.no_sync(held...);
                backward(loss);
            });
            if (!m.looks) continue;
            torch::NoGradGuard const no_grad;
            for (size_t i = 0; i < models; ++i) static_cast<void>(forward(i, torch::ones({2, width})));
        }
        apply_to(m.clipped, a, b, c, [&](auto&... clipped) { result.norms.push_back(accelerator.clip_grad_norm(std::tie(clipped...), max_norm).template item<double>()); });
        apply_to(m.stepped, of_a, of_b, of_c, [](auto&... stepped) { (stepped.step(), ...), (stepped.zero_grad(), ...); });
        result.skipped.emplace_back(Some(), accelerator.optimizer_step_was_skipped());
        size_t i = 0;
        apply_to(Some().set(), of_a, of_b, of_c, [&](auto const&... optimizers) { ((result.skipped.back().first[i] = m.stepped[i] && optimizers.step_was_skipped(), ++i), ...); });
    };
    if (resumed) accelerator.load_state(dir);
    else result.initial = states();
    for (auto i = resumed ? plan.stop : 0; i < static_cast<int64_t>(plan.micro_batches.size()); ++i) {
        if (!resumed && i == plan.stop) {
            accelerator.save_state(dir);
            return false;
        }
        auto const& m = plan.micro_batches[static_cast<size_t>(i)];
        if (!m.in_window) body(m);
        else apply_to(m.window, a, b, c, [&](auto&... in_window) {
            auto const window = accelerator.accumulate(in_window...);
            body(m);
        });
    }
    result.final = states();
    return true;
}
template <class Sharding, class Precision = acc::precision::Fp32>
bool run_under(Plan const& plan, std::filesystem::path const& dir, Result& result, bool resumed) {
    using Run = acc::Accelerator<acc::device::Cpu, Precision, Sharding, acc::loader::Stateful<>>;
    if (plan.adam) return run_with<Run>(plan, acc::optim::AdamW{.lr = 0.02, .weight_decay = 0.1, .no_decay_on_norms_and_biases = false}, dir, result, resumed);
    return run_with<Run>(plan, acc::optim::Sgd{.lr = 0.004, .momentum = 0.5}, dir, result, resumed);
}
bool run(Plan const& plan, std::filesystem::path const& dir, Result& result, bool resumed) {
    switch (plan.how) {
        case How::Ddp: return run_under<acc::sharding::Ddp<>>(plan, dir, result, resumed);
        case How::DdpOverlapped: return run_under<acc::sharding::Ddp<acc::ddp{.first_bucket_kb = 1, .find_unused_parameters = true, .overlap = acc::Overlap::On}>, acc::precision::Fp16<>>(plan, dir, result, resumed);
        case How::DdpSliced: return run_under<acc::sharding::Ddp<acc::ddp{.gather_gradients = false}>>(plan, dir, result, resumed);
        case How::Fsdp: break;
    }
    return run_under<acc::sharding::Fsdp<>, acc::precision::Fp16<>>(plan, dir, result, resumed);
}

// ---- LibTorch's loop ----------------------------------------------------------------------------------------------------------------

/// A model in one process, with what the losses since its last step add up to.
struct ByHand {
    ByHand(Plan const& plan, size_t number, acc::TensorMap const& initial) {
        torch::NoGradGuard const no_grad;
        for (auto const& item : net.named_parameters()) item.value().copy_(initial.at(item.key()));
        if (plan.adam && number != 1) optimizer = std::make_unique<torch::optim::AdamW>(net.parameters(), torch::optim::AdamWOptions(0.02).weight_decay(0.1));
        else optimizer = std::make_unique<torch::optim::SGD>(net.parameters(), torch::optim::SGDOptions(0.004).momentum(0.5));
    }
    Net<> net;
    std::unique_ptr<torch::optim::Optimizer> optimizer;
    double weight = 0;
};

Difference compare(Plan const& plan, int64_t world, Result const& result) {
    std::vector<std::unique_ptr<ByHand>> all;
    for (size_t i = 0; i < models; ++i) all.push_back(std::make_unique<ByHand>(plan, i, result.initial[i]));
    Difference difference;
    auto norm = result.norms.begin();
    auto skipped = result.skipped.begin();
    for (auto const& m : plan.micro_batches) {
        difference.see(static_cast<double>(skipped->first.to_ulong()), static_cast<double>(m.skipped.to_ulong()), "skipped steps");
        difference.see(skipped++->second, m.last_skipped, "whether the last step was skipped");
        for (auto const& loss : m.losses) {
            auto sum = torch::zeros({});
            for (int64_t rank = 0; rank < world; ++rank) {
                sum = sum + value_of(plan, loss, rank, [&](size_t i, at::Tensor const& x) { return all[i]->net.forward(x); });
                for (size_t i = 0; i < models; ++i) all[i]->weight += loss.reached[i] ? weight_of(plan, loss, rank) : 0;
            }
            (plan.weighted ? sum : sum / static_cast<double>(world * plan.steps)).backward();
        }
        std::vector<at::Tensor> clipped;
        for (size_t i = 0; i < models; ++i) {
            if (!m.stepped[i]) continue;
            for (auto& p : all[i]->net.parameters()) {
                if (plan.weighted) p.mutable_grad().div_(all[i]->weight);
                if (m.clipped[i]) clipped.push_back(p);
            }
        }
        if (m.clipped.any()) {
            auto const found = *norm++;
            if (m.norm_is_finite) difference.see(found, torch::nn::utils::clip_grad_norm_(clipped, max_norm), "a norm");
            else difference.see(std::isfinite(found), false, "whether a norm is finite");
        }
        for (size_t i = 0; i < models; ++i) {
            if (!m.stepped[i]) continue;
            if (!m.skipped[i]) all[i]->optimizer->step();
            all[i]->optimizer->zero_grad(), all[i]->weight = 0;
        }
    }
    for (size_t i = 0; i < models; ++i)
        for (auto const& item : all[i]->net.named_parameters()) difference.see(result.final[i].at(item.key()), item.value().detach(), acc::concat("model ", i, ", ", item.key()));
    return difference;
}

template <class State>
Difference train(Plan const& plan, State& state) {
    auto const dir = std::filesystem::temp_directory_path() / acc::concat("random_models_", plan.number, "_", state.num_processes());
    Result result;
    if (!run(plan, dir, result, false)) run(plan, dir, result, true);
    if (!state.is_main_process()) return {};
    std::filesystem::remove_all(dir);
    return compare(plan, state.num_processes(), result);
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] { random_trainings::compare_all<Plan>(argc, argv, [](Plan const& plan, auto& state) { return train(plan, state); }); });
}
