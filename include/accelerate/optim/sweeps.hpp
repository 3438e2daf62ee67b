#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accelerate::kernel {

// One update in one pass over fp32 memory: each number is read once and written once, with the gradient scaled (unscaled, clipped)
// on its way. Arithmetic as LibTorch's fused kernels do it, within rounding. Plain functions with `target` attributes, because a
// consumer compiles with -O2 and without -march; where the CPU lacks AVX2 the rules use LibTorch's kernels.

/// Whether this CPU can run the sweeps below.
inline bool can_sweep() {
#if defined(__x86_64__)
    static bool const can = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return can;
#else
    return false;
#endif
}

/// n numbers of each stream. A stream that a rule lacks is `parameters` again.
struct Strip {
    float* parameters = nullptr;
    float* gradients = nullptr;
    float* first = nullptr;
    float* second = nullptr;
    int64_t n = 0;
    bool clear = false;  ///< leave zeros where gradients have been read

    Strip part(int64_t begin, int64_t end) const { return {parameters + begin, gradients + begin, first + begin, second + begin, end - begin, clear}; }
};

/// `g *= scale; m += (1-b1)*(g-m); v = b2*v + (1-b2)*g*g; p -= step * m / (sqrt(v)*root + eps)`, after `p *= 1 - decay` where decay is
/// decoupled (AdamW), else with `g += decay*p`.
template <bool Decoupled>
struct AdamNumbers {
    float scale, decay, one_minus_beta1, beta2, one_minus_beta2, step, root, eps;
};

/// `g = scale*g + l2*p; b = momentum*b + take*g; p -= lr * (gradient*g + buffer*b)`; without b where it is not buffered
struct SgdNumbers {
    float scale, l2, momentum, take, lr, gradient, buffer;
    bool buffered;
};

/// `g = scale*g + l2*p; s += g*g; p -= lr * g / (sqrt(s) + eps)`
struct AdagradNumbers {
    float scale, l2, lr, eps;
};

/// `g = scale*g; p = keep*p - lr*sign(b1*m + (1-b1)*g); m = b2*m + (1-b2)*g`
struct LionNumbers {
    float scale, keep, lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
};

#if defined(__x86_64__)

/// Eight lanes of a rule; its constants stay in registers over the loop.
template <class Numbers>
struct Lanes;

template <bool Decoupled>
struct Lanes<AdamNumbers<Decoupled>> {
    __m256 scale, decay, one_minus_beta1, beta2, one_minus_beta2, step, root, eps;

    [[gnu::target("avx2,fma"), gnu::always_inline]] explicit inline Lanes(AdamNumbers<Decoupled> const& c)
        : scale(_mm256_set1_ps(c.scale)), decay(_mm256_set1_ps(Decoupled ? 1 - c.decay : c.decay)), one_minus_beta1(_mm256_set1_ps(c.one_minus_beta1)), beta2(_mm256_set1_ps(c.beta2)),
          one_minus_beta2(_mm256_set1_ps(c.one_minus_beta2)), step(_mm256_set1_ps(c.step)), root(_mm256_set1_ps(c.root)), eps(_mm256_set1_ps(c.eps)) {}

    [[gnu::target("avx2,fma"), gnu::always_inline]] inline void operator()(float* p, float const* g, float* m, float* v) const {
        auto parameter = _mm256_loadu_ps(p), gradient = _mm256_mul_ps(_mm256_loadu_ps(g), scale);
        if constexpr (Decoupled) parameter = _mm256_mul_ps(parameter, decay);
        else gradient = _mm256_fmadd_ps(decay, parameter, gradient);
        auto const before = _mm256_loadu_ps(m);
        auto const mean = _mm256_fmadd_ps(one_minus_beta1, _mm256_sub_ps(gradient, before), before);
        auto const square = _mm256_fmadd_ps(beta2, _mm256_loadu_ps(v), _mm256_mul_ps(_mm256_mul_ps(one_minus_beta2, gradient), gradient));
        auto const divisor = _mm256_fmadd_ps(_mm256_sqrt_ps(square), root, eps);
        _mm256_storeu_ps(m, mean);
        _mm256_storeu_ps(v, square);
        _mm256_storeu_ps(p, _mm256_fnmadd_ps(step, _mm256_div_ps(mean, divisor), parameter));
    }
};

template <>
struct Lanes<SgdNumbers> {
    __m256 scale, l2, momentum, take, lr, gradient, buffer;
    bool buffered;

    [[gnu::target("avx2,fma"), gnu::always_inline]] explicit inline Lanes(SgdNumbers const& c)
        : scale(_mm256_set1_ps(c.scale)), l2(_mm256_set1_ps(c.l2)), momentum(_mm256_set1_ps(c.momentum)), take(_mm256_set1_ps(c.take)), lr(_mm256_set1_ps(-c.lr)),
          gradient(_mm256_set1_ps(c.gradient)), buffer(_mm256_set1_ps(c.buffer)), buffered(c.buffered) {}

    [[gnu::target("avx2,fma"), gnu::always_inline]] inline void operator()(float* p, float const* g, float* b, float*) const {
        auto const parameter = _mm256_loadu_ps(p);
        auto const now = _mm256_fmadd_ps(l2, parameter, _mm256_mul_ps(_mm256_loadu_ps(g), scale));
        if (!buffered) {
            _mm256_storeu_ps(p, _mm256_fmadd_ps(lr, now, parameter));
            return;
        }
        auto const moved = _mm256_fmadd_ps(momentum, _mm256_loadu_ps(b), _mm256_mul_ps(take, now));
        _mm256_storeu_ps(b, moved);
        _mm256_storeu_ps(p, _mm256_fmadd_ps(lr, _mm256_fmadd_ps(gradient, now, _mm256_mul_ps(buffer, moved)), parameter));
    }
};

