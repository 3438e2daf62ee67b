#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <accelerate/core/log.hpp>
#include <accelerate/device/cuda_kernel.hpp>
#include <accelerate/precision/fp8_cast_source.hpp>
#include <accelerate/precision/fp8_recipe.hpp>
#include <accelerate/precision/weight_cache.hpp>

namespace accelerate::precision {

/// A matrix in fp8 as products that sum over its columns take it, and transposed, as those that sum over its rows do. The dimension that is
/// summed over is padded with zeros to a multiple of 16: what fp8 units demand. Either may be left out.
struct Fp8Matrix {
    Rounded in_rows, in_columns;
};

/// A size, rounded up to a multiple of 16.
constexpr int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

namespace detail {

/// The numbers in fp8 with columns of zeros behind them.
inline at::Tensor padded_columns(at::Tensor const& numbers) {
    auto const columns = numbers.size(1);
    if (columns == padded(columns)) return numbers.contiguous();
    auto wide = at::zeros({numbers.size(0), padded(columns)}, numbers.options());
    wide.narrow(1, 0, columns).copy_(numbers);
    return wide;
}

#if ACCELERATE_WITH_CUDA

template <int Source, bool E5m2>
device::CudaKernel const& fp8_cast_kernel() {
    static device::CudaKernel const kernel("fp8_cast", fp8_cast_source, {"-DSOURCE=" + std::to_string(Source), "-DE5M2=" + std::to_string(E5m2 ? 1 : 0)});
    return kernel;
}

/// Null for dtypes that it does not read.
inline device::CudaKernel const* fp8_cast_kernel(at::ScalarType from, at::ScalarType format) {
    bool const e5m2 = format == at::kFloat8_e5m2;
    if (from == at::kFloat) return e5m2 ? &fp8_cast_kernel<0, true>() : &fp8_cast_kernel<0, false>();
    if (from == at::kBFloat16) return e5m2 ? &fp8_cast_kernel<1, true>() : &fp8_cast_kernel<1, false>();
    if (from == at::kHalf) return e5m2 ? &fp8_cast_kernel<2, true>() : &fp8_cast_kernel<2, false>();
    return nullptr;
}

/// In one pass over `a`, both ways. False where the kernel cannot be had.
inline bool cast_by_kernel(at::Tensor const& a, at::ScalarType format, Fp8Matrix& to) {
    auto const* const kernel = fp8_cast_kernel(a.scalar_type(), format);
    if (kernel == nullptr) return false;
    if (auto const& why = kernel->why_not(a.device()); !why.empty()) {
        log::warning_once("fp8: operands are rounded by LibTorch's operations, which takes several times as long: ", why);
        return false;
    }
    auto const x = a.contiguous();
    auto const rows = x.size(0), columns = x.size(1), across = (columns + 63) / 64;
    auto const room = [&](Rounded& r, int64_t n, int64_t summed) {
        if (r.scale.defined()) r.numbers = at::empty({n, padded(summed)}, x.options().dtype(format)), r.scale = r.scale.contiguous();
    };
    room(to.in_rows, rows, columns), room(to.in_columns, columns, rows);
    auto const scales = [](Rounded const& r) { return r.scale.defined() ? r.scale.const_data_ptr<float>() : nullptr; };
    auto const step = [](Rounded const& r) { return r.scale.defined() && r.scale.numel() > 1 ? 1 : 0; };
    auto const bytes = [](Rounded const& r) { return r.scale.defined() ? static_cast<unsigned char*>(r.numbers.mutable_data_ptr()) : nullptr; };
    auto const* const data = x.const_data_ptr();
    int const aligned = columns % 8 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0 ? 1 : 0;
    using Int = long long;  // the kernel's parameters are these very types
    kernel->launch(x.device(), (rows + 127) / 128 * across, 256, data, Int{rows}, Int{columns}, aligned, Int{across}, scales(to.in_rows), step(to.in_rows), bytes(to.in_rows), Int{padded(columns)},
                   scales(to.in_columns), step(to.in_columns), bytes(to.in_columns), Int{padded(rows)});
    return true;
}

#endif

}  // namespace detail

/// `a` (rows, columns), multiplied by scales (fp32: [], or [rows, 1] and [columns, 1]) and rounded to `format`; what is beyond the range becomes
/// the largest number. An undefined scale: that way is not wanted. On GPUs one pass over `a` for both, elsewhere some five.
inline Fp8Matrix to_fp8(at::Tensor const& a, at::ScalarType format, at::Tensor const& row_scales, at::Tensor const& column_scales) {
    Fp8Matrix result{{{}, row_scales}, {{}, column_scales}};
#if ACCELERATE_WITH_CUDA
    if (a.is_cuda() && a.numel() > 0 && detail::cast_by_kernel(a, format, result)) return result;
#endif
    auto const round = [&](at::Tensor const& matrix, at::Tensor const& scale) { return detail::padded_columns(saturated(matrix.to(at::kFloat) * scale, format)); };
    if (row_scales.defined()) result.in_rows.numbers = round(a, row_scales);
    if (column_scales.defined()) result.in_columns.numbers = round(a.t(), column_scales);
    return result;
}

}  // namespace accelerate::precision
