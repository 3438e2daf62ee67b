// What needs a GPU (label gpu; compiled and linked without one): the communicator's promises kept through the GPU's tensors, and the
// same training as on the CPU. One rank goes through NCCL; two ranks on one GPU go through pinned memory and MPI.
#include "support/conformance.hpp"
#include "support/device_loop.hpp"
#include "support/on_device.hpp"

namespace acc = accelerate;
namespace comm = accelerate::comm;
using acc::device::Cuda;

std::string missing() { return Cuda::available().reason; }

namespace {

struct OnGpu {
    Cuda::communicator world = Cuda::communicator::world();
    int64_t size() const { return world.size(); }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return comm::transport_options{}.fitted(size()); }
    template <class F>
    void operator()(F&& f) const {
        Cuda::select(world.local_rank());
        f(OnDevice(Cuda::communicator::world(), Cuda::current()));
        Cuda::synchronize();
    }
};

template <class Precision, class Sharding>
device_loop::Run on_gpu() {
    auto const world = Cuda::communicator::world();
    return device_loop::loop<Cuda, Precision, Sharding>(world, 8 / world.size());
}

}  // namespace

TEST_CASE("the GPU's communicator conforms", "[nccl][nccl_handle][staged]") { conformance::conform(OnGpu{}); }

TEST_CASE("what is enqueued on a worker's stream comes in order", "[stream_worker]") {
    Cuda::select(0);
    auto const x = torch::zeros({1 << 20}, Cuda::current());
    comm::StreamWorker<at::kCUDA> worker;
    for (int i = 0; i < 50; ++i) {
        x.add_(1);  // on the current stream, before the job
        auto const job = worker.submit([&] { x.mul_(2); });
        job.wait();
    }
    CHECK(x[0].item<double>() == Approx(2 * (std::pow(2.0, 50) - 1)).epsilon(1e-6));
    auto const bad = worker.submit([] { throw std::out_of_range("too far"); });
    CHECK_THROWS_AS(bad.wait(), std::out_of_range);
}

TEST_CASE("a loop learns on the GPU what it learns on the CPU", "[cuda]") {
    auto const one = device_loop::expected();
    SECTION("Fp32, data parallel") { device_loop::compare(on_gpu<acc::precision::Fp32, acc::sharding::Ddp<>>(), one, 1e-4, 1e-3); }
    SECTION("Fp32, overlap forced") { device_loop::compare(on_gpu<acc::precision::Fp32, acc::sharding::Ddp<acc::ddp{.first_bucket_kb = 1, .overlap = acc::Overlap::On}>>(), one, 1e-4, 1e-3); }
    SECTION("Fp32, sharded") { device_loop::compare(on_gpu<acc::precision::Fp32, acc::sharding::Fsdp<>>(), one, 1e-4, 1e-3); }
    SECTION("Bf16, data parallel") { device_loop::compare(on_gpu<acc::precision::Bf16<>, acc::sharding::Ddp<>>(), one, 3e-2, 3e-2); }
}

namespace {

/// A layer under a recipe on the GPU and, emulated, on the CPU: the same rounding, so results are near each other and far from fp32's.
template <class Recipe>
void multiplies_as_on_the_cpu() {
    INFO(Recipe::name);
    using Native = acc::precision::Fp8<Recipe>;
    using Emulated = acc::precision::Fp8<Recipe, acc::fp8{.gemm = acc::Gemm::Widened}>;
    torch::manual_seed(8);
    acc::Linear<acc::Strategy<acc::place::Resident, Native>> gpu(144, 32);
    acc::Linear<acc::Strategy<acc::place::Resident, Emulated>> cpu(144, 32);
    {
        torch::NoGradGuard const no_grad;
        cpu->weight.copy_(gpu->weight);
        cpu->bias.copy_(gpu->bias);
    }
    gpu->to(Cuda::current());
    gpu->runs_in_fp8 = cpu->runs_in_fp8 = true;
    auto const x = torch::randn({2, 5, 144}), slope = torch::randn({2, 5, 32});
    auto const run = [&]<class Policy, class Device>(Policy, Device, auto& layer, at::Device device) {
        auto const own = x.to(device).detach().requires_grad_();
        torch::Tensor y;
        {
            typename Policy::template scope<Device> const scope;
            y = layer(own);
        }
        (y.to(at::kFloat) * slope.to(device)).sum().backward();
        return std::vector<torch::Tensor>{y.detach().cpu().to(at::kDouble), own.grad().cpu().to(at::kDouble), layer->weight.grad().cpu().to(at::kDouble)};
    };
    auto const found = run(Native(), Cuda(), gpu, Cuda::current()), expected = run(Emulated(), acc::device::Cpu(), cpu, at::kCPU);
    for (size_t i = 0; i < found.size(); ++i) {
        INFO("result " << i);
        CHECK(((found[i] - expected[i]).norm() / expected[i].norm()).template item<double>() < 5e-3);
    }
}

}  // namespace

