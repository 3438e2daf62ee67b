#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/frexp.h>
#include <ATen/ops/pad.h>
#include <ATen/ops/where.h>

#include <accelerate/core/error.hpp>
#include <accelerate/optim/block_scaled.hpp>
#include <tuple>

// What narrow.hpp and block_scaled.hpp do to memory, by LibTorch's operations: the same numbers on any device, in a few passes.

namespace accelerate::optim::detail {

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

/// fp32 numbers of a format `F`, chosen by chance from the two that are next to each of `x`.
template <class F>
at::Tensor by_chance(at::Tensor const& x, at::Tensor const& noise) {
    auto const bits = x.view(at::kInt);
    auto const normal = bits.add(noise.bitwise_left_shift(F::noise_up).bitwise_right_shift_(F::noise_down)).bitwise_and_(-(1 << F::dropped)).view(at::kFloat);
    auto const step = kernel::power_of_two(F::lowest - F::mantissa);
    auto const small = x.abs().mul_(1 / step).add_(noise.to(at::kFloat).mul_(0x1p-16f)).floor_().mul_(step).copysign_(x);
    auto const most = F::widened(static_cast<typename F::bits>(F::largest));
    return at::where(x.abs() >= kernel::power_of_two(F::lowest), normal, small).clamp_(-most, most);
}

/// Calls `f` with the format that a dtype is kept in with scales.
template <class Function>
auto with_format(at::ScalarType dtype, Function&& f) {
    return dtype == at::kHalf ? f(kernel::Fp16()) : f(kernel::Fp8E4m3());
}

inline int64_t blocks_of(int64_t n) { return (n + kernel::scale_block - 1) / kernel::scale_block; }

/// Room for the exponents of a stretch.
inline at::Tensor exponents_for(at::Tensor const& stretch) { return at::empty({blocks_of(stretch.numel())}, stretch.options().dtype(at::kChar)); }
/// Those of [begin, end), which starts with a block.
inline at::Tensor exponents_between(at::Tensor const& exponents, int64_t begin, int64_t end) {
    check(begin % kernel::scale_block == 0, code::internal, "optimizer.step: a parameter begins at ", begin, " of its stretch, inside a block of ", kernel::scale_block);
    return exponents.narrow(0, begin / kernel::scale_block, blocks_of(end - begin));
}

/// 2^exponents, exactly.
inline at::Tensor powers_of_two(at::Tensor const& exponents) { return exponents.to(at::kInt).add_(127).bitwise_left_shift_(23).view(at::kFloat); }

/// 1-D fp32 numbers, in rows of a block, the last one filled up with zeros.
inline at::Tensor in_blocks(at::Tensor const& numbers) { return at::pad(numbers, {0, blocks_of(numbers.numel()) * kernel::scale_block - numbers.numel()}).view({-1, kernel::scale_block}); }

inline at::Tensor decoded(at::Tensor const& numbers, at::Tensor const& exponents) {
    return in_blocks(numbers.to(at::kFloat)).mul_(powers_of_two(exponents.neg()).unsqueeze(1)).view({-1}).narrow(0, 0, numbers.numel());
}

/// To the nearest, which keeps what was decoded before, or by chance.
inline void encode_into(at::Tensor const& to, at::Tensor const& exponents, at::Tensor const& from, kernel::Noise const* noise) {
    if (to.numel() == 0) return;
    with_format(to.scalar_type(), [&]<class F>(F) {
        auto const blocks = in_blocks(from.contiguous());
        auto const amax = blocks.abs().amax({1});
        auto const [mantissa, exponent] = at::frexp(amax);
        auto const own = exponent.neg().add_(F::limit_exponent).sub_((mantissa > F::limit_mantissa).to(at::kInt)).clamp_max_(126);
        exponents.copy_(at::where((amax > 0).logical_and(amax.isfinite()), own, at::zeros_like(own)));
        auto const scaled = blocks.mul(powers_of_two(exponents).unsqueeze(1)).view({-1}).narrow(0, 0, from.numel());
        to.copy_(noise == nullptr ? scaled : by_chance<F>(scaled.contiguous(), noise_tensor(*noise, to.storage_offset(), from)));
    });
}

}  // namespace accelerate::optim::detail
