#pragma once

#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Half.h>

#include <accelerate/optim/narrow.hpp>
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace accelerate::kernel {

// Numbers in 8 or 16 bits that share a power of two with their 15 neighbours (as the OCP microscaling formats do, whose blocks are of 32): the
// largest one whose products the format can hold. Blocks start where flat buffers are cut, every 64 bytes of fp32, so they are the same
// under any sharding; and what was decoded is encoded to the same numbers again.

inline constexpr int64_t scale_block = 16;

inline float power_of_two(int exponent) { return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23); }

/// A floating-point format of a sign, exponents from `lowest` (of its smallest normal number) and `mantissa` bits.
template <class Bits, int Mantissa, int Lowest, uint32_t Largest, int LimitExponent, int LimitEighths>
struct Format {
    using bits = Bits;
    static constexpr int mantissa = Mantissa, lowest = Lowest;
    static constexpr uint32_t largest = Largest;
    static constexpr int limit_exponent = LimitExponent;                      ///< blocks are scaled to at most
    static constexpr float limit_mantissa = static_cast<float>(LimitEighths) / 8;  ///< limit_mantissa * 2^limit_exponent
    static constexpr int dropped = 23 - mantissa;  ///< bits of fp32
    static constexpr int noise_up = std::max(dropped - 16, 0), noise_down = std::max(16 - dropped, 0);  ///< shifts that bring 16 bits there

    /// One of the two neighbours of x, the upper one where `noise`, 16 bits, exceeds what is missing to it; the largest number beyond the
    /// range. Not for NaN.
    static Bits round(float x, uint32_t noise) {
        auto const sign = static_cast<Bits>(std::bit_cast<uint32_t>(x) >> 31 << (8 * sizeof(Bits) - 1));
        auto const a = std::fabs(x);
        uint32_t code;
        if (a >= power_of_two(lowest)) code = std::min(((std::bit_cast<uint32_t>(a) + (noise << noise_up >> noise_down)) >> dropped) - (static_cast<uint32_t>(lowest + 126) << mantissa), Largest);
        else code = static_cast<uint32_t>(a * power_of_two(mantissa - lowest) + static_cast<float>(noise) * 0x1p-16f);
        return static_cast<Bits>(sign | code);
    }
};

struct Fp8E4m3 : Format<uint8_t, 3, -6, 0x7e, 9, 7> {  // up to 448
    static float widened(uint8_t x) { return c10::detail::fp8e4m3fn_to_fp32_value(x); }
};
struct Fp16 : Format<uint16_t, 10, -14, 0x7bff, 16, 4> {  // up to 2^15, so that rounding up stays in the range
    static float widened(uint16_t x) { return c10::detail::fp16_ieee_to_fp32_value(x); }
};

/// The exponent of a block of fp32 numbers. A NaN or an infinity has none.
template <class F>
int scale_exponent(float amax) {
    if (!(amax > 0) || !(amax <= std::numeric_limits<float>::max())) return 0;
    int exponent = 0;
    auto const mantissa = std::frexp(amax, &exponent);
    return std::min(F::limit_exponent - exponent - (mantissa > F::limit_mantissa ? 1 : 0), 126);
}

/// fp32 of n numbers from the start of a block.
template <class F>
void decode(typename F::bits const* from, int8_t const* exponents, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = F::widened(from[i]) * power_of_two(-exponents[i / scale_block]);
}

/// n fp32 numbers, all finite, from the start of a block, rounded by chance; `first` is the place of the first one in its stream.
template <class F>
void encode(float const* from, typename F::bits* to, int8_t* exponents, int64_t n, Noise noise, int64_t first) {
    for (int64_t begin = 0; begin < n; begin += scale_block) {
        auto const end = std::min(begin + scale_block, n);
        float amax = 0;
        for (int64_t i = begin; i < end; ++i) amax = std::max(amax, std::fabs(from[i]));
        auto const exponent = scale_exponent<F>(amax);
        exponents[begin / scale_block] = static_cast<int8_t>(exponent);
        auto const scale = power_of_two(exponent);
        for (int64_t i = begin; i < end; ++i) to[i] = F::round(from[i] * scale, noise.at(first + i));
    }
}

/// n fp32 numbers become ones that `F` has, by chance.
template <class F>
void round_to(float* numbers, int64_t n, Noise noise, int64_t first) {
    for (int64_t i = 0; i < n; ++i) numbers[i] = F::widened(F::round(numbers[i], noise.at(first + i)));
}

}  // namespace accelerate::kernel
