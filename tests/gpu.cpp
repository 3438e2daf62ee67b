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
