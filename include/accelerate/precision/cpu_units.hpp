#pragma once

#include <c10/core/ScalarType.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace accelerate::precision {

/// Whether this CPU multiplies matrices of that dtype in hardware. Others than x86 are taken to.
inline bool cpu_has_units(at::ScalarType dtype) {
#if defined(__x86_64__)
    if (dtype != at::kBFloat16 && dtype != at::kHalf) return true;
    if (!__builtin_cpu_supports("avx512f")) return false;  // by the CPU and by the system
    unsigned a = 0, b = 0, c = 0, d = 0;
    // AVX512_BF16 and AVX512_FP16; a CPU with AMX has both.
    if (dtype == at::kBFloat16) return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d >> 23 & 1) != 0;
#else
    static_cast<void>(dtype);
    return true;
#endif
}

}  // namespace accelerate::precision
