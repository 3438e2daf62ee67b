// Views of what cannot be viewed. Run by tests/misuse.py.
// needs: Eigen/Core
#include <accelerate/eigen.hpp>

namespace acc = accelerate;

at::Tensor view() {
    Eigen::Matrix2f m = Eigen::Matrix2f::Identity();
#if defined(WRONG_eigen_temporary)  // tensor_view: this matrix is gone at the end of the line; keep it in a variable
    return acc::tensor_view(Eigen::Matrix2f(m * 2));
#elif defined(WRONG_eigen_moved)  // or use tensor_of(std::move(matrix)), which moves it into the tensor
    return acc::tensor_view(std::move(m));
#elif defined(WRONG_eigen_expression)  // tensor_view: an expression has no memory yet; use tensor_of(expression)
    return acc::tensor_view(m * 2);
#elif defined(WRONG_eigen_const)  // tensor_view: a tensor can be written and this matrix cannot; use tensor_of(matrix)
    return acc::tensor_view(std::as_const(m));
#elif defined(WRONG_eigen_number)  // tensor_view: give it an Eigen matrix, array, map or block
    return acc::tensor_view(3);
#elif defined(WRONG_eigen_scalar)  // this scalar type of Eigen has no dtype in LibTorch
    return acc::tensor_of(Eigen::Matrix<long double, 2, 2>::Zero());
#else
    return acc::tensor_of(acc::eigen_map<float>(acc::tensor_view(m)) * 2);
#endif
}
