#pragma once
// Outside of the umbrella: who includes this has Eigen 3.4.

#include <ATen/MemoryOverlap.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <Eigen/Core>
#include <accelerate/core/error.hpp>
#include <complex>
#include <concepts>
#include <memory>
#include <type_traits>
#include <utility>

namespace accelerate {
namespace detail {

template <class Scalar>
struct EigenScalar { using type = Scalar; };
template <class Scalar>
struct EigenScalar<std::complex<Scalar>> { using type = c10::complex<Scalar>; };

template <class Scalar>
constexpr at::ScalarType dtype_of_eigen() {
    using T = typename EigenScalar<std::remove_const_t<Scalar>>::type;
    constexpr bool known = requires { c10::CppTypeToScalarType<T>::value; };
    static_assert(known, "this scalar type of Eigen has no dtype in LibTorch; use float, double, std::complex of these, bool or an integer");
    if constexpr (known) return c10::CppTypeToScalarType<T>::value;
    else return at::ScalarType::Undefined;
}

template <class M>
concept eigen_dense = std::derived_from<std::remove_cvref_t<M>, Eigen::DenseBase<std::remove_cvref_t<M>>>;

/// What `eigen_map<T>` maps to: T itself, or for a scalar a matrix of any size whose rows lie together, as in a contiguous tensor.
template <class T>
struct EigenPlain { using type = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>; };
template <eigen_dense T>
struct EigenPlain<T> { using type = T; };

}  // namespace detail

/// The memory of a CPU tensor as an Eigen map, without a copy: [n] is a column (or what vector T is), [rows, columns] a matrix, of
/// any strides. `T` is a scalar (`eigen_map<float>(t)`) or a matrix or array type (`eigen_map<Eigen::Matrix3d>(t)`), whose fixed
/// sizes the tensor must have; `T const` gives a map to read. The tensor's memory must outlive the map. Eigen vectorises, and a
/// plain `Eigen::Ref` binds, only where it is known when compiling that elements lie together: `eigen_map<T, Eigen::OuterStride<>>(t)`
/// asks for that within rows (columns of a column-major T), `Eigen::Stride<0, 0>`, the fastest, for a contiguous whole.
/// Error E_DATA for another dtype, device, shape or strides, for memory that is not there, and for a map to write whose tensor
/// requires grad or has elements that share memory.
template <class T, class Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>>
auto eigen_map(at::Tensor const& tensor) {
    using Matrix = typename detail::EigenPlain<std::remove_const_t<T>>::type;
    using Scalar = typename Matrix::Scalar;
    constexpr bool reads = std::is_const_v<T>;
    constexpr auto fits = [](int fixed, int64_t n) { return fixed == Eigen::Dynamic || fixed == n; };
    auto const dtype = detail::dtype_of_eigen<Scalar>();

    check(tensor.defined(), code::data, "eigen_map: the tensor is undefined");
    check(tensor.device().is_cpu() && tensor.layout() == at::kStrided, code::data, "eigen_map: expected a dense tensor on the CPU, found ", tensor.layout(), " on ", tensor.device());
    check(tensor.scalar_type() == dtype, code::data, "eigen_map: expected ", dtype, ", found ", tensor.scalar_type());
    check(!tensor.is_conj() && !tensor.is_neg(), code::data, "eigen_map: the tensor is a lazy conjugate or negative of its memory; map tensor.resolve_conj().resolve_neg()");
    check(tensor.numel() == 0 || tensor.storage().data() != nullptr, code::data,
          "eigen_map: the tensor has no memory now; under Fsdp a parameter has some only while its unit computes");
    check(tensor.dim() == 1 || tensor.dim() == 2, code::data, "eigen_map: expected 1 or 2 dimensions, found shape ", tensor.sizes());
    bool const row = tensor.dim() == 1 && Matrix::RowsAtCompileTime == 1 && Matrix::ColsAtCompileTime != 1;
    auto const n = tensor.size(0), rows = row ? 1 : n, columns = tensor.dim() == 2 ? tensor.size(1) : row ? n : 1;
    check(fits(Matrix::RowsAtCompileTime, rows) && fits(Matrix::ColsAtCompileTime, columns), code::data, "eigen_map: expected ",
          Matrix::RowsAtCompileTime == Eigen::Dynamic ? std::string("any") : std::to_string(Matrix::RowsAtCompileTime), " rows and ",
          Matrix::ColsAtCompileTime == Eigen::Dynamic ? std::string("any") : std::to_string(Matrix::ColsAtCompileTime), " columns, found shape ", tensor.sizes());
    if constexpr (!reads) {
        check(!(tensor.requires_grad() && at::GradMode::is_enabled()), code::data, "eigen_map: the tensor requires grad, and autograd does not see what Eigen writes; map tensor.detach(), or read with eigen_map<T const>");
        check(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, code::data, "eigen_map: elements of the tensor share memory, as after expand(); map a clone(), or read with eigen_map<T const>");
    }

    auto const down = row ? n : tensor.stride(0), across = tensor.dim() == 2 ? tensor.stride(1) : row ? tensor.stride(0) : 1;
    auto const inner = Matrix::IsRowMajor ? across : down, outer = Matrix::IsRowMajor ? down : across;
    auto const inner_size = Matrix::IsRowMajor ? columns : rows, outer_size = Matrix::IsRowMajor ? rows : columns;
    // Eigen's 0 stands for "nothing lies between". Where there is one element or none, no stride is ever taken.
    constexpr int64_t fixed_inner = Strides::InnerStrideAtCompileTime, fixed_outer = Strides::OuterStrideAtCompileTime;
    constexpr auto is = [](int64_t fixed, int64_t packed, int64_t found) { return fixed == Eigen::Dynamic || found == (fixed == 0 ? packed : fixed); };
    check(tensor.numel() == 0 || ((inner_size == 1 || is(fixed_inner, 1, inner)) && (outer_size == 1 || is(fixed_outer, inner_size * inner, outer))),
          code::data, "eigen_map: the map's strides are fixed, and the tensor has others: shape ", tensor.sizes(), ", strides ", tensor.strides(),
          "; map tensor.contiguous(), or leave the strides to run time");
    using Stride = Eigen::Stride<Strides::OuterStrideAtCompileTime, Strides::InnerStrideAtCompileTime>;
    Stride const strides(fixed_outer == Eigen::Dynamic ? outer : fixed_outer, fixed_inner == Eigen::Dynamic ? inner : fixed_inner);
    using Element = std::conditional_t<reads, Scalar const, Scalar>;
    using Viewed = std::conditional_t<reads, Matrix const, Matrix>;
    auto* const data = const_cast<Element*>(static_cast<Scalar const*>(reads ? tensor.const_data_ptr() : tensor.mutable_data_ptr()));
    return Eigen::Map<Viewed, Eigen::Unaligned, Stride>(data, rows, columns, strides);
}

/// The memory of an Eigen matrix, array, map or block as a tensor [rows, columns] ([n] for a vector type), without a copy and with
/// Eigen's strides: a column-major matrix gives a tensor whose columns lie together. Its memory must outlive the tensor. Error E_DATA
/// for a map with a stride below 0.
template <class M>
at::Tensor tensor_view(M&& matrix) {
    using Dense = std::remove_cvref_t<M>;
    constexpr bool dense = detail::eigen_dense<M>;
    static_assert(dense, "tensor_view: give it an Eigen matrix, array, map or block; an expression has no memory yet, so use tensor_of(expression)");
    if constexpr (dense) {
        constexpr bool memory = (Eigen::internal::traits<Dense>::Flags & Eigen::DirectAccessBit) != 0;
        constexpr bool writable = memory && (Eigen::internal::traits<Dense>::Flags & Eigen::LvalueBit) != 0 && !std::is_const_v<std::remove_reference_t<M>>;
        constexpr bool dies = !std::is_lvalue_reference_v<M> && std::derived_from<Dense, Eigen::PlainObjectBase<Dense>>;
        static_assert(memory, "tensor_view: an expression has no memory yet; use tensor_of(expression)");
        static_assert(!memory || writable || dies, "tensor_view: a tensor can be written and this matrix cannot; use tensor_of(matrix), which copies it");
        static_assert(!dies, "tensor_view: this matrix is gone at the end of the line; keep it in a variable, or use tensor_of(std::move(matrix)), which moves it into the tensor");
        if constexpr (writable && !dies) {
            check(matrix.innerStride() >= 0 && matrix.outerStride() >= 0, code::data,
                  "tensor_view: a tensor cannot run backwards through memory, and this map has a stride below 0; use tensor_of(matrix), which copies it");
            auto const options = at::TensorOptions(detail::dtype_of_eigen<typename Dense::Scalar>());
            if constexpr (Dense::IsVectorAtCompileTime) return at::from_blob(matrix.data(), {matrix.size()}, {matrix.innerStride()}, options);
            else return at::from_blob(matrix.data(), {matrix.rows(), matrix.cols()}, {matrix.rowStride(), matrix.colStride()}, options);
        }
    }
    return {};
}

/// A tensor that owns an Eigen matrix: one that is given up (`std::move`) is moved into it, anything else, such as an expression, is
/// evaluated once. Shape and strides as in `tensor_view`.
template <detail::eigen_dense M>
at::Tensor tensor_of(M&& matrix) {
    using Matrix = typename std::remove_cvref_t<M>::PlainObject;
    auto owned = std::make_shared<Matrix>(std::forward<M>(matrix));
    auto const view = tensor_view(*owned);
    return at::from_blob(view.mutable_data_ptr(), view.sizes(), view.strides(), [owned](void*) {}, view.options());
}

}  // namespace accelerate
