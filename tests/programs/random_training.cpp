// Trainings drawn at random, against LibTorch's own loop in fp64: what the model consists of, how its gradients are gathered, weighted,
// clipped and by what optimized, what is looked at in between, where it stops and under which sharding it goes on. Each follows from its
// number and the number of ranks.
//
//   random_training FIRST COUNT
//
// Prints what differs, and fails where something did. Run by `tools/test --full --stage random`.
#include "support/random_trainings.hpp"
#include "support/units.hpp"

#include <torch/torch.h>

#include <accelerate.hpp>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace acc = accelerate;
using random_trainings::Dice, random_trainings::Difference;
constexpr int64_t vocabulary = 9, width = 6, length = 3;
constexpr double infinity = std::numeric_limits<double>::infinity();

enum class Recipe { AdamW, Sgd, Adagrad, Adam, TorchAdamW };
enum class Clip { Not, Norm, Value };
enum class Branch { Always, ByMicroBatch, ByRankToo };  ///< when the unit `extra` is used
enum class How { DdpOverlapped, DdpSliced, Fsdp, FsdpGathered };

struct Shape {
    int64_t layers = 0, recompute_every = 0, freeze_every = 0;  ///< 0: none
    bool tied = false, twice = false, loose = false, nested = false, two_results = false, single = false;
};

/// All that is drawn.
struct Plan {
    explicit Plan(int64_t n, int64_t world) : number(n) {
        Dice dice(n);
        shape = {dice(0, 3), dice(0, 2), dice.one_in(2) ? dice(2, 6) : 0, dice.one_in(2), dice.one_in(2), dice.one_in(2), dice.one_in(2), dice.one_in(2)};
        steps = dice(1, 3), epochs = dice(1, 3), samples = dice(world, 8 * world), batch_size = dice(1, 3);
        shuffle = dice.one_in(2), drop_last = dice.one_in(4), split_batches = dice.one_in(4), workers = dice.one_in(3) ? 2 : 0;
        first = static_cast<How>(dice(0, 3)), second = static_cast<How>(dice(0, 3));
        branch = static_cast<Branch>(dice(0, first <= How::DdpSliced && second <= How::DdpSliced ? 2 : 1));
        recipe = static_cast<Recipe>(dice(0, first == How::DdpOverlapped && second == first ? 4 : 3));
        shape.single = recipe == Recipe::Sgd && dice.one_in(2);  // others divide by gradients, which makes much of fp32's rounding where these are next to nothing
        clip = static_cast<Clip>(dice(0, 2)), norm_type = std::array{1.0, 2.0, infinity}[static_cast<size_t>(dice(0, 2))];
        no_decay = recipe != Recipe::TorchAdamW && dice.one_in(2), decays = dice.one_in(2);
        apart = recipe != Recipe::TorchAdamW && shape.freeze_every == 0 && dice.one_in(4);
        weighted = dice.one_in(2), rescale = dice.one_in(2), two_losses = dice.one_in(4), keep = dice.one_in(3);
        no_sync = !(weighted && two_losses) && dice.one_in(4);  // outside `accumulate` each loss has its own weight
        if (dice.one_in(3)) broken = dice(0, 12), broken_rank = dice(0, world - 1);
        if (dice.one_in(2)) stop = dice(1, 12);
        asynchronous = dice.one_in(2);
        looks = dice.one_in(2) ? dice(0, 31) : 0;
        behind_epoch = dice.one_in(3);
    }

    int64_t number;
    Shape shape;
    int64_t steps, epochs, samples, batch_size, workers;
    bool shuffle, drop_last, split_batches;
    How first, second;
    Branch branch;
    Recipe recipe;
    Clip clip;
    double norm_type;
    bool no_decay, apart, decays;  ///< `apart`: some of the parameters have an optimizer of their own. `decays`: the lr, by a schedule
    bool weighted, rescale, two_losses, keep;
    bool no_sync;                  ///< windows by `no_sync` instead of `accumulate`
    int64_t broken = -1, broken_rank = 0;  ///< the micro-batch whose loss is infinite on one rank
    int64_t stop = -1;             ///< behind so many micro-batches it stops and is resumed
    bool behind_epoch;             ///< it stops when the epoch has ended, behind the loop
    bool asynchronous;
    int64_t looks;                 ///< bits: where between the calls of a step the model is evaluated or its state is taken

