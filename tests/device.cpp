// Devices: what their policies say of themselves, and everything that is written for a device that is not the CPU, on one that plugs
// into LibTorch (support/plug_in_device.hpp).
#include "support/conformance.hpp"
#include "support/device_loop.hpp"
#include "support/on_device.hpp"
#include "support/plug_in_device.hpp"

#include <accelerate/comm/stream_worker.hpp>
#include <accelerate/device/cuda_kernel.hpp>

namespace acc = accelerate;
namespace comm = accelerate::comm;

namespace {

using Ranks = comm::Staged<comm::Threads, plug_in::type>;

struct Device {
    using communicator = Ranks;
    static constexpr at::DeviceType type = plug_in::type;
    static constexpr char const* name = "own";
    static void select(int64_t local_rank) { plug_in::current() = static_cast<at::DeviceIndex>(local_rank % plug_in::devices); }
    static at::Device current() { return {type, plug_in::current()}; }
    static void synchronize() {}
};
static_assert(acc::device_policy<Device>);

struct StagedThreads {
    int64_t ranks;
    int64_t size() const { return ranks; }
    bool together(int64_t, int64_t) const { return true; }
    comm::transport_options options() const { return comm::transport_options{}.fitted(ranks); }
    template <class F>
    void operator()(F&& f) const {
        comm::Threads::run(ranks, [&](comm::Threads const& c) {
            Device::select(c.rank());
            f(OnDevice<Ranks>(Ranks(c), Device::current()));
        });
    }
};

/// As a communicator that enqueues, whose operations overlap by a stream of their own.
struct Enqueuing : Ranks {
    using worker = comm::StreamWorker<plug_in::type>;
    using Ranks::Ranks;
    Enqueuing(Ranks ranks) : Ranks(std::move(ranks)) {}
    static Enqueuing world() { return Ranks::world(); }
    Enqueuing split(int64_t color, int64_t key) const { return Ranks::split(color, key); }
    Enqueuing duplicate() const { return Ranks::duplicate(); }
};
struct DeviceWithStreams : Device {
    using communicator = Enqueuing;
};

template <class Sharding, class D = Device>
device_loop::Run on_device(int64_t ranks) {
    device_loop::Run result;
    comm::Threads::run(ranks, [&](comm::Threads const& c) {
        auto run = device_loop::loop<D, acc::precision::Fp32, Sharding>(typename D::communicator(Ranks(c)), 8 / ranks);
        if (c.rank() == 0) result = std::move(run);
    });
    return result;
}

}  // namespace

TEST_CASE("a CPU communicator serves the tensors of a device by staging", "[staged][inline_worker][refusal]") {
    auto const ranks = GENERATE(1, 2, 3);
    CAPTURE(ranks);
    conformance::conform(StagedThreads{ranks});
}

TEST_CASE("a loop runs on a device without streams and communicator of its own", "[policy][place_on][staged][move_to]") {
    auto const one = device_loop::expected();
    auto const compare = [&](device_loop::Run const& run) { device_loop::compare(run, one, 5e-6, 2e-5); };
    SECTION("one rank") { compare(on_device<acc::sharding::None>(1)); }
    SECTION("data parallel") { compare(on_device<acc::sharding::Ddp<>>(2)); }
    SECTION("sliced, overlap forced") { compare(on_device<acc::sharding::Ddp<acc::ddp{.gather_gradients = false, .overlap = acc::Overlap::On}>>(2)); }
    SECTION("sharded") { compare(on_device<acc::sharding::Fsdp<>>(2)); }
    SECTION("data parallel, on a stream") { compare(on_device<acc::sharding::Ddp<acc::ddp{.first_bucket_kb = 1}>, DeviceWithStreams>(2)); }
    SECTION("sharded, on a stream") { compare(on_device<acc::sharding::Fsdp<>, DeviceWithStreams>(2)); }
}

TEST_CASE("jobs of a stream come behind what was there before, and what comes after waits for them", "[stream_worker]") {
    auto& order = plug_in::order();
    auto const job = [&] { order.push_back("job " + std::to_string(plug_in::stream())); };
    order.clear();
    comm::StreamWorker<plug_in::type> worker;
    auto const handle = worker.submit(job);
    CHECK(order == std::vector<std::string>{"record 0", "block 7", "job 7", "record 7"});
    CHECK(plug_in::stream() == 0);
    order.clear();
    handle.wait();
    CHECK(order == std::vector<std::string>{"block 0"});
    CHECK(handle.finished());
    auto const bad = worker.submit([] { throw std::out_of_range("too far"); });
    CHECK(plug_in::stream() == 0);
    CHECK_THROWS_AS(bad.wait(), std::out_of_range);
    CHECK_THROWS_AS(bad.wait(), std::out_of_range);
    CHECK_NOTHROW(worker.submit(job).wait());
    comm::StreamWorker<plug_in::type>::Handle const none;
    none.wait();
    CHECK(none.finished());
}

TEST_CASE("a model moves to a device in place", "[place_on]") {
    torch::nn::Linear model(3, 2);
    auto const weight = model->weight;
    auto const before = weight.detach().clone();
    weight.mutable_grad() = torch::ones_like(weight);
    acc::module::place_on(*model, at::Device(plug_in::type, 1));
    CHECK(weight.device() == at::Device(plug_in::type, 1));
    CHECK(weight.grad().device() == weight.device());
    CHECK(model->weight.is_same(weight));
    CHECK(weight.requires_grad());
    CHECK(at::equal(weight.detach().to(at::kCPU), before));
}

TEST_CASE("a library that is not there, and a kernel without a GPU, say why", "[cuda_library][cuda_kernel]") {
    auto const none = acc::device::CudaLibrary::load("libno_such_library.so");
    CHECK((none.handle == nullptr && none.why.find("libno_such_library.so") != none.why.npos));
    int (*function)() = nullptr;
    CHECK_FALSE(none.find("anything", function));
    auto const math = acc::device::CudaLibrary::load("libm.so.6");
    double (*cosine)(double) = nullptr;
    REQUIRE(math.find("cos", cosine));
    CHECK(cosine(0) == 1);
    CHECK_FALSE(math.find("no_such_function", function));
#if ACCELERATE_WITH_CUDA
    if (acc::device::Cuda::available()) return;  // then in gpu.cpp
#endif
    acc::device::CudaKernel const kernel("nothing", "extern \"C\" __global__ void nothing() {}");
    at::Device const gpu(at::kCUDA, 0);
    CHECK(kernel.why_not(gpu) != "");
    CHECK_THROWS_WITH(kernel.launch(gpu, 1, 1), contains("E_INTERNAL: nothing: "));
}

TEST_CASE("devices say whether they are there, and why not", "[availability][cpu][cuda][processes]") {
    STATIC_REQUIRE(std::same_as<acc::device::Cpu::communicator, comm::Processes>);
    CHECK(acc::device::Cpu::available().count == 1);
    CHECK(acc::device::Cpu::available().reason.empty());
#if ACCELERATE_WITH_CUDA
    auto const cuda = acc::device::Cuda::available();
    CHECK(static_cast<bool>(cuda) == (cuda.count > 0));
    CHECK(cuda.reason.empty() == (cuda.count > 0));
    if (!cuda) {
        CHECK_THROWS_WITH(acc::device::Cuda::select(0), contains(cuda.reason) && contains("device::Cpu"));
        CHECK_THROWS_AS((acc::Accelerator<acc::device::Cuda, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>()), acc::Error);
    }
#endif
}
