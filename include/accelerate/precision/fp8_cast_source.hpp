#pragma once

namespace accelerate::precision {

/// CUDA C++ of the kernel of `fp8_cast.hpp`. Defined before: SOURCE (0 float, 1 bfloat16, 2 half) and E5M2 (1, or 0 for e4m3).
/// A block takes 128 rows and 64 columns, a thread four rows of eight numbers: it reads 16 bytes at a time, writes rows as they are, and
/// columns by way of shared memory, in which a word holds four rows of one column.
inline constexpr char const* fp8_cast_source = R"cuda(
#if SOURCE == 0
typedef float number;
__device__ __forceinline__ float wide(number x) { return x; }
#elif SOURCE == 1
typedef unsigned short number;
__device__ __forceinline__ float wide(number x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }
#else
typedef unsigned short number;
__device__ __forceinline__ float wide(number x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
#endif

struct alignas(16) Eight {
    number at[8];
};

__device__ __forceinline__ unsigned two(float low, float high) {
    unsigned short bytes;
#if E5M2
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(bytes) : "f"(high), "f"(low));
#else
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(bytes) : "f"(high), "f"(low));
#endif
    return bytes;
}
__device__ __forceinline__ unsigned four(float a, float b, float c, float d) { return two(a, b) | two(c, d) << 16; }

extern "C" __global__ void __launch_bounds__(256)
fp8_cast(number const* x, long long rows, long long columns, int aligned, long long across,
         float const* row_scales, int row_step, unsigned char* in_rows, long long row_bytes,
         float const* column_scales, int column_step, unsigned char* in_columns, long long column_bytes) {
    __shared__ unsigned tile[64][33];  // 33: columns begin at different banks
    long long const row0 = blockIdx.x / across * 128, column0 = blockIdx.x % across * 64;
    int const group = threadIdx.x & 7, quad = threadIdx.x >> 3;
    long long const r0 = row0 + quad * 4, c0 = column0 + group * 8;

    float v[4][8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        long long const r = r0 + i;
        if (aligned && r < rows && c0 + 8 <= columns) {
            Eight const loaded = *reinterpret_cast<Eight const*>(x + r * columns + c0);
#pragma unroll
            for (int j = 0; j < 8; ++j) v[i][j] = wide(loaded.at[j]);
        } else {
#pragma unroll
            for (int j = 0; j < 8; ++j) v[i][j] = r < rows && c0 + j < columns ? wide(x[r * columns + c0 + j]) : 0.0f;
        }
    }

    if (in_rows) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            long long const r = r0 + i;
            if (r >= rows || c0 >= row_bytes) continue;
            float const s = row_scales[r * row_step];
            float y[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) y[j] = c0 + j < columns ? v[i][j] * s : 0.0f;  // what pads stays zero whatever the scale
            *reinterpret_cast<uint2*>(in_rows + r * row_bytes + c0) = make_uint2(four(y[0], y[1], y[2], y[3]), four(y[4], y[5], y[6], y[7]));
        }
    }
    if (!in_columns) return;

#pragma unroll
    for (int j = 0; j < 8; ++j) {
        float const s = c0 + j < columns ? column_scales[(c0 + j) * column_step] : 0.0f;
        float y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = r0 + i < rows ? v[i][j] * s : 0.0f;
        tile[group * 8 + j][quad] = four(y[0], y[1], y[2], y[3]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < 2; ++k) {
        int const chunk = threadIdx.x + 256 * k, column = chunk >> 3, part = chunk & 7;
        long long const c = column0 + column, r = row0 + part * 16;
        if (c >= columns || r >= column_bytes) continue;
        unsigned const* const words = &tile[column][part * 4];
        *reinterpret_cast<uint4*>(in_columns + c * column_bytes + r) = make_uint4(words[0], words[1], words[2], words[3]);
    }
}
)cuda";

}  // namespace accelerate::precision
