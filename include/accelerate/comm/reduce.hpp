#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Float8_e4m3fn.h>
#include <c10/util/Float8_e4m3fnuz.h>
#include <c10/util/Float8_e5m2.h>
#include <c10/util/Float8_e5m2fnuz.h>
#include <c10/util/Half.h>

#include <accelerate/comm/kernels.hpp>
#include <accelerate/comm/reduction.hpp>
#include <type_traits>

namespace accelerate::comm {

/// One reduction over arrays that this process sees: `outs` arrays receive what `ins` arrays give, element by element. The outputs
/// may be among the inputs. Terms are taken in the order of `in`.
struct Reduce {
    void* const* out;
    int64_t outs;
    void const* const* in;
    int64_t ins;
    double factor = 1;  ///< multiplies a sum
};

namespace detail {

template <class T>
struct Wide { using type = T; };
template <> struct Wide<c10::Half> { using type = float; };
template <> struct Wide<c10::BFloat16> { using type = float; };
template <> struct Wide<c10::Float8_e4m3fn> { using type = float; };
template <> struct Wide<c10::Float8_e4m3fnuz> { using type = float; };
template <> struct Wide<c10::Float8_e5m2> { using type = float; };
template <> struct Wide<c10::Float8_e5m2fnuz> { using type = float; };
template <> struct Wide<int8_t> { using type = int64_t; };
template <> struct Wide<int16_t> { using type = int64_t; };
template <> struct Wide<int32_t> { using type = int64_t; };
template <> struct Wide<uint8_t> { using type = uint64_t; };
template <> struct Wide<uint16_t> { using type = uint64_t; };
template <> struct Wide<uint32_t> { using type = uint64_t; };

/// The larger (or smaller) of two; a NaN wins, as in LibTorch.
template <bool Larger, class A>
A extreme(A a, A b) {
    if constexpr (std::is_floating_point_v<A>) {
        if (a != a) return a;
        if (b != b) return b;
    }
    return (Larger ? a < b : b < a) ? b : a;
}

template <class T>
void reduce_portable(Reduce const& r, Reduction reduction, int64_t from, int64_t to) {
    using A = typename Wide<T>::type;
    // Unsigned, so that a sum that overflows wraps as LibTorch's does.
    using S = typename std::conditional_t<std::is_signed_v<A> && std::is_integral_v<A>, std::make_unsigned<A>, std::type_identity<A>>::type;
    for (int64_t i = from; i < to; ++i) {
        auto const term = [&](int64_t k) { return static_cast<A>(static_cast<T const*>(r.in[k])[i]); };
        A value = term(0);
        if constexpr (std::is_same_v<T, bool>) {
            for (int64_t k = 1; k < r.ins; ++k) value = reduction == Reduction::Min ? value && term(k) : value || term(k);
        } else {
            for (int64_t k = 1; k < r.ins; ++k) {
                if (reduction == Reduction::Max) value = extreme<true>(value, term(k));
                else if (reduction == Reduction::Min) value = extreme<false>(value, term(k));
                else value = static_cast<A>(static_cast<S>(value) + static_cast<S>(term(k)));
            }
            if constexpr (std::is_floating_point_v<A>)
                if (reduction == Reduction::Sum || reduction == Reduction::Mean) value *= static_cast<A>(r.factor);
        }
        for (int64_t k = 0; k < r.outs; ++k) static_cast<T*>(r.out[k])[i] = static_cast<T>(value);
    }
}

template <class T>
T* const* as(void* const* p) { return reinterpret_cast<T* const*>(p); }
template <class T>
T const* const* as(void const* const* p) { return reinterpret_cast<T const* const*>(p); }

/// How many leading elements the vector kernels have done.
inline int64_t reduce_vectorised(Reduce const& r, [[maybe_unused]] at::ScalarType dtype, Reduction reduction, [[maybe_unused]] int64_t n) {
    if (reduction != Reduction::Sum && reduction != Reduction::Mean) return 0;
#if defined(__x86_64__)
    auto const& cpu = kernel::Processor::get();
    if (!cpu.avx2) return 0;
    auto const factor = static_cast<float>(r.factor);
    switch (dtype) {
        case at::kFloat:
            return cpu.avx512 ? kernel::sum_f32_avx512(as<float>(r.out), r.outs, as<float>(r.in), r.ins, n, factor)
                              : kernel::sum_f32_avx2(as<float>(r.out), r.outs, as<float>(r.in), r.ins, n, factor);
        case at::kDouble: return kernel::sum_f64_avx2(as<double>(r.out), r.outs, as<double>(r.in), r.ins, n, r.factor);
        case at::kBFloat16: return kernel::sum_bf16_avx2(as<uint16_t>(r.out), r.outs, as<uint16_t>(r.in), r.ins, n, factor);
        case at::kHalf: return cpu.f16c ? kernel::sum_f16_avx2(as<uint16_t>(r.out), r.outs, as<uint16_t>(r.in), r.ins, n, factor) : 0;
        default: break;
    }
#endif
    return 0;
}

}  // namespace detail

/// Elements of `dtype` that are reduced as elements of another: complex numbers are pairs of reals, and so on.
inline std::pair<at::ScalarType, int64_t> real_view(at::ScalarType dtype, int64_t n) {
    switch (dtype) {
        case at::kComplexHalf: return {at::kHalf, 2 * n};
        case at::kComplexFloat: return {at::kFloat, 2 * n};
        case at::kComplexDouble: return {at::kDouble, 2 * n};
        default: return {dtype, n};
    }
}

/// Reduces `n` elements. Every dtype for which `why_not(reduction, dtype)` is empty; `Mean` means a sum whose factor the caller chose.
inline void reduce(Reduce const& r, at::ScalarType dtype, Reduction reduction, int64_t n) {
    std::tie(dtype, n) = real_view(dtype, n);
    auto const done = detail::reduce_vectorised(r, dtype, reduction, n);
    if (done == n) return;
    switch (dtype) {
        case at::kFloat: return detail::reduce_portable<float>(r, reduction, done, n);
        case at::kDouble: return detail::reduce_portable<double>(r, reduction, done, n);
        case at::kHalf: return detail::reduce_portable<c10::Half>(r, reduction, done, n);
        case at::kBFloat16: return detail::reduce_portable<c10::BFloat16>(r, reduction, done, n);
        case at::kFloat8_e4m3fn: return detail::reduce_portable<c10::Float8_e4m3fn>(r, reduction, done, n);
        case at::kFloat8_e4m3fnuz: return detail::reduce_portable<c10::Float8_e4m3fnuz>(r, reduction, done, n);
        case at::kFloat8_e5m2: return detail::reduce_portable<c10::Float8_e5m2>(r, reduction, done, n);
        case at::kFloat8_e5m2fnuz: return detail::reduce_portable<c10::Float8_e5m2fnuz>(r, reduction, done, n);
        case at::kBool: return detail::reduce_portable<bool>(r, reduction, done, n);
        case at::kByte: return detail::reduce_portable<uint8_t>(r, reduction, done, n);
        case at::kChar: return detail::reduce_portable<int8_t>(r, reduction, done, n);
        case at::kShort: return detail::reduce_portable<int16_t>(r, reduction, done, n);
        case at::kInt: return detail::reduce_portable<int32_t>(r, reduction, done, n);
        case at::kLong: return detail::reduce_portable<int64_t>(r, reduction, done, n);
        case at::kUInt16: return detail::reduce_portable<uint16_t>(r, reduction, done, n);
        case at::kUInt32: return detail::reduce_portable<uint32_t>(r, reduction, done, n);
        case at::kUInt64: return detail::reduce_portable<uint64_t>(r, reduction, done, n);
        default: throw Error(code::config, concat("a reduction of ", c10::toString(dtype), " is not supported"));
    }
}

}  // namespace accelerate::comm