    std::string describe() const {
        return acc::concat("layers ", shape.layers, ", recompute ", shape.recompute_every, ", freeze ", shape.freeze_every, ", tied ", shape.tied, ", twice ", shape.twice, ", loose ", shape.loose,
                           ", nested ", shape.nested, ", two results ", shape.two_results, ", single ", shape.single, "; steps ", steps, ", epochs ", epochs, ", samples ", samples, ", batch size ", batch_size,
                           ", workers ", workers, ", shuffle ", shuffle, ", drop last ", drop_last, ", split ", split_batches, "; sharding ", static_cast<int>(first), " and ", static_cast<int>(second),
                           ", branch ", static_cast<int>(branch), ", recipe ", static_cast<int>(recipe), ", clip ", static_cast<int>(clip), " by ", norm_type, ", no decay ", no_decay, ", apart ", apart,
                           ", schedule ", decays, ", weighted ", weighted, ", rescale ", rescale, ", two losses ", two_losses, ", keep ", keep, ", no_sync ", no_sync, ", broken ", broken, " on rank ",
                           broken_rank, ", stop ", stop, behind_epoch ? " behind the epoch" : "", ", asynchronous ", asynchronous, ", looks ", looks);
    }

    double tolerance() const { return shape.single ? 1e-5 : 1e-9; }
    /// Nesterov's momentum, AMSGrad.
    bool variant() const { return number % 2 == 1; }
    /// What the schedule makes of the lr behind so many steps.
    double factor(int64_t steps_made) const { return decays ? std::pow(0.9, static_cast<double>(steps_made)) : 1; }

    bool uses_extra(int64_t micro_batch, int64_t rank) const {
        if (branch == Branch::Always) return true;
        return Dice(number * 1000 + micro_batch * 10 + (branch == Branch::ByRankToo ? rank : 0))(0, 2) != 0;
    }
};

/// Whether the second of two optimizers has it.
bool is_apart(std::string const& name) { return name.ends_with("bias") || name == "gain"; }

// ---- the model ----------------------------------------------------------------------------------------------------------------------

template <class S>
struct Block : torch::nn::Module {
    Block(int64_t d, bool loose) : up(this, "up", d, 2 * d), down(this, "down", 2 * d, d) {
        if (loose) scale = register_parameter("scale", torch::ones({d}) + torch::randn({d}) * 0.1);
    }
    torch::Tensor forward(torch::Tensor x) {
        auto const y = down(torch::gelu(up(x)));
        return x + (scale.defined() ? y * scale : y);
    }
    acc::Linear<S> up, down;
    torch::Tensor scale;
};

