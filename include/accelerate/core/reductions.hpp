#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accelerate::kernel {

// Reductions over fp32 memory that are bound by memory alone. Squares of floats are exact in double and neither overflow nor
// underflow there, so sums are kept in double. Plain functions with `target` attributes, because a consumer compiles with -O2,
// where g++ 12 does not vectorise, and without -march.

inline double sum_of_squares_portable(float const* x, int64_t n) {
    double sum[4] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (int64_t k = 0; k < 4; ++k) sum[k] += static_cast<double>(x[i + k]) * static_cast<double>(x[i + k]);
    for (; i < n; ++i) sum[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// As an integer, |x| orders as the number does and a NaN comes after infinity: one maximum finds both.
inline float largest_magnitude_portable(float const* x, int64_t n) {
    int32_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<int32_t>(x[i]) & 0x7fffffff);
    return std::bit_cast<float>(largest);
}

template <size_t N>
float larger_of(int32_t const (&lanes)[N], float other) {
    int32_t largest = std::bit_cast<int32_t>(other);
    for (int32_t lane : lanes) largest = std::max(largest, lane);
    return std::bit_cast<float>(largest);
}

#if defined(__x86_64__)

[[gnu::target("avx512f")]] inline double sum_of_squares_avx512(float const* x, int64_t n) {
    __m512d a = _mm512_setzero_pd(), b = a, c = a, d = a;
    __mmask8 const all = 0xff;  // the masked form, because g++ 12 warns of its own header in the plain one
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        auto const p = _mm512_maskz_cvtps_pd(all, _mm256_loadu_ps(x + i)), q = _mm512_maskz_cvtps_pd(all, _mm256_loadu_ps(x + i + 8));
        auto const r = _mm512_maskz_cvtps_pd(all, _mm256_loadu_ps(x + i + 16)), s = _mm512_maskz_cvtps_pd(all, _mm256_loadu_ps(x + i + 24));
        a = _mm512_fmadd_pd(p, p, a);
        b = _mm512_fmadd_pd(q, q, b);
        c = _mm512_fmadd_pd(r, r, c);
        d = _mm512_fmadd_pd(s, s, d);
    }
    alignas(64) double lanes[8];
    _mm512_store_pd(lanes, _mm512_add_pd(_mm512_add_pd(a, b), _mm512_add_pd(c, d)));
    double sum = sum_of_squares_portable(x + i, n - i);
    for (double lane : lanes) sum += lane;
    return sum;
}

[[gnu::target("avx2,fma")]] inline double sum_of_squares_avx2(float const* x, int64_t n) {
    __m256d a = _mm256_setzero_pd(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        auto const p = _mm256_cvtps_pd(_mm_loadu_ps(x + i)), q = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4));
        auto const r = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 8)), s = _mm256_cvtps_pd(_mm_loadu_ps(x + i + 12));
        a = _mm256_fmadd_pd(p, p, a);
        b = _mm256_fmadd_pd(q, q, b);
        c = _mm256_fmadd_pd(r, r, c);
        d = _mm256_fmadd_pd(s, s, d);
    }
    alignas(32) double lanes[4];
    _mm256_store_pd(lanes, _mm256_add_pd(_mm256_add_pd(a, b), _mm256_add_pd(c, d)));
    return sum_of_squares_portable(x + i, n - i) + (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

[[gnu::target("avx512f")]] inline float largest_magnitude_avx512(float const* x, int64_t n) {
    auto const magnitude = _mm512_set1_epi32(0x7fffffff);
    __mmask16 const all = 0xffff;
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        a = _mm512_maskz_max_epi32(all, a, _mm512_and_epi32(magnitude, _mm512_loadu_si512(x + i)));
        b = _mm512_maskz_max_epi32(all, b, _mm512_and_epi32(magnitude, _mm512_loadu_si512(x + i + 16)));
        c = _mm512_maskz_max_epi32(all, c, _mm512_and_epi32(magnitude, _mm512_loadu_si512(x + i + 32)));
        d = _mm512_maskz_max_epi32(all, d, _mm512_and_epi32(magnitude, _mm512_loadu_si512(x + i + 48)));
    }
    alignas(64) int32_t lanes[16];
    _mm512_store_si512(lanes, _mm512_maskz_max_epi32(all, _mm512_maskz_max_epi32(all, a, b), _mm512_maskz_max_epi32(all, c, d)));
    return larger_of(lanes, largest_magnitude_portable(x + i, n - i));
}

[[gnu::target("avx2")]] inline float largest_magnitude_avx2(float const* x, int64_t n) {
    auto const magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        a = _mm256_max_epi32(a, _mm256_and_si256(magnitude, _mm256_castps_si256(_mm256_loadu_ps(x + i))));
        b = _mm256_max_epi32(b, _mm256_and_si256(magnitude, _mm256_castps_si256(_mm256_loadu_ps(x + i + 8))));
        c = _mm256_max_epi32(c, _mm256_and_si256(magnitude, _mm256_castps_si256(_mm256_loadu_ps(x + i + 16))));
        d = _mm256_max_epi32(d, _mm256_and_si256(magnitude, _mm256_castps_si256(_mm256_loadu_ps(x + i + 24))));
    }
    alignas(32) int32_t lanes[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(_mm256_max_epi32(a, b), _mm256_max_epi32(c, d)));
    return larger_of(lanes, largest_magnitude_portable(x + i, n - i));
}

#endif

/// Sum of x[i]^2, within 1e-14 relative of exact arithmetic for any n that fits into memory.
inline double sum_of_squares(float const* x, int64_t n) {
#if defined(__x86_64__)
    static auto* const chosen = __builtin_cpu_supports("avx512f")                                        ? sum_of_squares_avx512
                                : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? sum_of_squares_avx2
                                                                                                  : sum_of_squares_portable;
    return chosen(x, n);
#else
    return sum_of_squares_portable(x, n);
#endif
}

/// Largest |x[i]|; NaN if there is one.
inline float largest_magnitude(float const* x, int64_t n) {
#if defined(__x86_64__)
    static auto* const chosen = __builtin_cpu_supports("avx512f") ? largest_magnitude_avx512
                                : __builtin_cpu_supports("avx2")  ? largest_magnitude_avx2
                                                                  : largest_magnitude_portable;
    return chosen(x, n);
#else
    return largest_magnitude_portable(x, n);
#endif
}

}  // namespace accelerate::kernel