template <>
struct Lanes<AdagradNumbers> {
    __m256 scale, l2, lr, eps;

    [[gnu::target("avx2,fma"), gnu::always_inline]] explicit inline Lanes(AdagradNumbers const& c)
        : scale(_mm256_set1_ps(c.scale)), l2(_mm256_set1_ps(c.l2)), lr(_mm256_set1_ps(-c.lr)), eps(_mm256_set1_ps(c.eps)) {}

    [[gnu::target("avx2,fma"), gnu::always_inline]] inline void operator()(float* p, float const* g, float* s, float*) const {
        auto const parameter = _mm256_loadu_ps(p);
        auto const gradient = _mm256_fmadd_ps(l2, parameter, _mm256_mul_ps(_mm256_loadu_ps(g), scale));
        auto const sum = _mm256_fmadd_ps(gradient, gradient, _mm256_loadu_ps(s));
        _mm256_storeu_ps(s, sum);
        _mm256_storeu_ps(p, _mm256_add_ps(parameter, _mm256_div_ps(_mm256_mul_ps(lr, gradient), _mm256_add_ps(_mm256_sqrt_ps(sum), eps))));
    }
};

template <>
struct Lanes<LionNumbers> {
    __m256 scale, keep, lr, beta1, one_minus_beta1, beta2, one_minus_beta2;

    [[gnu::target("avx2,fma"), gnu::always_inline]] explicit inline Lanes(LionNumbers const& c)
        : scale(_mm256_set1_ps(c.scale)), keep(_mm256_set1_ps(c.keep)), lr(_mm256_set1_ps(-c.lr)), beta1(_mm256_set1_ps(c.beta1)), one_minus_beta1(_mm256_set1_ps(c.one_minus_beta1)),
          beta2(_mm256_set1_ps(c.beta2)), one_minus_beta2(_mm256_set1_ps(c.one_minus_beta2)) {}

    [[gnu::target("avx2,fma"), gnu::always_inline]] inline void operator()(float* p, float const* g, float* m, float*) const {
        auto const gradient = _mm256_mul_ps(_mm256_loadu_ps(g), scale);
        auto const before = _mm256_loadu_ps(m);
        auto const update = _mm256_fmadd_ps(beta1, before, _mm256_mul_ps(one_minus_beta1, gradient));
        // The sign of a number on a step of -lr, and nothing where it is zero.
        auto const turned = _mm256_xor_ps(lr, _mm256_and_ps(update, _mm256_set1_ps(-0.0f)));
        auto const step = _mm256_and_ps(turned, _mm256_cmp_ps(update, _mm256_setzero_ps(), _CMP_NEQ_UQ));
        _mm256_storeu_ps(p, _mm256_fmadd_ps(keep, _mm256_loadu_ps(p), step));
        _mm256_storeu_ps(m, _mm256_fmadd_ps(beta2, before, _mm256_mul_ps(one_minus_beta2, gradient)));
    }
};

template <bool Clear, class Numbers>
[[gnu::target("avx2,fma")]] inline void sweep_avx2(Numbers const& numbers, Strip const& s) {
    Lanes<Numbers> const lanes(numbers);
    auto const zero = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 16 <= s.n; i += 16) {
        lanes(s.parameters + i, s.gradients + i, s.first + i, s.second + i);
        lanes(s.parameters + i + 8, s.gradients + i + 8, s.first + i + 8, s.second + i + 8);
        if constexpr (Clear) {
            _mm256_storeu_ps(s.gradients + i, zero);
            _mm256_storeu_ps(s.gradients + i + 8, zero);
        }
    }
    // The rest goes through lanes of its own, so that every number sees the same arithmetic wherever a strip ends.
    while (i < s.n) {
        auto const n = std::min<int64_t>(8, s.n - i);
        auto const bytes = static_cast<size_t>(n) * sizeof(float);
        float p[8] = {}, g[8] = {}, first[8] = {}, second[8] = {};
        std::memcpy(p, s.parameters + i, bytes);
        std::memcpy(g, s.gradients + i, bytes);
        std::memcpy(first, s.first + i, bytes);
        std::memcpy(second, s.second + i, bytes);
        lanes(p, g, first, second);
        std::memcpy(s.second + i, second, bytes);
        std::memcpy(s.first + i, first, bytes);
        std::memcpy(s.parameters + i, p, bytes);  // last: streams that a rule lacks are this one
        if constexpr (Clear) std::memset(s.gradients + i, 0, bytes);
        i += n;
    }
}

#endif

/// Updates a strip over the threads that LibTorch may use; the bits do not depend on their number. Needs `can_sweep()`.
template <class Numbers>
void sweep([[maybe_unused]] Numbers const& numbers, [[maybe_unused]] Strip const& s) {
#if defined(__x86_64__)
    at::parallel_for(0, s.n, int64_t{1} << 15, [&](int64_t begin, int64_t end) {
        if (s.clear) sweep_avx2<true>(numbers, s.part(begin, end));
        else sweep_avx2<false>(numbers, s.part(begin, end));
    });
#endif
}

}  // namespace accelerate::kernel
