// One training loop in four precisions. What changes is a type; what each of them has to say for itself is printed at the end.
//   ./precisions        mpirun -n 2 ./precisions
#include <accelerate.hpp>

namespace acc = accelerate;

template <class S = acc::Plain>
struct Net : torch::nn::Module {
    Net() : in(this, "in", 2, 64), middle(this, "middle", 64, 64), out(this, "out", 64, 1) {}
    torch::Tensor forward(torch::Tensor x) { return out(torch::relu(middle(torch::relu(in(x))))); }
    acc::Linear<S> in, middle, out;
};

/// Trains and gives the last loss. `look` sees accelerator and model when all is done.
template <class Precision, class Look>
double train(acc::optimizer_storage storage, Look&& look) {
    acc::Accelerator<acc::device::Cpu, Precision, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator({.grad_scaler = {.init_scale = 1 << 24}});
    auto [model, optimizer] = accelerator.prepare(accelerator.template make<Net>(), acc::optim::AdamW{.lr = 3e-3, .storage = storage});
    auto const generator = at::detail::createCPUGenerator(1);
    auto const x = torch::rand({256, 2}, generator) * 4 - 2, y = torch::sin(x.select(1, 0) * x.select(1, 1)).unsqueeze(1);
    double last = 0;
    for (int64_t step = 0; step < 300; ++step) {
        auto window = accelerator.accumulate(model);  // forward and loss run in the precision
        auto const loss = torch::mse_loss(model(x).to(at::kFloat), y);
        accelerator.backward(loss);
        accelerator.clip_grad_norm(model, 1.0);
        optimizer.step();
        optimizer.zero_grad();
        last = loss.template item<double>();
    }
    accelerator.print(accelerator.mixed_precision(), "loss", last);
    look(accelerator, *model);
    return last;
}

int main() {
    return acc::run([] {
        using namespace acc::precision;
        auto const nothing = [](auto&, auto&) {};
        auto const fp32 = train<Fp32>({}, nothing);

        // Parameters in bf16 and no fp32 copy of them: half the memory. Rounded by chance, or small updates would be lost.
        auto const bf16 = train<Bf16<acc::bf16{.parameters = at::kBFloat16, .master = at::kBFloat16}>>({.stochastic_rounding = true}, nothing);

        // fp16 ends at 65504: the loss is scaled, and steps that overflowed are skipped until the scale fits.
        auto const fp16 = train<Fp16<>>({}, [](auto& accelerator, auto&) { accelerator.print("the loss scale fell from 2^24 to", accelerator.scaler().get_scale()); });

        // fp8 in the middle layer, which `prepare` says in a table; the report says what that costs.
        auto const fp8 = train<Fp8<acc::recipe::Tensorwise, acc::fp8{.counters = true, .shadow = true}>>({}, [](auto& accelerator, auto& model) {
            accelerator.print("saturated, became zero; and how far results are from bf16:\n" + fp8_report_table(fp8_report(model)));
        });
        for (double loss : {bf16, fp16, fp8}) acc::check(loss < 2 * fp32 + 0.02, acc::code::data, "precisions: a loss of ", loss, " is far from fp32's ", fp32);
    });
}
