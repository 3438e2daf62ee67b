#pragma once

#include <c10/util/BFloat16.h>

#include <bit>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accelerate::kernel {

// bf16 is the upper half of fp32. What is rounded to it stochastically gets a 16-bit number added to the lower half, from a hash of its
// place and of the step: no state, the same in any order and on every rank.

/// Where the numbers of one stream come from at one step.
struct Noise {
    uint32_t key = 0;

    static Noise of(int64_t step, uint32_t stream) { return {static_cast<uint32_t>(step) * 0x9e3779b9u + stream * 0x85ebca6bu}; }
    uint32_t at(int64_t index) const {
        auto x = static_cast<uint32_t>(index) + key;  // lowbias32 (Wellons): every bit of the input changes half of the output's
        x = (x ^ (x >> 16)) * 0x7feb352du;
        x = (x ^ (x >> 15)) * 0x846ca68bu;
        return (x ^ (x >> 16)) & 0xffff;
    }
};

inline float widened(uint16_t bf16) { return std::bit_cast<float>(static_cast<uint32_t>(bf16) << 16); }
/// To the nearest, ties to even; a NaN stays one.
inline uint16_t nearest_bf16(float x) { return c10::BFloat16(x).x; }
/// One of the two neighbours. Infinities and NaNs stay what they are; the largest numbers may become infinite.
inline uint16_t stochastic_bf16(float x, uint32_t noise) {
    auto const bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return nearest_bf16(x);
    return static_cast<uint16_t>((bits + noise) >> 16);
}

inline void widen_portable(uint16_t const* from, float* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = widened(from[i]);
}
inline void narrow_portable(float const* from, uint16_t* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = nearest_bf16(from[i]);
}
inline void narrow_portable(float const* from, uint16_t* to, int64_t n, Noise noise, int64_t first) {
    for (int64_t i = 0; i < n; ++i) to[i] = stochastic_bf16(from[i], noise.at(first + i));
}
inline void follow_portable(uint16_t const* parameters, float* masters, int64_t n) {
    for (int64_t i = 0; i < n; ++i)
        if (nearest_bf16(masters[i]) != parameters[i]) masters[i] = widened(parameters[i]);
}

#if defined(__x86_64__)

namespace avx2 {

[[gnu::target("avx2"), gnu::always_inline]] inline __m256i load(uint16_t const* p) { return _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p))), 16); }
/// The upper halves of eight numbers.
[[gnu::target("avx2"), gnu::always_inline]] inline void store(uint16_t* p, __m256i upper) {
    auto const packed = _mm256_packus_epi32(upper, upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
[[gnu::target("avx2"), gnu::always_inline]] inline __m256i nearest(__m256i bits) {
    auto const even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    auto const rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff))), 16);
    auto const nan = _mm256_cmpgt_epi32(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)), _mm256_set1_epi32(0x7f800000));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
}
[[gnu::target("avx2"), gnu::always_inline]] inline __m256i noise(__m256i index) {
    auto x = _mm256_mullo_epi32(_mm256_xor_si256(index, _mm256_srli_epi32(index, 16)), _mm256_set1_epi32(0x7feb352d));
    x = _mm256_mullo_epi32(_mm256_xor_si256(x, _mm256_srli_epi32(x, 15)), _mm256_set1_epi32(static_cast<int>(0x846ca68bu)));
    return _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), _mm256_set1_epi32(0xffff));
}

}  // namespace avx2

[[gnu::target("avx2")]] inline void widen_avx2(uint16_t const* from, float* to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), avx2::load(from + i));
    widen_portable(from + i, to + i, n - i);
}

[[gnu::target("avx2")]] inline void narrow_avx2(float const* from, uint16_t* to, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) avx2::store(to + i, avx2::nearest(_mm256_loadu_si256(reinterpret_cast<__m256i const*>(from + i))));
    narrow_portable(from + i, to + i, n - i);
}

[[gnu::target("avx2")]] inline void narrow_avx2(float const* from, uint16_t* to, int64_t n, Noise noise, int64_t first) {
    auto index = _mm256_add_epi32(_mm256_set1_epi32(static_cast<int>(static_cast<uint32_t>(first) + noise.key)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    auto const exponent = _mm256_set1_epi32(0x7f800000);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        auto const bits = _mm256_loadu_si256(reinterpret_cast<__m256i const*>(from + i));
        auto const rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, avx2::noise(index)), 16);
        auto const special = _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent);
        avx2::store(to + i, _mm256_blendv_epi8(rounded, avx2::nearest(bits), special));
        index = _mm256_add_epi32(index, _mm256_set1_epi32(8));
    }
    narrow_portable(from + i, to + i, n - i, noise, first + i);
}

[[gnu::target("avx2")]] inline void follow_avx2(uint16_t const* parameters, float* masters, int64_t n) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        auto* const at = reinterpret_cast<__m256i*>(masters + i);
        auto const master = _mm256_loadu_si256(at), parameter = avx2::load(parameters + i);
        auto const same = _mm256_cmpeq_epi32(_mm256_slli_epi32(avx2::nearest(master), 16), parameter);
        _mm256_storeu_si256(at, _mm256_blendv_epi8(parameter, master, same));
    }
    follow_portable(parameters + i, masters + i, n - i);
}

#endif

// For CPUs with AVX2, as the sweeps are.

/// fp32 of bf16.
inline void widen(uint16_t const* from, float* to, int64_t n) {
#if defined(__x86_64__)
    widen_avx2(from, to, n);
#else
    widen_portable(from, to, n);
#endif
}
/// bf16 of fp32: the nearest, or stochastically where there is a noise; `first` is the place of the first number in its stream.
inline void narrow(float const* from, uint16_t* to, int64_t n) {
#if defined(__x86_64__)
    narrow_avx2(from, to, n);
#else
    narrow_portable(from, to, n);
#endif
}
inline void narrow(float const* from, uint16_t* to, int64_t n, Noise noise, int64_t first) {
#if defined(__x86_64__)
    narrow_avx2(from, to, n, noise, first);
#else
    narrow_portable(from, to, n, noise, first);
#endif
}
/// Masters whose bf16 is no longer the parameter begin anew from it: somebody has written there (loaded weights, say).
inline void follow(uint16_t const* parameters, float* masters, int64_t n) {
#if defined(__x86_64__)
    follow_avx2(parameters, masters, n);
#else
    follow_portable(parameters, masters, n);
#endif
}

}  // namespace accelerate::kernel
