#pragma once

#include <accelerate/comm/reduction.hpp>
#include <accelerate/core/config.hpp>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>

#if ACCELERATE_WITH_NCCL

// nccl.h brings in the CUDA types of 16 bits, which otherwise put names as short as `half` into the global namespace.
#ifndef CUDA_NO_HALF
#define CUDA_NO_HALF 1
#endif
#ifndef CUDA_NO_BFLOAT16
#define CUDA_NO_BFLOAT16 1
#endif
#include <nccl.h>

namespace accelerate {
namespace code {
inline constexpr Code nccl{"E_NCCL", 70};  ///< NCCL or the CUDA runtime refused a call
}

namespace comm::nccl {

inline void call(ncclResult_t result, char const* what, ncclComm_t comm = nullptr) {
    if (result != ncclSuccess) throw Error(code::nccl, concat(what, ": ", ncclGetErrorString(result), "; ", ncclGetLastError(comm), " (NCCL_DEBUG=WARN says more)"));
}
inline void call(cudaError_t result, char const* what) {
    if (result != cudaSuccess) throw Error(code::nccl, concat(what, ": ", cudaGetErrorString(result)));
}

/// An NCCL communicator; shared by the copies of a handle, destroyed with the last.
using Handle = std::shared_ptr<std::remove_pointer_t<ncclComm_t>>;

inline Handle connect(ncclUniqueId const& id, int64_t size, int64_t rank) {
    ncclComm_t comm = nullptr;
    call(ncclCommInitRank(&comm, static_cast<int>(size), id, static_cast<int>(rank)), "ncclCommInitRank");
    return Handle(comm, [](ncclComm_t c) {
        // To destroy is collective; on the way out of an exception the peers may be elsewhere.
        if (std::uncaught_exceptions() > 0) ncclCommAbort(c);
        else ncclCommDestroy(c);
    });
}

/// How NCCL is told to reduce elements of a LibTorch dtype: as `width` elements each of another where it has no such type.
struct Arithmetic {
    ncclDataType_t type;
    ncclRedOp_t operation;
    int64_t width = 1;
};

/// Empty where NCCL cannot reduce that dtype, or loses a NaN on the way to an extreme; the host can.
inline std::optional<Arithmetic> arithmetic(at::ScalarType dtype, Reduction reduction) {
    if (c10::isFloatingType(dtype) && (reduction == Reduction::Max || reduction == Reduction::Min)) return std::nullopt;
    auto const operation = reduction == Reduction::Sum ? ncclSum : reduction == Reduction::Mean ? ncclAvg : reduction == Reduction::Max ? ncclMax : ncclMin;
    switch (dtype) {
        case at::kFloat: return Arithmetic{ncclFloat32, operation};
        case at::kDouble: return Arithmetic{ncclFloat64, operation};
        case at::kHalf: return Arithmetic{ncclFloat16, operation};
        case at::kBFloat16: return Arithmetic{ncclBfloat16, operation};
        case at::kComplexFloat: return Arithmetic{ncclFloat32, operation, 2};
        case at::kComplexDouble: return Arithmetic{ncclFloat64, operation, 2};
        case at::kChar: return Arithmetic{ncclInt8, operation};
        case at::kByte: return Arithmetic{ncclUint8, operation};
        case at::kInt: return Arithmetic{ncclInt32, operation};
        case at::kUInt32: return Arithmetic{ncclUint32, operation};
        case at::kLong: return Arithmetic{ncclInt64, operation};
        case at::kUInt64: return Arithmetic{ncclUint64, operation};
        case at::kBool: return Arithmetic{ncclUint8, reduction == Reduction::Min ? ncclMin : ncclMax};  // a bool is 0 or 1: the sum is "or"
        default: return std::nullopt;
    }
}

}  // namespace comm::nccl
}  // namespace accelerate

#endif
