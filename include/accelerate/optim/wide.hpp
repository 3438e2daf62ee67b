#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <accelerate/optim/narrow.hpp>
#include <accelerate/optim/rules.hpp>
#include <array>
#include <vector>

// Updates of numbers that are kept in less than fp32: widened, updated by the rule in fp32, rounded back.

namespace accelerate::optim {

/// One entry of a batch: 1-D tensors of equal length. `master` is undefined where the parameter itself is updated.
struct Entry {
    at::Tensor parameters, gradients, master;
    std::vector<at::Tensor> states;
};

namespace detail {

/// Streams of random numbers: one for parameters, one for each state.
inline kernel::Noise noise_of(int64_t step, size_t stream) { return kernel::Noise::of(step, static_cast<uint32_t>(stream)); }

/// `kernel::Noise` of the places [first, first + n), int32.
inline at::Tensor noise_tensor(kernel::Noise noise, int64_t first, at::Tensor const& like) {
    auto const mask = int64_t{0xffffffff};
    auto x = at::arange(like.numel(), like.options().dtype(at::kLong)).add_(first + static_cast<int64_t>(noise.key)).bitwise_and_(mask);
    for (auto [shift, factor] : {std::pair{16, int64_t{0x7feb352d}}, {15, int64_t{0x846ca68b}}}) x = x.bitwise_xor(x.bitwise_right_shift(shift)).mul_(factor).bitwise_and_(mask);
    return x.bitwise_xor(x.bitwise_right_shift(16)).bitwise_and_(0xffff).to(at::kInt);
}

/// `to` takes the fp32 numbers `from`, rounded to the nearest or, with a noise, stochastically (bf16 only).
inline void round_into(at::Tensor const& to, at::Tensor const& from, kernel::Noise const* noise) {
    if (noise == nullptr || to.scalar_type() != at::kBFloat16) {
        to.copy_(from);
        return;
    }
    auto const bits = from.contiguous().view(at::kInt);
    auto const rounded = bits.add(noise_tensor(*noise, to.storage_offset(), from)).bitwise_and_(static_cast<int32_t>(0xffff0000u)).view(at::kFloat);
    to.copy_(at::where(from.isfinite(), rounded, from));
}

}  // namespace detail

/// On any device and in any dtype, by LibTorch's operations; costs a few passes over fp32 copies.
template <class Recipe>
void update_wide(Recipe const& recipe, Hyper const& hyper, Entry const& e, at::Tensor const& counter, int64_t step) {
    auto const wide = [](at::Tensor const& t) { return t.to(at::kFloat); };
    if (e.master.defined()) e.master.copy_(at::where(e.master.to(e.parameters.scalar_type()) == e.parameters, e.master, wide(e.parameters)));
    Columns columns{{e.master.defined() ? e.master : wide(e.parameters)}, {wide(e.gradients)}, {}, {counter}};
    for (auto const& s : e.states) columns.states.push_back({wide(s)});
    Rule<Recipe>::update(recipe, hyper, columns, step == 1);
    auto const noise = detail::noise_of(step, 0);
    detail::round_into(e.parameters, columns.parameters[0], !e.master.defined() && recipe.storage.stochastic_rounding ? &noise : nullptr);
    for (size_t i = 0; i < e.states.size(); ++i) {
        if (columns.states[i][0].is_same(e.states[i])) continue;
        auto const own = detail::noise_of(step, i + 1);
        detail::round_into(e.states[i], columns.states[i][0], recipe.storage.stochastic_states() ? &own : nullptr);
    }
}

/// The same in one pass over memory that is fp32 or bf16, on a CPU that can sweep: a piece that stays in the cache is widened, swept and
/// rounded back. The gradients are multiplied by `scale` on the way.
template <class Recipe>
void sweep_wide(Recipe const& recipe, Hyper const& hyper, Entry const& e, int64_t step, double scale, bool clear) {
    constexpr int64_t piece = 4096;
    auto const n = e.parameters.numel();
    at::parallel_for(0, (n + piece - 1) / piece, 1, [&](int64_t begin, int64_t end) {
        alignas(64) std::array<std::array<float, piece>, 4> copies;
        for (int64_t first = begin * piece; first < std::min(n, end * piece); first += piece) {
            auto const count = std::min(piece, n - first);
            auto const low = [&](at::Tensor const& t) { return t.scalar_type() == at::kBFloat16 ? static_cast<uint16_t*>(t.mutable_data_ptr()) + first : nullptr; };
            auto const wide = [&](at::Tensor const& t, std::array<float, piece>& copy) {
                if (low(t) == nullptr) return t.mutable_data_ptr<float>() + first;
                kernel::widen(low(t), copy.data(), count);
                return copy.data();
            };
            auto* const parameters = e.master.defined() ? e.master.mutable_data_ptr<float>() + first : wide(e.parameters, copies[0]);
            if (e.master.defined()) kernel::follow(low(e.parameters), parameters, count);
            auto* const gradients = wide(e.gradients, copies[1]);
            float* states[2] = {parameters, parameters};
            for (size_t i = 0; i < e.states.size(); ++i) states[i] = wide(e.states[i], copies[2 + i]);
            Rule<Recipe>::sweep(recipe, hyper, {{parameters, gradients, states[0], states[1], count, clear}, step, scale});
            auto const back = [&](at::Tensor const& t, float const* from, size_t stream, bool by_chance) {
                auto* const to = low(t);
                if (to == nullptr) return;
                if (by_chance) kernel::narrow(from, to, count, detail::noise_of(step, stream), t.storage_offset() + first);
                else kernel::narrow(from, to, count);
            };
            back(e.parameters, parameters, 0, !e.master.defined() && recipe.storage.stochastic_rounding);
            for (size_t i = 0; i < e.states.size(); ++i) back(e.states[i], states[i], i + 1, recipe.storage.stochastic_states());
            if (auto* const to = low(e.gradients); to != nullptr && clear) std::memset(to, 0, static_cast<size_t>(count) * sizeof *to);
        }
    });
}

}  // namespace accelerate::optim