/// In fp32, inside a model in fp64.
template <class S>
struct Single : torch::nn::Module {
    explicit Single(int64_t d) : weight(register_parameter("weight", torch::randn({d, d}, torch::kFloat) * 0.3)) {}
    torch::Tensor forward(torch::Tensor x) { return torch::tanh(torch::matmul(x.to(torch::kFloat), weight)).to(torch::kDouble); }
    torch::Tensor weight;
};

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    explicit Net(Shape const& s)
        : shape(s), words(this, "words", vocabulary, width), body(this, "body", s.layers, width, s.loose), shared(this, "shared", width, width), extra(this, "extra", width, s.loose),
          norm(this, "norm", std::vector<int64_t>{width}), head(register_module("head", torch::nn::Linear(torch::nn::LinearOptions(width, vocabulary).bias(false)))) {
        if (s.two_results) fork.emplace(this, "fork", width);
        if (s.nested) nested.emplace(this, "nested", width);
        if (s.single) single.emplace(this, "single", width);
        if (s.loose) gain = register_parameter("gain", torch::randn({length, width}) * 0.1);
        if (s.tied) acc::tie_weights(*head, "weight", head->weight, words->weight);
        if (s.recompute_every > 0) body->checkpoint_every(s.recompute_every);
        int64_t i = 0;
        for (auto& p : this->parameters())
            if (++i; s.freeze_every > 0 && i % s.freeze_every == 0) p.requires_grad_(false);
    }
    torch::Tensor forward(torch::Tensor tokens, bool use_extra) {
        auto x = words(tokens);
        if (gain.defined()) x = x + gain;
        x = body(x);
        if (fork) {
            auto const [left, right] = (*fork)(x);
            x = x + left * right;
        }
        x = torch::tanh(shared(x));
        if (shape.twice) x = x + torch::tanh(shared(x * 0.5));
        if (use_extra) x = extra(x);
        if (nested) x = (*nested)(x);
        if (single) x = x + (*single)(x);
        return head(norm(x));
    }

    Shape shape;
    acc::Unit<S, torch::nn::Embedding> words;
    acc::Layers<S, Block<S>> body;
    acc::Unit<S, torch::nn::Linear> shared;
    acc::Unit<S, Block<S>> extra;
    acc::Unit<S, torch::nn::LayerNorm> norm;
    torch::nn::Linear head;
    torch::Tensor gain;
    std::optional<acc::Unit<S, units::Fork<S>>> fork;
    std::optional<acc::Unit<S, units::Nested<S>>> nested;
    std::optional<acc::Unit<S, Single<S>>> single;
};

// ---- data and losses ----------------------------------------------------------------------------------------------------------------

/// Tokens, the next token of each, and behind them the sample's number.
struct Sequences {
    int64_t seed, samples;
    size_t size() const { return static_cast<size_t>(samples); }
    at::Tensor operator[](size_t i) const {
        Dice dice(seed * 100 + static_cast<int64_t>(i));
        std::vector<int64_t> sequence(length + 2, static_cast<int64_t>(i));
        for (size_t t = 0; t <= length; ++t) sequence[t] = dice(0, vocabulary - 1);
        return torch::tensor(sequence, torch::kLong);
    }
};
at::Tensor input(at::Tensor const& batch) { return batch.slice(1, 0, length).contiguous(); }
at::Tensor target(at::Tensor const& batch) { return batch.slice(1, 1, length + 1).contiguous(); }
at::Tensor numbers(at::Tensor const& batch) { return batch.select(1, length + 1).contiguous(); }

/// The losses of one micro-batch, each behind a forward of its own.
template <class Forward>
std::vector<at::Tensor> losses(Plan const& plan, at::Tensor const& batch, int64_t micro_batch, int64_t rank, Forward&& forward) {
    std::vector<at::Tensor> all;
    for (int64_t i = 0; i < (plan.two_losses ? 2 : 1); ++i) {
        using Options = torch::nn::functional::CrossEntropyFuncOptions;
        auto const use = plan.uses_extra(micro_batch, rank) != (i == 1 && plan.branch == Branch::ByMicroBatch);
        auto const loss = torch::nn::functional::cross_entropy(forward(input(batch), use).flatten(0, 1), target(batch).flatten(), plan.weighted ? Options().reduction(torch::kSum) : Options());
        all.push_back(i == 0 ? loss : loss * 0.5);
    }
    return all;
}

// ---- the training -------------------------------------------------------------------------------------------------------------------

/// What a rank has seen of one micro-batch.
struct Row {
    std::vector<int64_t> samples;
    double loss = 0, norm = 0, lr = 0;
    bool closed = false, skipped = false;
};

struct Result {
    std::vector<Row> rows;
    acc::TensorMap initial, final;
};

