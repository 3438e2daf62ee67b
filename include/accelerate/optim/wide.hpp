#pragma once

#include <ATen/Parallel.h>

#include <accelerate/optim/rounding.hpp>
#include <accelerate/optim/rules.hpp>
#include <array>
#include <cstring>
#include <vector>

// Updates of numbers that are kept in less than fp32: widened, updated by the rule in fp32, rounded back.

namespace accelerate::optim {

/// One entry of a batch: 1-D tensors of equal length. `master` is undefined where the parameter itself is updated.
struct Entry {
    at::Tensor parameters, gradients, master;
    std::vector<at::Tensor> states, exponents;  ///< an exponent for each block of a state that is kept in blocks
};

inline Entry entry_of(Columns const& columns, size_t i) {
    Entry made{columns.parameters[i], columns.gradients[i], columns.masters[i], {}, {}};
    for (auto const& list : columns.states) made.states.push_back(list[i]);
    for (auto const& list : columns.exponents) made.exponents.push_back(list[i]);
    return made;
}

namespace detail {

/// Whether parameters, kept in fp32, hold what fp16 can.
template <class Recipe>
bool in_fp16(Recipe const& recipe, Entry const& e) {
    return recipe.storage.master == at::kHalf && e.parameters.scalar_type() == at::kFloat;
}

}  // namespace detail

/// On any device and in any dtype, by LibTorch's operations; costs a few passes over fp32 copies.
template <class Recipe>
void update_wide(Recipe const& recipe, Hyper const& hyper, Entry const& e, at::Tensor const& counter, int64_t step) {
    auto const wide = [](at::Tensor const& t) { return t.to(at::kFloat); };
    if (e.master.defined()) e.master.copy_(at::where(e.master.to(e.parameters.scalar_type()) == e.parameters, e.master, wide(e.parameters)));
    Columns columns{{e.master.defined() ? e.master : wide(e.parameters)}, {wide(e.gradients)}, {}, {counter}};
    for (size_t i = 0; i < e.states.size(); ++i) columns.states.push_back({e.exponents[i].defined() ? detail::decoded(e.states[i], e.exponents[i]) : wide(e.states[i])});
    Rule<Recipe>::update(recipe, hyper, columns, step == 1);
    auto const noise = detail::noise_of(step, 0);
    auto const& updated = columns.parameters[0];
    if (detail::in_fp16(recipe, e)) updated.copy_(detail::by_chance<kernel::Fp16>(updated.contiguous(), detail::noise_tensor(noise, e.parameters.storage_offset(), updated)));
    detail::round_into(e.parameters, updated, !e.master.defined() && recipe.storage.stochastic_rounding ? &noise : nullptr);
    for (size_t i = 0; i < e.states.size(); ++i) {
        auto const& state = columns.states[i][0];
        if (state.is_same(e.states[i])) continue;
        auto const own = detail::noise_of(step, i + 1);
        auto const* const by_chance = recipe.storage.stochastic_states() ? &own : nullptr;
        if (e.exponents[i].defined()) detail::encode_into(e.states[i], e.exponents[i], state, by_chance);
        else detail::round_into(e.states[i], state, by_chance);
    }
}

/// The same in one pass over memory of the CPU that can sweep: a piece that stays in the cache is widened, swept and rounded back. The
/// gradients are multiplied by `scale` on the way.
template <class Recipe>
void sweep_wide(Recipe const& recipe, Hyper const& hyper, Entry const& e, int64_t step, double scale, bool clear) {
    constexpr int64_t piece = 4096;
    static_assert(piece % kernel::scale_block == 0);
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
            auto const blocks = [&](size_t i, auto&& f) {  // of state i: the numbers and exponents that lie in this piece
                detail::with_format(e.states[i].scalar_type(), [&]<class F>(F) {
                    f(F(), static_cast<typename F::bits*>(e.states[i].mutable_data_ptr()) + first, static_cast<int8_t*>(e.exponents[i].mutable_data_ptr()) + first / kernel::scale_block);
                });
            };
            auto* const parameters = e.master.defined() ? e.master.mutable_data_ptr<float>() + first : wide(e.parameters, copies[0]);
            if (e.master.defined()) kernel::follow(low(e.parameters), parameters, count);
            auto* const gradients = wide(e.gradients, copies[1]);
            float* states[2] = {parameters, parameters};
            for (size_t i = 0; i < e.states.size(); ++i) {
                if (!e.exponents[i].defined()) states[i] = wide(e.states[i], copies[2 + i]);
                else blocks(i, [&]<class F>(F, auto* numbers, auto* exponents) { kernel::decode<F>(numbers, exponents, states[i] = copies[2 + i].data(), count); });
            }
            Rule<Recipe>::sweep(recipe, hyper, {{parameters, gradients, states[0], states[1], count, clear}, step, scale});
            auto const back = [&](at::Tensor const& t, float const* from, size_t stream, bool by_chance) {
                auto* const to = low(t);
                if (to == nullptr) return;
                if (by_chance) kernel::narrow(from, to, count, detail::noise_of(step, stream), t.storage_offset() + first);
                else kernel::narrow(from, to, count);
            };
            if (detail::in_fp16(recipe, e)) kernel::round_to<kernel::Fp16>(parameters, count, detail::noise_of(step, 0), e.parameters.storage_offset() + first);
            back(e.parameters, parameters, 0, !e.master.defined() && recipe.storage.stochastic_rounding);
            for (size_t i = 0; i < e.states.size(); ++i) {
                if (!e.exponents[i].defined()) back(e.states[i], states[i], i + 1, recipe.storage.stochastic_states());
                else blocks(i, [&]<class F>(F, auto* numbers, auto* exponents) { kernel::encode<F>(states[i], numbers, exponents, count, detail::noise_of(step, i + 1), e.states[i].storage_offset() + first); });
            }
            if (auto* const to = low(e.gradients); to != nullptr && clear) std::memset(to, 0, static_cast<size_t>(count) * sizeof *to);
        }
    });
}

}  // namespace accelerate::optim
