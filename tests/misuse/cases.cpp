// Wrong uses that must not compile. As it stands this file is right; each WRONG_name makes one thing wrong, and the compiler must then
// print the text that stands above it, in few lines. Run by tests/misuse.py.
#include <torch/torch.h>

#include <accelerate.hpp>
#include <memory>

namespace acc = accelerate;
using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>>;
using Cut = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Fsdp<>, acc::loader::Stateful<>>;
using Sliced = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<acc::ddp{.gather_gradients = false}>, acc::loader::Stateful<>>;

struct NetImpl : torch::nn::Module {
    explicit NetImpl(int64_t width) : up(register_module("up", torch::nn::Linear(width, width))) {}
    torch::Tensor forward(torch::Tensor x) { return up(x); }
    torch::nn::Linear up;
};
TORCH_MODULE(Net);

template <class S>
struct Model : torch::nn::Module {
    explicit Model(int64_t width) : up(this, "up", width, width) {}
    torch::Tensor forward(torch::Tensor x) { return up(x); }
    acc::Linear<S> up;
};

struct InPlaces : acc::sharding::None {  // a placement of its own, which casts nothing
    struct Place {
        template <class Block>
        using impl = Block;
    };
    template <class Device>
    using placement = Place;
};

struct Sample {
    torch::Tensor input;
    torch::Tensor target;
};
struct Data {
    size_t size() const { return 8; }
    Sample operator[](size_t) const { return {torch::ones({4}), {}}; }
};

#ifdef WRONG_sample  // data::collate: a sample must be a tensor, number, string
struct Owner {
    std::unique_ptr<int> value;
};
struct Owners {
    size_t size() const { return 8; }
    Owner operator[](size_t) const { return {}; }
};
auto owners(Run& run) { return run.prepare(acc::data::Loader{Owners{}, {.batch_size = 2}}); }
#endif
#ifdef WRONG_data_set  // data::Loader: a data set needs size() and operator[](size_t)
struct Numbers {
    double operator[](size_t) const { return 0; }
};
acc::data::Loader<Numbers> numbers() { return acc::data::Loader{Numbers{}, {.batch_size = 2}}; }
#endif
acc::data::Loader<Data> loader() { return acc::data::Loader{Data{}, {.batch_size = 2}}; }
acc::schedule::Linear schedule() {
#ifdef WRONG_length_without_unit  // a length needs its unit, as in acc::OptimizerSteps{2000}
    return {.total = 100};
#else
    return {.total = acc::OptimizerSteps{100}};
#endif
}

void again(Run& run) {
    auto [model, optimizer, train, scheduler] = run.prepare(Net(4), acc::optim::Sgd{.lr = 0.1}, loader(), schedule());
#ifdef WRONG_model_again  // prepare: this model is already prepared; pass the raw model, once
    run.prepare(model);
#endif
#ifdef WRONG_optimizer_again  // prepare: this optimizer is already prepared; pass the recipe, once
    run.prepare(optimizer);
#endif
#ifdef WRONG_loader_again  // prepare: this loader is already prepared; pass the acc::data::Loader, once
    run.prepare(train);
#endif
#ifdef WRONG_schedule_again  // prepare: this schedule is already prepared; pass the recipe, once
    run.prepare(scheduler);
#endif
#ifdef WRONG_one_of_many_again  // prepare: this loader is already prepared; pass the acc::data::Loader, once
    run.prepare(Net(4), acc::optim::Sgd{.lr = 0.1}, train);
#endif
    for (auto& batch : train) {
#if defined(WRONG_window_dropped)  // the window is this object: write auto window = accelerator.accumulate(model);
        run.accumulate(model);
#elif defined(WRONG_raw_model_accumulated)  // pass what accelerator.prepare returned for the model, not the raw model
        Net raw(4);
        auto window = run.accumulate(raw);
#else
        auto window = run.accumulate(model);
#endif
        run.backward(model(batch.input).mean());
#if defined(WRONG_raw_model_clipped)  // pass what accelerator.prepare returned for the model, not the raw model
        Net to_clip(4);
        run.clip_grad_norm(to_clip, 1.0);
#elif defined(WRONG_raw_model_clamped)  // pass what accelerator.prepare returned for the model, not the raw model
        Net to_clamp(4);
        run.clip_grad_value(to_clamp, 1.0);
#else
        run.clip_grad_norm(model, 1.0);
#endif
        optimizer.step();
        scheduler.step();
    }
#if defined(WRONG_raw_model_saved)  // pass what accelerator.prepare returned for the model, not the raw model
    Net to_save(4);
    run.save_model(to_save, "out");
#else
    run.save_model(model, "out");
#endif
#ifdef WRONG_scaler_of_fp32  // accelerator.scaler: this precision scales no gradient; precision::Fp16<> does
    run.scaler();
#endif
}