template <class Run>
class Training {
public:
    Training(Plan const& plan, std::filesystem::path dir, Result& result)
        : plan_(plan), dir_(std::move(dir)), result_(result),
          accelerator_({.gradient_accumulation_steps = plan.no_sync ? 1 : plan.steps,
                        .short_window = plan.rescale ? acc::ShortWindow::Rescale : acc::ShortWindow::Divide,
                        .seed = plan.number,
                        .keep_gradients = plan.keep}) {}

    /// Trains from the beginning, or from where it has been stopped; false: it has been stopped.
    bool run(bool resumed) {
        auto const net = accelerator_.template make<Net>(plan_.shape);
        auto const size = plan_.batch_size * (plan_.split_batches ? accelerator_.num_processes() : 1);
        acc::data::Loader loader{Sequences{plan_.number, plan_.samples},
                                 {.batch_size = size, .shuffle = plan_.shuffle, .seed = plan_.number, .drop_last = plan_.drop_last, .split_batches = plan_.split_batches, .num_workers = plan_.workers}};
        acc::schedule::Lambda const schedule{.function = [plan = plan_](int64_t steps_made) { return plan.factor(steps_made); }};
        auto const train = [&](auto recipe) {
            if constexpr (requires { recipe.parameters; }) {
                if (plan_.apart) {
                    recipe.parameters = [](std::string const& name) { return !is_apart(name); };
                    acc::optim::Sgd const rest{.lr = 0.05, .momentum = 0.5, .parameters = is_apart};
                    auto [model, batches, optimizer, other, scheduler, steady] = accelerator_.prepare(net, loader, recipe, rest, schedule, acc::schedule::Constant{});
                    return loop(resumed, model, batches, scheduler, optimizer, other);
                }
            }
            auto [scheduler, batches, optimizer, model] = accelerator_.prepare(schedule, loader, recipe, net);
            return loop(resumed, model, batches, scheduler, optimizer);
        };
        switch (plan_.recipe) {
            case Recipe::AdamW: return train(acc::optim::AdamW{.lr = 0.02, .weight_decay = 0.1, .no_decay_on_norms_and_biases = plan_.no_decay});
            case Recipe::Sgd: return train(acc::optim::Sgd{.lr = 0.1, .momentum = 0.9, .nesterov = plan_.variant(), .weight_decay = 0.05, .no_decay_on_norms_and_biases = plan_.no_decay});
            case Recipe::Adagrad: return train(acc::optim::Adagrad{.lr = 0.05, .lr_decay = 0.1, .weight_decay = 0.02, .initial_accumulator_value = 0.05, .no_decay_on_norms_and_biases = plan_.no_decay});
            case Recipe::Adam: return train(acc::optim::Adam{.lr = 0.02, .weight_decay = 0.03, .amsgrad = plan_.variant(), .no_decay_on_norms_and_biases = plan_.no_decay});
            case Recipe::TorchAdamW: break;
        }
        if constexpr (Run::sharding_type::template model<acc::device::Cpu>::owns_everything) return train(torch_adamw(*net));
        throw acc::Error(acc::code::internal, "a plan with an optimizer that sharding does not take");
    }

private:
    static std::shared_ptr<torch::optim::AdamW> torch_adamw(torch::nn::Module const& net) {
        std::vector<at::Tensor> parameters;
        for (auto const& [name, p] : acc::unique_parameters(net))
            if (p.requires_grad()) parameters.push_back(p);
        return std::make_shared<torch::optim::AdamW>(parameters, torch::optim::AdamWOptions(0.02).weight_decay(0.1));
    }

