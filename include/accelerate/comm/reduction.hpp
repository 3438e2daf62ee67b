#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/error.hpp>
#include <string_view>

namespace accelerate::comm {

/// What becomes of the values of all ranks. `Mean` is the sum divided by the number of ranks, in the same pass; it is for
/// floating point and complex dtypes. For bool, `Sum` and `Max` are "or", `Min` is "and".
enum class Reduction : uint8_t { Sum, Mean, Max, Min };

constexpr std::string_view name(Reduction r) {
    switch (r) {
        case Reduction::Sum: return "sum";
        case Reduction::Mean: return "mean";
        case Reduction::Max: return "max";
        case Reduction::Min: return "min";
    }
    return "?";
}

/// From the names that Python uses. Error E_CONFIG for any other.
inline Reduction reduction(std::string_view text) {
    for (auto r : {Reduction::Sum, Reduction::Mean, Reduction::Max, Reduction::Min})
        if (text == name(r)) return r;
    throw Error(code::config, concat("reduction \"", text, "\" is not one of sum, mean, max, min"));
}

/// Numbers that can be added and compared one by one, so not quantised, packed or scale-only dtypes.
constexpr bool holds_numbers(at::ScalarType dtype) {
    switch (dtype) {
        case at::kFloat: case at::kDouble: case at::kHalf: case at::kBFloat16:
        case at::kFloat8_e4m3fn: case at::kFloat8_e4m3fnuz: case at::kFloat8_e5m2: case at::kFloat8_e5m2fnuz:
        case at::kComplexHalf: case at::kComplexFloat: case at::kComplexDouble:
        case at::kBool: case at::kChar: case at::kShort: case at::kInt: case at::kLong:
        case at::kByte: case at::kUInt16: case at::kUInt32: case at::kUInt64: return true;
        default: return false;
    }
}

/// Empty when `r` is defined for the dtype, else one sentence that says why not.
inline std::string_view why_not(Reduction r, at::ScalarType dtype) {
    if (!holds_numbers(dtype)) return "this dtype holds no numbers that could be reduced";
    if (r == Reduction::Mean && c10::isIntegralType(dtype, true)) return "the mean of integers is not an integer; convert to a floating point dtype";
    if ((r == Reduction::Max || r == Reduction::Min) && c10::isComplexType(dtype)) return "complex numbers have no order";
    return {};
}

}  // namespace accelerate::comm
