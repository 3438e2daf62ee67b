// What the types promise, asked of the compiler alone: a library of static_asserts, nothing to run.
#include <torch/torch.h>

#include <accelerate.hpp>

namespace acc = accelerate;
namespace {

using acc::device::BasicCpu;
using Stateful = acc::loader::Stateful<>;
template <class Precision, class Sharding>
using Run = acc::Accelerator<acc::device::Cpu, Precision, Sharding, Stateful>;
using acc::precision::Fp32;
using acc::sharding::None;

struct Block : torch::nn::Module {
    torch::Tensor forward(torch::Tensor x) { return x; }
};

// A resident unit is the user's own type, and so is an fp32 linear layer: zero cost needs no other proof.
static_assert(std::same_as<acc::Unit<acc::Plain, Block>::impl_type, Block>);
static_assert(std::same_as<acc::Unit<acc::Plain, torch::nn::Embedding>::impl_type, torch::nn::EmbeddingImpl>);
static_assert(std::same_as<acc::Layers<acc::Plain, Block>::impl_type::unit_impl, Block>);
static_assert(std::same_as<acc::Linear<acc::Plain>::impl_type, torch::nn::LinearImpl>);
static_assert(std::same_as<Run<Fp32, None>::strategy, acc::Plain>);
static_assert(std::same_as<Run<Fp32, acc::sharding::Ddp<>>::strategy, acc::Plain>);
static_assert(std::same_as<Run<acc::precision::Tf32, None>::strategy::precision::impl<torch::nn::LinearImpl>, torch::nn::LinearImpl>);
static_assert(!std::same_as<acc::Unit<Run<Fp32, acc::sharding::Fsdp<>>::strategy, Block>::impl_type, Block>);
static_assert(std::derived_from<acc::Unit<Run<Fp32, acc::sharding::Fsdp<>>::strategy, Block>::impl_type, Block>);

// Full precision has no scope, so a window holds nothing for it.
static_assert(std::is_empty_v<Fp32::scope<acc::device::Cpu>> && std::is_empty_v<Fp32::pause<acc::device::Cpu>>);

// Every policy satisfies its concept, on every communicator.
static_assert(acc::comm::communicator<acc::comm::Self> && acc::comm::communicator<acc::comm::Threads>);
static_assert(acc::device_policy<acc::device::Cpu> && acc::device_policy<BasicCpu<acc::comm::Threads>>);
static_assert(acc::precision_policy<Fp32> && acc::precision_policy<acc::precision::Tf32> && acc::precision_policy<acc::precision::Bf16<>>);
static_assert(acc::sharding_policy<None, acc::device::Cpu> && acc::sharding_policy<acc::sharding::Ddp<>, acc::device::Cpu> && acc::sharding_policy<acc::sharding::Fsdp<>, acc::device::Cpu>);
static_assert(acc::sharding_policy<acc::sharding::Ddp<acc::ddp{.gather_gradients = false}>, BasicCpu<acc::comm::Threads>>);
static_assert(acc::loader_policy<Stateful>);
static_assert(acc::supported<acc::device::Cpu, acc::precision::Bf16<>, acc::sharding::Fsdp<>, Stateful>);
static_assert(!acc::supported<acc::device::Cpu, None, Fp32, Stateful>);
static_assert(!acc::device_policy<int> && !acc::precision_policy<int> && !acc::sharding_policy<int, acc::device::Cpu> && !acc::loader_policy<int>);

// Handles can be moved; what is one of a kind cannot be copied.
static_assert(!std::copyable<Run<Fp32, None>>);
using Prepared = decltype(std::declval<Run<Fp32, None>&>().prepare(std::shared_ptr<Block>()));
static_assert(std::movable<Prepared> && std::copyable<Prepared>);
static_assert(std::movable<acc::data::Prepared<acc::data::Loader<std::vector<torch::Tensor>>>>);

// Units do not mix, and a length is made from a unit alone.
static_assert(!std::convertible_to<acc::Samples, acc::OptimizerSteps> && !std::convertible_to<int, acc::OptimizerSteps>);
static_assert(std::convertible_to<acc::OptimizerSteps, acc::schedule::Length> && !std::convertible_to<acc::Bytes, acc::schedule::Length>);

}  // namespace
