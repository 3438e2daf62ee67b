#pragma once

#include <torch/nn/module.h>

#include <accelerate/module/materialize.hpp>
#include <accelerate/module/record.hpp>
#include <concepts>
#include <memory>
#include <string_view>
#include <utility>

namespace accelerate {
namespace detail {

/// Calls `build` on shapes, recorded. What goes wrong only because of that becomes one sentence with the remedy.
template <class Build>
auto record_construction(module::Tape& tape, Build const& build) {
    try {
        module::Recording const recording(&tape);
        return build();
    } catch (c10::Error const& e) {
        std::string_view const said = e.what_without_backtrace();
        bool const ours = said.find("data is not allocated") != said.npos || said.find("meta") != said.npos || said.find("Meta") != said.npos;
        if (!ours) throw;
        throw Error(code::construct, concat("make: a constructor read or wrote the memory of a tensor (data_ptr, accessor, torch::tensor(std::vector)) while the model was recorded; "
                                            "write the values by operations, or build the model yourself and pass it to prepare. LibTorch said: ",
                                            said.substr(0, said.find('\n'))));
    }
}

}  // namespace detail

/// Builds `Holder(arguments...)` in shape only, recorded, and then computes what is kept. The weights are a function of (seed,
/// model): the same on every rank, under every policy; LibTorch's generators are left as they were. Constructors run unchanged.
/// Costs a few microseconds an operation over building it directly. Inside `init_empty_weights` everything stays empty.
/// `fill(module, tape)` computes what is kept: `module::materialize` all of it, a placement what is this rank's.
/// Error E_CONSTRUCT when a constructor reads or writes the memory of a tensor other than through LibTorch's operations.
template <class Holder, class Fill, class... Arguments>
Holder construct_with(Fill const& fill, int64_t seed, Arguments&&... arguments) {
    using Impl = typename Holder::ContainedType;
    constexpr bool possible = std::constructible_from<Impl, Arguments...>;
    static_assert(possible, "make: the model cannot be built from these arguments; give the ones that its constructor takes");
    if constexpr (possible) {
        auto const build = [&] { return Holder(std::make_shared<Impl>(std::forward<Arguments>(arguments)...)); };
        if (module::interceptor() != nullptr) return build();  // part of a construction that is recorded, or to stay empty
        module::Tape tape(seed);
        auto holder = detail::record_construction(tape, build);
        fill(*holder, tape);
        return holder;
    } else {
        return Holder(nullptr);
    }
}
template <class Holder, class... Arguments>
Holder construct(int64_t seed, Arguments&&... arguments) {
    return construct_with<Holder>([](auto const& root, module::Tape const& tape) { module::materialize(root, tape); }, seed, std::forward<Arguments>(arguments)...);
}

}  // namespace accelerate
