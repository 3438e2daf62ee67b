#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accelerate::comm::kernel {

// Sums of several arrays, times a factor, written to several arrays (which may be among the summed ones). Terms are added in the
// order given, so every rank gets the same bits. Hand-vectorised, because a consumer compiles with -O2, where g++ 12 does not do
// it; not templates, because `target` attributes and lambdas or templates do not mix well. 16-bit floats are added in fp32 and
// rounded once. Each handles n / width * width elements and says how many; the portable loop does the rest.
#if defined(__x86_64__)

__attribute__((target("avx2"))) inline int64_t sum_f32_avx2(float* const* out, int64_t outs, float const* const* in, int64_t ins, int64_t n, float factor) {
    auto const f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        auto a = _mm256_loadu_ps(in[0] + i), b = _mm256_loadu_ps(in[0] + i + 8), c = _mm256_loadu_ps(in[0] + i + 16), d = _mm256_loadu_ps(in[0] + i + 24);
        for (int64_t k = 1; k < ins; ++k) {
            auto const* p = in[k] + i;
            a = _mm256_add_ps(a, _mm256_loadu_ps(p)), b = _mm256_add_ps(b, _mm256_loadu_ps(p + 8));
            c = _mm256_add_ps(c, _mm256_loadu_ps(p + 16)), d = _mm256_add_ps(d, _mm256_loadu_ps(p + 24));
        }
        a = _mm256_mul_ps(a, f), b = _mm256_mul_ps(b, f), c = _mm256_mul_ps(c, f), d = _mm256_mul_ps(d, f);
        for (int64_t k = 0; k < outs; ++k) {
            auto* p = out[k] + i;
            _mm256_storeu_ps(p, a), _mm256_storeu_ps(p + 8, b), _mm256_storeu_ps(p + 16, c), _mm256_storeu_ps(p + 24, d);
        }
    }
    return i;
}

__attribute__((target("avx512f"))) inline int64_t sum_f32_avx512(float* const* out, int64_t outs, float const* const* in, int64_t ins, int64_t n, float factor) {
    auto const f = _mm512_set1_ps(factor);
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        auto a = _mm512_loadu_ps(in[0] + i), b = _mm512_loadu_ps(in[0] + i + 16), c = _mm512_loadu_ps(in[0] + i + 32), d = _mm512_loadu_ps(in[0] + i + 48);
        for (int64_t k = 1; k < ins; ++k) {
            auto const* p = in[k] + i;
            a = _mm512_add_ps(a, _mm512_loadu_ps(p)), b = _mm512_add_ps(b, _mm512_loadu_ps(p + 16));
            c = _mm512_add_ps(c, _mm512_loadu_ps(p + 32)), d = _mm512_add_ps(d, _mm512_loadu_ps(p + 48));
        }
        a = _mm512_mul_ps(a, f), b = _mm512_mul_ps(b, f), c = _mm512_mul_ps(c, f), d = _mm512_mul_ps(d, f);
        for (int64_t k = 0; k < outs; ++k) {
            auto* p = out[k] + i;
            _mm512_storeu_ps(p, a), _mm512_storeu_ps(p + 16, b), _mm512_storeu_ps(p + 32, c), _mm512_storeu_ps(p + 48, d);
        }
    }
    return i;
}

__attribute__((target("avx2"))) inline int64_t sum_f64_avx2(double* const* out, int64_t outs, double const* const* in, int64_t ins, int64_t n, double factor) {
    auto const f = _mm256_set1_pd(factor);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        auto a = _mm256_loadu_pd(in[0] + i), b = _mm256_loadu_pd(in[0] + i + 4);
        for (int64_t k = 1; k < ins; ++k) a = _mm256_add_pd(a, _mm256_loadu_pd(in[k] + i)), b = _mm256_add_pd(b, _mm256_loadu_pd(in[k] + i + 4));
        a = _mm256_mul_pd(a, f), b = _mm256_mul_pd(b, f);
        for (int64_t k = 0; k < outs; ++k) _mm256_storeu_pd(out[k] + i, a), _mm256_storeu_pd(out[k] + i + 4, b);
    }
    return i;
}

__attribute__((target("avx2"))) inline __m256 load_bf16(uint16_t const* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<__m128i const*>(p))), 16));
}

__attribute__((target("avx2"))) inline int64_t sum_bf16_avx2(uint16_t* const* out, int64_t outs, uint16_t const* const* in, int64_t ins, int64_t n, float factor) {
    auto const f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        auto a = load_bf16(in[0] + i);
        for (int64_t k = 1; k < ins; ++k) a = _mm256_add_ps(a, load_bf16(in[k] + i));
        a = _mm256_mul_ps(a, f);
        // Round to nearest, ties to even; a NaN stays one.
        auto const bits = _mm256_castps_si256(a);
        auto const odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        auto rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF))), 16);
        auto const nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
        rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), nan);
        auto const packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
        for (int64_t k = 0; k < outs; ++k) _mm_storeu_si128(reinterpret_cast<__m128i*>(out[k] + i), packed);
    }
    return i;
}

__attribute__((target("avx2,f16c"))) inline int64_t sum_f16_avx2(uint16_t* const* out, int64_t outs, uint16_t const* const* in, int64_t ins, int64_t n, float factor) {
    auto const f = _mm256_set1_ps(factor);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        auto a = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(in[0] + i)));
        for (int64_t k = 1; k < ins; ++k) a = _mm256_add_ps(a, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(in[k] + i))));
        auto const packed = _mm256_cvtps_ph(_mm256_mul_ps(a, f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        for (int64_t k = 0; k < outs; ++k) _mm_storeu_si128(reinterpret_cast<__m128i*>(out[k] + i), packed);
    }
    return i;
}

/// What this processor can do; asked once.
struct Processor {
    bool avx2 = __builtin_cpu_supports("avx2"), avx512 = __builtin_cpu_supports("avx512f"), f16c = __builtin_cpu_supports("avx2") && has_f16c();

    static Processor const& get() {
        static Processor const it;
        return it;
    }

private:
    // g++ 12 does not know the name "f16c" here; every processor with AVX2 has it, as has every hypervisor's model of one.
    static bool has_f16c() { return true; }
};

#endif

}  // namespace accelerate::comm::kernel