    template <class Model, class Batches, class Scheduler, class Optimizer, class... Others>
    bool loop(bool resumed, Model& model, Batches& batches, Scheduler& scheduler, Optimizer& optimizer, Others&... others) {
        if (resumed) accelerator_.load_state(dir_);
        else result_.initial = accelerator_.get_state_dict(model);
        auto& rows = result_.rows;
        auto const look = [&](int64_t bit, at::Tensor const& batch) {
            if ((plan_.looks >> bit & 1) == 0) return;
            if (bit == 4) {
                static_cast<void>(accelerator_.get_state_dict(model));
                return;
            }
            torch::NoGradGuard const no_grad;
            static_cast<void>(model(input(batch), rows.size() % 2 == 0));
        };
        auto const backward = [&](at::Tensor const& batch, Row& row) {
            auto const i = static_cast<int64_t>(rows.size()), rank = accelerator_.process_index();
            auto const all = losses(plan_, batch, i, rank, model);
            row.loss = all.front().template item<double>();
            for (auto loss : all) {
                if (i == plan_.broken && rank == plan_.broken_rank) loss = loss * infinity;
                look(0, batch);
                if (plan_.weighted) accelerator_.backward(acc::weighted(loss, static_cast<double>(target(batch).numel())));
                else accelerator_.backward(loss);
                look(1, batch);
            }
        };
        auto const update = [&](at::Tensor const& batch, Row& row) {
            if (plan_.clip == Clip::Norm) row.norm = accelerator_.clip_grad_norm(model, 0.3, plan_.norm_type).template item<double>();
            if (plan_.clip == Clip::Value) accelerator_.clip_grad_value(model, 0.01);
            look(2, batch);
            optimizer.step(), (others.step(), ...);
            row.skipped = row.closed && accelerator_.optimizer_step_was_skipped();
            scheduler.step();
            look(3, batch);
            optimizer.zero_grad(), (others.zero_grad(), ...);
            look(4, batch);
        };
        auto const stop = [&] {
            accelerator_.save_state(dir_, {.asynchronous = plan_.asynchronous});
            accelerator_.wait_for_checkpoint();
            return false;
        };
        while (batches.epoch() < plan_.epochs) {
            for (auto& batch : batches) {
                auto const which = numbers(batch);
                Row row;
                row.samples.assign(which.template const_data_ptr<int64_t>(), which.template const_data_ptr<int64_t>() + which.numel());
                row.lr = optimizer.lr();
                if (!plan_.no_sync) {
                    auto const window = accelerator_.accumulate(model);
                    row.closed = accelerator_.sync_gradients();
                    backward(batch, row);
                    update(batch, row);
                } else if (row.closed = (static_cast<int64_t>(rows.size()) + 1) % plan_.steps == 0; row.closed) {
                    backward(batch, row);
                    update(batch, row);
                } else {
                    auto const local = accelerator_.no_sync(model);
                    backward(batch, row);
                }
                rows.push_back(row);
                if (!plan_.behind_epoch && static_cast<int64_t>(rows.size()) == plan_.stop) return stop();
            }
            if (plan_.behind_epoch && !resumed && plan_.stop > 0 && static_cast<int64_t>(rows.size()) >= plan_.stop) return stop();
        }
        result_.final = accelerator_.get_state_dict(model);
        return true;
    }

    Plan const& plan_;
    std::filesystem::path dir_;
    Result& result_;
    Run accelerator_;
};

template <class Sharding>
bool run_under(Plan const& plan, std::filesystem::path const& dir, Result& result, bool resumed) {
    return Training<acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, Sharding, acc::loader::Stateful<>>>(plan, dir, result).run(resumed);
}
bool run(How how, Plan const& plan, std::filesystem::path const& dir, Result& result, bool resumed) {
    switch (how) {
        case How::DdpOverlapped: return run_under<acc::sharding::Ddp<acc::ddp{.first_bucket_kb = 1, .find_unused_parameters = true, .overlap = acc::Overlap::On}>>(plan, dir, result, resumed);
        case How::DdpSliced: return run_under<acc::sharding::Ddp<acc::ddp{.find_unused_parameters = true, .gather_gradients = false}>>(plan, dir, result, resumed);
        case How::Fsdp: return run_under<acc::sharding::Fsdp<>>(plan, dir, result, resumed);
        case How::FsdpGathered: break;
    }
    return run_under<acc::sharding::Fsdp<acc::fsdp{.reshard_after_forward = false}>>(plan, dir, result, resumed);
}