TEST_CASE("fp8 matrices are rounded on the GPU as on the CPU, both ways, in one pass", "[fp8_cast][fp8_cast_source][cuda_kernel][cuda_library][magnitude]") {
    Cuda::select(0);
    namespace precision = acc::precision;
    REQUIRE(precision::detail::fp8_cast_kernel(at::kBFloat16, at::kFloat8_e4m3fn)->why_not(Cuda::current()) == "");
    auto const bytes = [](torch::Tensor const& t) { return t.cpu().contiguous().view(at::kByte); };
    torch::manual_seed(3);
    for (auto const& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {7, 48}, {16, 16}, {250, 100}, {129, 65}, {300, 1000}, {1024, 256}})
        for (auto const dtype : {at::kFloat, at::kBFloat16, at::kHalf})
            for (auto const format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2})
                for (int const layout : {0, 1, 2}) {
                    INFO(rows << " x " << columns << ", " << dtype << " to " << format << ", layout " << layout);
                    auto a = torch::randn({rows, columns}).to(dtype);
                    if (layout == 1) a = a.t().contiguous().t();
                    if (layout == 2) a = torch::randn({rows * columns + 1}).to(dtype).narrow(0, 1, rows * columns).view({rows, columns});  // does not begin at 16 bytes
                    auto const on_gpu = layout == 2 ? torch::cat({a.reshape(-1).narrow(0, 0, 1), a.reshape(-1)}).to(Cuda::current()).narrow(0, 1, rows * columns).view({rows, columns}) : a.to(Cuda::current());
                    CHECK(torch::equal(precision::row_magnitudes(on_gpu).cpu(), precision::row_magnitudes(a)));
                    CHECK(precision::magnitude(on_gpu).item<double>() == precision::magnitude(a).item<double>());
                    auto const row_scales = precision::fp8_scale(precision::row_magnitudes(a), format), column_scales = 3 * precision::fp8_scale(precision::row_magnitudes(a.t()), format);
                    auto const expected = precision::to_fp8(a, format, row_scales, column_scales);
                    auto const found = precision::to_fp8(on_gpu, format, row_scales.to(Cuda::current()), column_scales.to(Cuda::current()));
                    CHECK(torch::equal(bytes(found.in_rows.numbers), bytes(expected.in_rows.numbers)));
                    CHECK(torch::equal(bytes(found.in_columns.numbers), bytes(expected.in_columns.numbers)));
                    auto const whole = precision::fp8_scale(precision::magnitude(a), format);
                    CHECK(torch::equal(bytes(precision::to_fp8(on_gpu, format, {}, whole.to(Cuda::current())).in_columns.numbers), bytes(precision::to_fp8(a, format, {}, whole).in_columns.numbers)));
                }
    // Every bf16 number, what is not finite included.
    auto const all = torch::arange(65536, at::kInt).to(at::kShort).view(at::kBFloat16).view({256, 256});
    for (auto const format : {at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
        auto const one = torch::ones({});
        auto const found = precision::to_fp8(all.to(Cuda::current()), format, one.to(Cuda::current()), {}).in_rows.numbers.cpu().to(at::kFloat);
        CHECK(torch::allclose(found, precision::to_fp8(all, format, one, {}).in_rows.numbers.to(at::kFloat), 0, 0, true));
    }
    acc::device::CudaKernel const broken("broken", "extern \"C\" __global__ void broken() { no such thing; }");
    CHECK(broken.why_not(Cuda::current()).find("NVRTC: ") == 0);
    CHECK_THROWS_AS(broken.launch(Cuda::current(), 1, 1), acc::Error);
}

TEST_CASE("fp8 products on the GPU are those that the CPU emulates", "[fp8_gemm][fp8_linear]") {
    Cuda::select(0);
    WARN("fp8 units: " << (acc::precision::gpu_has_fp8_units(Cuda::current()) ? "yes" : "no, emulated"));
    multiplies_as_on_the_cpu<acc::recipe::Tensorwise>();
    multiplies_as_on_the_cpu<acc::recipe::Rowwise>();
    multiplies_as_on_the_cpu<acc::recipe::Delayed<>>();
}

TEST_CASE("a GPU's memory comes back", "[cuda][accelerator]") {
    acc::Accelerator<Cuda, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>> accelerator;
    auto const used = [] { return at::getDeviceAllocator(at::kCUDA)->getDeviceStats(Cuda::current().index()).reserved_bytes[0].current; };
    Cuda::empty_cache();
    auto const before = used();
    {
        auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(2048, 2048), acc::optim::AdamW{.lr = 1e-3});
        accelerator.backward(model(torch::ones({8, 2048}, accelerator.device())).mean());
        optimizer.step();
        CHECK(used() > before);
        accelerator.free_memory(model, optimizer);
    }
    CHECK(used() <= before + (2 << 20));
}
