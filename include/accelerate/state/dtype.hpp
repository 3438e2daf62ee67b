#pragma once

#include <c10/core/ScalarType.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace accelerate::state {

/// One dtype of the safetensors format.
struct Dtype {
    std::string_view name;
    int64_t bits = 0;                                    ///< of one element
    at::ScalarType type = at::ScalarType::Undefined;     ///< Undefined: LibTorch has no such dtype
};

/// All of them, in the format's own order: a writer puts the largest of it first, which keeps every tensor aligned.
inline constexpr std::array<Dtype, 22> dtypes{{
    {"BOOL", 8, at::ScalarType::Bool},
    {"F4", 4, at::ScalarType::Float4_e2m1fn_x2},         // LibTorch's element is two of the format's: the last dim is halved
    {"F6_E2M3", 6, at::ScalarType::Undefined},
    {"F6_E3M2", 6, at::ScalarType::Undefined},
    {"U8", 8, at::ScalarType::Byte},
    {"I8", 8, at::ScalarType::Char},
    {"F8_E5M2", 8, at::ScalarType::Float8_e5m2},
    {"F8_E4M3", 8, at::ScalarType::Float8_e4m3fn},
    {"F8_E8M0", 8, at::ScalarType::Float8_e8m0fnu},
    {"F8_E4M3FNUZ", 8, at::ScalarType::Float8_e4m3fnuz},
    {"F8_E5M2FNUZ", 8, at::ScalarType::Float8_e5m2fnuz},
    {"I16", 16, at::ScalarType::Short},
    {"U16", 16, at::ScalarType::UInt16},
    {"F16", 16, at::ScalarType::Half},
    {"BF16", 16, at::ScalarType::BFloat16},
    {"I32", 32, at::ScalarType::Int},
    {"U32", 32, at::ScalarType::UInt32},
    {"F32", 32, at::ScalarType::Float},
    {"C64", 64, at::ScalarType::ComplexFloat},
    {"F64", 64, at::ScalarType::Double},
    {"I64", 64, at::ScalarType::Long},
    {"U64", 64, at::ScalarType::UInt64},
}};

/// Place in `dtypes` of what the format calls `name`, or -1.
constexpr int64_t find_dtype(std::string_view name) {
    for (size_t i = 0; i < dtypes.size(); ++i)
        if (dtypes[i].name == name) return static_cast<int64_t>(i);
    return -1;
}

/// Place in `dtypes` of LibTorch's `type`, or -1.
constexpr int64_t find_dtype(at::ScalarType type) {
    for (size_t i = 0; i < dtypes.size(); ++i)
        if (dtypes[i].type == type && type != at::ScalarType::Undefined) return static_cast<int64_t>(i);
    return -1;
}

}  // namespace accelerate::state
