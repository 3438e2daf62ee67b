#pragma once
// Every policy that there is, with the name that README gives it: a new one joins README's table and the tests over all policies by one line.

#include <accelerate.hpp>
#include <tuple>

namespace policies {

namespace acc = accelerate;

template <class T>
struct Named {
    using type = T;
    char const* name;
};
template <class T>
constexpr Named<T> named(char const* name) {
    return {name};
}

constexpr std::tuple devices{named<acc::device::Cpu>("Cpu"), named<acc::device::Cuda>("Cuda"), named<acc::device::BasicCpu<acc::comm::Threads>>("BasicCpu<comm::Threads>"), named<acc::device::BasicCpu<acc::comm::Self>>("BasicCpu<comm::Self>")};
constexpr std::tuple precisions{named<acc::precision::Fp32>("Fp32"), named<acc::precision::Tf32>("Tf32"), named<acc::precision::Bf16<>>("Bf16<>"), named<acc::precision::Fp16<>>("Fp16<>"), named<acc::precision::Fp8<>>("Fp8<>")};
constexpr std::tuple shardings{named<acc::sharding::None>("None"), named<acc::sharding::Ddp<>>("Ddp<>"), named<acc::sharding::Ddp<acc::ddp{.gather_gradients = false}>>("Ddp<>, sliced"),
                               named<acc::sharding::Fsdp<>>("Fsdp<>")};
constexpr std::tuple loaders{named<acc::loader::Stateful<>>("Stateful<>"), named<acc::loader::Dispatched<>>("Dispatched<>"), named<acc::loader::Coupled<>>("Coupled<>")};

template <class Tuple, class F>
void each(Tuple const& tuple, F&& f) {
    std::apply([&](auto... item) { (f(item), ...); }, tuple);
}

}  // namespace policies