// ---- LibTorch's loop ----------------------------------------------------------------------------------------------------------------

/// The same training in one process, on the samples that every rank has had.
class Reference {
public:
    Reference(Plan const& plan, acc::TensorMap const& initial) : plan_(plan), net_(plan.shape) {
        torch::NoGradGuard const no_grad;
        std::vector<at::Tensor> decayed, others, apart;
        for (auto const& [name, p] : acc::unique_parameters(net_)) {
            p.copy_(initial.at(name));
            if (!p.requires_grad()) continue;
            trained_.push_back(p);
            (plan.apart && is_apart(name) ? apart : plan.no_decay && (p.dim() <= 1 || name.ends_with("bias")) ? others : decayed).push_back(p);
        }
        auto const add = [&](std::vector<at::Tensor> const& parameters, bool decays) {
            auto const decay = [&](double value) { return decays ? value : 0.0; };
            if (parameters.empty()) return;
            switch (plan.recipe) {
                case Recipe::AdamW:
                case Recipe::TorchAdamW: return by<torch::optim::AdamW>(parameters, torch::optim::AdamWOptions(lr_ = 0.02).weight_decay(decay(0.1)));
                case Recipe::Sgd: return by<torch::optim::SGD>(parameters, torch::optim::SGDOptions(lr_ = 0.1).momentum(0.9).nesterov(plan.variant()).weight_decay(decay(0.05)));
                case Recipe::Adagrad: return by<torch::optim::Adagrad>(parameters, torch::optim::AdagradOptions(lr_ = 0.05).lr_decay(0.1).weight_decay(decay(0.02)).initial_accumulator_value(0.05));
                case Recipe::Adam: return by<torch::optim::Adam>(parameters, torch::optim::AdamOptions(lr_ = 0.02).weight_decay(decay(0.03)).amsgrad(plan.variant()));
            }
        };
        add(decayed, true);
        add(others, false);
        if (!apart.empty()) apart_ = std::make_unique<torch::optim::SGD>(apart, torch::optim::SGDOptions(0.05).momentum(0.5));
    }

    /// `ranks`: the rows of each rank.
    Difference compare(std::vector<std::vector<Row>> const& ranks, acc::TensorMap const& final) {
        Difference difference;
        Sequences const data{plan_.number, plan_.samples};
        auto const world = static_cast<double>(ranks.size());
        double weight = 0, micro_batches = 0;
        bool broken = false;
        for (size_t i = 0; i < ranks[0].size(); ++i) {
            auto const where = acc::concat(" of micro-batch ", i);
            auto const micro_batch = static_cast<int64_t>(i);
            ++micro_batches;
            auto sum = torch::zeros({});
            for (size_t rank = 0; rank < ranks.size(); ++rank) {
                std::vector<at::Tensor> batch;
                for (auto const sample : ranks[rank][i].samples) batch.push_back(data[static_cast<size_t>(sample)]);
                auto const all = losses(plan_, torch::stack(batch), micro_batch, static_cast<int64_t>(rank), [&](auto const&... in) { return net_.forward(in...); });
                difference.see(ranks[rank][i].loss, all.front().item<double>(), acc::concat("loss", where, " on rank ", rank));
                for (auto const& loss : all) {
                    sum = sum + loss;
                    weight += static_cast<double>(length * static_cast<int64_t>(batch.size()));
                }
            }
            broken = broken || micro_batch == plan_.broken;
            (plan_.weighted ? sum : sum / world / (plan_.no_sync ? 1.0 : static_cast<double>(plan_.steps))).backward();
            auto const& row = ranks[0][i];
            difference.see(row.lr, lr_ * plan_.factor(made_), "lr" + where);
            difference.see(row.skipped, row.closed && broken, "a skipped step" + where);
            if (!row.closed) continue;
            if (!broken) {
                auto const shorter = plan_.rescale && !plan_.no_sync ? static_cast<double>(plan_.steps) / micro_batches : 1.0;
                for (auto const& p : trained_)
                    if (p.grad().defined()) p.mutable_grad().mul_(plan_.weighted ? 1 / weight : shorter);
                step(row, where, difference);
            }
            for (auto const& p : trained_) p.mutable_grad() = at::Tensor();
            weight = micro_batches = 0, broken = false;
        }
        for (auto const& item : net_.named_parameters()) difference.see(final.at(item.key()), item.value().detach(), item.key());
        return difference;
    }

private:
    template <class Optimizer, class Options>
    void by(std::vector<at::Tensor> const& parameters, Options const& options) {
        optimizers_.push_back(std::make_unique<Optimizer>(parameters, options));
    }

