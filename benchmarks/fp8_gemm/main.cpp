// Step times of a linear layer in fp8 against bf16, with all that rounds its operands, on the twelve products of one transformer layer
// (four layers; forward, gradient of the input, gradient of the weight), and how far the results are from fp64. A step is a forward and a
// backward of both gradients, as training does it: what they share is then made once. The gradients are also timed each alone.
//   fp8_gemm            on the first GPU: hidden 4096, feed-forward 16384, 15872 tokens (TransformerEngine's shapes)
//   fp8_gemm --cpu 64   on the CPU, every size divided by 64: what it prints is no speed, but that it runs
#include <torch/torch.h>

#include "../median.hpp"

#include <accelerate.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>

namespace acc = accelerate;
namespace precision = accelerate::precision;
namespace recipe = accelerate::recipe;

namespace {

constexpr acc::fp8 kept{.use_autocast_during_eval = true};

struct Shape {
    char const* name;
    int64_t in, out;
};

template <class Device>
double median_ms(std::function<void()> const& f) {
    auto const wait = [] {
        if constexpr (requires { Device::synchronize(); }) Device::synchronize();
    };
    std::vector<double> ms;
    for (int i = 0; i < 12; ++i) {
        wait();
        auto const begin = std::chrono::steady_clock::now();
        f();
        wait();
        if (i >= 2) ms.push_back(1e3 * std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return median(std::move(ms));
}

struct Measured {
    double forward = 0, to_input = 0, to_weight = 0, step = 0, error = 0;
};

/// One precision at one shape. The backward of one operand alone is a product of its own.
template <class Device, class Policy>
Measured measure(Shape const& shape, int64_t tokens) {
    auto const device = Device::current();
    acc::Linear<acc::Strategy<acc::place::Resident, Policy>> layer(torch::nn::LinearOptions(shape.in, shape.out).bias(false));
    layer->to(device);
    layer->kept->keep();  // as in a window of a prepared model
    if constexpr (requires { layer->runs_in_fp8; }) layer->runs_in_fp8 = true;
    torch::manual_seed(1);
    auto const options = at::TensorOptions(device).dtype(at::kBFloat16);
    auto const x = torch::randn({tokens, shape.in}, options).requires_grad_(), slope = torch::randn({tokens, shape.out}, options);
    auto const forward = [&] {
        typename Policy::template scope<Device> const scope;
        return layer(x);
    };
    Measured m;
    m.forward = median_ms<Device>([&] {
        torch::NoGradGuard const no_grad;
        forward();
    });
    auto const y = forward();
    m.to_input = median_ms<Device>([&] { static_cast<void>(torch::autograd::grad({y}, {x}, {slope}, true)); });
    m.to_weight = median_ms<Device>([&] { static_cast<void>(torch::autograd::grad({y}, {layer->weight}, {slope}, true)); });
    m.step = median_ms<Device>([&] { static_cast<void>(torch::autograd::grad({forward()}, {x, layer->weight}, {slope})); });
    auto const rows = std::min<int64_t>(tokens, 64);
    auto const exact = torch::matmul(x.detach().narrow(0, 0, rows).to(at::kDouble), layer->weight.detach().t().to(at::kDouble));
    m.error = ((y.detach().narrow(0, 0, rows).to(at::kDouble) - exact).norm() / exact.norm()).template item<double>();
    return m;
}

template <class Device>
void table(int64_t divisor) {
    Shape const shapes[] = {{"qkv", 4096, 12288}, {"projection", 4096, 4096}, {"up", 4096, 16384}, {"down", 16384, 4096}};
    auto const tokens = 15872 / divisor;
    using Row = Measured (*)(Shape const&, int64_t);
    std::pair<char const*, Row> const rows[] = {{"bf16", measure<Device, precision::Bf16<acc::bf16{.gemm = acc::Gemm::Native}>>},
                                                {"Tensorwise", measure<Device, precision::Fp8<recipe::Tensorwise, kept>>},
                                                {"Rowwise", measure<Device, precision::Fp8<recipe::Rowwise, kept>>},
                                                {"Delayed", measure<Device, precision::Fp8<recipe::Delayed<>, kept>>}};
    std::printf("%ld tokens; fp8 %s\n%-12s %-12s %12s %12s %12s %10s %10s %12s\n", static_cast<long>(tokens),
                precision::has_fp8_product<recipe::Tensorwise, acc::Gemm::Auto>(Device::current()) ? "by the GPU's units" : "emulated", "layer", "precision", "forward ms", "to input ms", "to weight ms",
                "step ms", "bf16 / it", "error");
    std::vector<double> totals(std::size(rows), 0.0);
    for (auto const& shape : shapes) {
        double bf16 = 0;
        for (size_t i = 0; i < std::size(rows); ++i) {
            auto const m = rows[i].second({shape.name, shape.in / divisor, shape.out / divisor}, tokens);
            if (i == 0) bf16 = m.step;
            totals[i] += m.step;
            std::printf("%-12s %-12s %12.3f %12.3f %12.3f %10.3f %10.2f %12.2e\n", shape.name, rows[i].first, m.forward, m.to_input, m.to_weight, m.step, bf16 / m.step, m.error);
        }
    }
    for (size_t i = 0; i < std::size(rows); ++i) std::printf("%-12s %-12s %49.3f %10.2f\n", "all twelve", rows[i].first, totals[i], totals[0] / totals[i]);
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        if (argc > 2 && std::strcmp(argv[1], "--cpu") == 0) {
            auto const divisor = std::atoll(argv[2]);
            acc::check(divisor >= 1 && divisor <= 256, acc::code::config, "fp8_gemm: --cpu DIVISOR, from 1 to 256");
            return table<acc::device::Cpu>(divisor);
        }
        acc::check(argc == 1, acc::code::config, "usage: fp8_gemm, or fp8_gemm --cpu DIVISOR");
#if ACCELERATE_WITH_CUDA
        acc::device::Cuda::select(0);
        table<acc::device::Cuda>(1);
#else
        throw acc::Error(acc::code::config, "fp8_gemm: this build is without CUDA; give --cpu DIVISOR");
#endif
    });
}
