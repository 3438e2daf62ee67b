// README's table of combinations, from `acc::supported`. tools/check_readme compares and writes it.
#include <torch/torch.h>

#include <accelerate.hpp>
#include <iostream>
#include <type_traits>

namespace acc = accelerate;

namespace {

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

}  // namespace

int main() {
    std::cout << "| `device::` | `loader::` | `precision::` |";
    each(shardings, [](auto s) { std::cout << " `" << s.name << "` |"; });
    std::cout << "\n|---|---|---|";
    each(shardings, [](auto) { std::cout << "---|"; });
    std::cout << "\n";
    each(devices, [](auto d) {
        each(loaders, [&](auto l) {
            each(precisions, [&](auto p) {
                std::cout << "| `" << d.name << "` | `" << l.name << "` | `" << p.name << "` |";
                each(shardings, [&](auto s) {
                    constexpr bool works = acc::supported<typename decltype(d)::type, typename decltype(p)::type, typename decltype(s)::type, typename decltype(l)::type>;
                    std::cout << (works ? " yes |" : " no |");
                });
                std::cout << "\n";
            });
        });
    });
}