    void step(Row const& row, std::string const& where, Difference& difference) {
        if (plan_.clip == Clip::Norm) difference.see(row.norm, torch::nn::utils::clip_grad_norm_(trained_, 0.3, plan_.norm_type), "norm" + where);
        if (plan_.clip == Clip::Value) torch::nn::utils::clip_grad_value_(trained_, 0.01);
        for (auto const& optimizer : optimizers_) {
            for (auto& group : optimizer->param_groups()) group.options().set_lr(lr_ * plan_.factor(made_));
            optimizer->step();
        }
        if (apart_) apart_->step();
        ++made_;
    }

    Plan const& plan_;
    Net<> net_;
    std::vector<at::Tensor> trained_;
    std::vector<std::unique_ptr<torch::optim::Optimizer>> optimizers_;
    std::unique_ptr<torch::optim::Optimizer> apart_;
    double lr_ = 0;
    int64_t made_ = 0;
};

// ---- all of them --------------------------------------------------------------------------------------------------------------------

/// Rows as bytes, for the other ranks.
std::string pack(std::vector<Row> const& rows) {
    std::vector<double> all;
    for (auto const& row : rows) {
        for (auto const value : {row.loss, row.norm, row.lr, double(row.closed), double(row.skipped), double(row.samples.size())}) all.push_back(value);
        all.insert(all.end(), row.samples.begin(), row.samples.end());
    }
    return std::string(reinterpret_cast<char const*>(all.data()), all.size() * sizeof(double));
}
std::vector<Row> unpack(std::string const& bytes) {
    std::vector<double> all(bytes.size() / sizeof(double));
    std::memcpy(all.data(), bytes.data(), bytes.size());
    std::vector<Row> rows;
    for (size_t at = 0; at < all.size();) {
        auto const* const v = all.data() + at;
        auto const samples = static_cast<size_t>(v[5]);
        rows.push_back({{v + 6, v + 6 + samples}, v[0], v[1], v[2], v[3] != 0, v[4] != 0});
        at += 6 + samples;
    }
    return rows;
}

/// On rank 0, how far a training is from LibTorch's.
template <class State>
Difference train(Plan const& plan, State& state) {
    auto const dir = std::filesystem::temp_directory_path() / acc::concat("random_training_", plan.number, "_", state.num_processes());
    Result result;
    if (!run(plan.first, plan, dir, result, false)) {
        bool const open = !result.rows.back().closed;  // then its gradients are each rank's own, and go on as they were
        run(open ? plan.first : plan.second, plan, dir, result, true);
    }
    std::vector<std::vector<Row>> ranks;
    for (auto const& rows : state.gather_object(pack(result.rows))) ranks.push_back(unpack(rows));
    if (!state.is_main_process()) return {};
    std::filesystem::remove_all(dir);
    return Reference(plan, result.initial).compare(ranks, result.final);
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] { random_trainings::compare_all<Plan>(argc, argv, [](Plan const& plan, auto& state) { return train(plan, state); }); });
}
