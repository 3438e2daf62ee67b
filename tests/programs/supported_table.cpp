// README's table of combinations, from `acc::supported`. tools/check_readme compares and writes it.
#include <torch/torch.h>

#include "support/policies.hpp"

#include <iostream>

namespace acc = accelerate;
using namespace policies;

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