void incomplete(Run& run) {
    Net net(4);
    auto made = run.prepare(net, acc::optim::AdamW{}, schedule());
#ifdef WRONG_nothing  // prepare: give it a model, an optimizer recipe, a loader or a schedule
    run.prepare();
#endif
#ifdef WRONG_optimizer_without_model  // prepare: an optimizer needs its model in the same call
    auto optimizer = run.prepare(acc::optim::AdamW{.lr = 1e-3});
#endif
#ifdef WRONG_schedule_without_optimizer  // prepare: a schedule needs its optimizer in the same call
    auto [model, scheduler] = run.prepare(Net(4), schedule());
#endif
#ifdef WRONG_three_models_two_optimizers  // prepare: give one optimizer for all models or one for each
    auto three = run.prepare(Net(4), Net(4), Net(4), acc::optim::AdamW{}, acc::optim::AdamW{});
#endif
#ifdef WRONG_two_schedules  // prepare: give one schedule for each optimizer
    auto two = run.prepare(Net(4), acc::optim::AdamW{}, schedule(), schedule());
#endif
}

void by_search(Run& run) {
    Net net(4);
    auto [model, optimizer] = run.prepare(net, torch::optim::LBFGS(net->parameters()));
#ifdef WRONG_step_without_closure  // optimizer.step(): torch::optim::LBFGS evaluates the loss itself; call optimizer.step(closure)
    optimizer.step();
#else
    optimizer.step([&, &searched = model] {
        auto const loss = searched(torch::ones({1, 4})).mean();
        run.backward(loss);
        return loss;
    });
#endif
}

void by_metric(Run& run) {
    auto [model, optimizer, plateau] = run.prepare(Net(4), acc::optim::AdamW{}, acc::schedule::Plateau{});
#ifdef WRONG_plateau_without_metric  // schedule::Plateau follows a metric: call schedule.step(metric)
    plateau.step();
#else
    plateau.step(0.5);
#endif
}

template <class Any>
void with_torch(Any& run) {
    Net net(4);
    torch::optim::SGD sgd(net->parameters(), 0.1);
    auto made = run.prepare(net, sgd);
}
#if defined(WRONG_torch_optimizer_when_cut)  // which this sharding does not keep; use a recipe such as acc::optim::AdamW{...}
void whole_only(Cut& run) { with_torch(run); }
#elif defined(WRONG_torch_optimizer_when_sliced)  // which this sharding does not keep; use a recipe such as acc::optim::AdamW{...}
void whole_only(Sliced& run) { with_torch(run); }
#else
void whole_only(Run& run) { with_torch(run); }
#endif

void made(Cut& cut) {
#if defined(WRONG_arguments)  // make: the model cannot be built from these arguments; give the ones that its constructor takes
    auto net = cut.make<Model>("four", 3);
#else
    auto net = cut.make<Model>(4);
#endif
}

void slots() {
#ifdef WRONG_slots  // the second argument is no precision policy
    acc::Accelerator<acc::device::Cpu, acc::sharding::Ddp<>, acc::precision::Fp32, acc::loader::Stateful<>> swapped;
#endif
#ifdef WRONG_slot  // the fourth argument is no loader policy
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, int> last;
#endif
#ifdef WRONG_cut_bf16_parameters  // a precision that casts parameters needs a sharding that keeps them whole, or whose placement has `cast`; use sharding::Ddp<> or Fsdp<>, or parameters in fp32
    acc::Accelerator<acc::device::Cpu, acc::precision::Bf16<acc::bf16{.parameters = at::kBFloat16}>, InPlaces, acc::loader::Stateful<>> cut;
#endif
#ifdef WRONG_fp16_without_scaler  // precision::Fp16: without a gradient scaler gradients below 6e-8 are lost
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp16<acc::fp16{.loss_scale = acc::LossScale::None}>, acc::sharding::Ddp<>, acc::loader::Stateful<>> unscaled;
#endif
}
