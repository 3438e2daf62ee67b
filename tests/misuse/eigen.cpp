// Views of what cannot be viewed. Run by tests/misuse.py.
// needs: Eigen/Core
#include <accelerate/eigen.hpp>

namespace acc = accelerate;

at::Tensor view(Eigen::Matrix2f m) { return acc::tensor_of(acc::eigen_map<float>(acc::tensor_view(m)) * 2); }

#ifdef WRONG_eigen_temporary  // tensor_view: this matrix is gone at the end of the line; keep it in a variable
at::Tensor temporary(Eigen::Matrix2f m) { return acc::tensor_view(Eigen::Matrix2f(m * 2)); }
#endif
#ifdef WRONG_eigen_moved  // or use tensor_of(std::move(matrix)), which moves it into the tensor
at::Tensor moved(Eigen::Matrix3f m) { return acc::tensor_view(std::move(m)); }
#endif
#ifdef WRONG_eigen_expression  // tensor_view: an expression has no memory yet; use tensor_of(expression)
at::Tensor expression(Eigen::Matrix2f m) { return acc::tensor_view(m * 2); }
#endif
#ifdef WRONG_eigen_const  // tensor_view: a tensor can be written and this matrix cannot; use tensor_of(matrix)
at::Tensor constant(Eigen::Matrix2f m) { return acc::tensor_view(std::as_const(m)); }
#endif
#ifdef WRONG_eigen_number  // tensor_view: give it an Eigen matrix, array, map or block
at::Tensor number() { return acc::tensor_view(3); }
#endif
#ifdef WRONG_eigen_scalar  // this scalar type of Eigen has no dtype in LibTorch
at::Tensor scalar() { return acc::tensor_of(Eigen::Matrix<long double, 2, 2>::Zero()); }
#endif
