// Eigen views: memory is shared both ways, and what cannot be viewed is refused. Expected values are written by hand.
#include <torch/torch.h>

#include "support/catch.hpp"  // after LibTorch, which has a CHECK of its own

#include <accelerate/eigen.hpp>

namespace acc = accelerate;
using acc::eigen_map;
using acc::tensor_of;
using acc::tensor_view;

TEST_CASE("a tensor is an Eigen matrix of any strides", "[eigen]") {
    auto t = torch::arange(12, torch::kFloat).view({3, 4});
    auto const m = eigen_map<float>(t);
    CHECK((m.rows() == 3 && m.cols() == 4));
    CHECK((m(0, 3) == 3 && m(2, 1) == 9));
    auto transposed = eigen_map<float>(t.t());
    CHECK((transposed.rows() == 4 && transposed(3, 0) == 3 && transposed(1, 2) == 9));
    auto every_second = eigen_map<float>(t.slice(1, 0, 4, 2).slice(0, 1));
    CHECK((every_second.rows() == 2 && every_second.cols() == 2 && every_second(0, 1) == 6 && every_second(1, 0) == 8));
    every_second(1, 1) = -1;
    CHECK(t[2][2].item<float>() == -1);
    auto column = eigen_map<float>(t.select(1, 1));
    CHECK((column.rows() == 3 && column.cols() == 1 && column(2, 0) == 9));
    column *= 2;
    CHECK(t[1][1].item<float>() == 10);
    CHECK(eigen_map<double>(torch::zeros({0, 5}, torch::kDouble)).size() == 0);
    CHECK(eigen_map<int64_t>(torch::full({2, 2}, 7, torch::kLong)).sum() == 28);
    CHECK(eigen_map<std::complex<double>>(torch::full({2}, c10::complex<double>(1, 2), torch::kComplexDouble))(1, 0) == std::complex<double>(1, 2));
}

TEST_CASE("a tensor is an Eigen type of fixed sizes", "[eigen]") {
    auto t = torch::arange(9, torch::kDouble).view({3, 3});
    auto const m = eigen_map<Eigen::Matrix3d>(t);  // column-major: the strides make up for it
    CHECK((m(0, 2) == 2 && m(2, 0) == 6));
    CHECK(m.trace() == 12);
    auto v = eigen_map<Eigen::VectorXd>(t.select(1, 2));
    CHECK((v.size() == 3 && v(0) == 2 && v(2) == 8));
    auto r = eigen_map<Eigen::RowVectorXd>(t.select(1, 2));
    CHECK((r.cols() == 3 && r(1) == 5));
    v(1) = 50;
    CHECK(r(1) == 50);
    using ThreeRows = Eigen::Array<double, 3, Eigen::Dynamic>;
    CHECK(eigen_map<ThreeRows>(t).row(1).maxCoeff() == 50);
    CHECK_THROWS_WITH(eigen_map<Eigen::Matrix2d>(t), contains("E_DATA") && contains("2 rows and 2 columns") && contains("[3, 3]"));
    CHECK_THROWS_WITH(eigen_map<Eigen::Vector4d>(t.select(1, 0)), contains("4 rows"));
}

TEST_CASE("an expression over maps is LibTorch's", "[eigen]") {
    auto const a = torch::arange(6, torch::kDouble).view({2, 3}), b = torch::arange(12, torch::kDouble).view({3, 4}) - 5, c = torch::empty({4, 2}, torch::kDouble);
    eigen_map<double>(c.t()) = eigen_map<double>(a) * eigen_map<double>(b);  // small whole numbers: exact in both
    CHECK(torch::equal(c.t(), torch::matmul(a, b)));
}

TEST_CASE("strides that are fixed when compiling are checked", "[eigen]") {
    auto const t = torch::arange(12, torch::kFloat).view({3, 4});
    auto const m = eigen_map<float, Eigen::OuterStride<>>(t);
    CHECK((m(2, 1) == 9 && m.outerStride() == 4 && m.innerStride() == 1));
    CHECK((eigen_map<float, Eigen::OuterStride<>>(t.slice(1, 1, 3))(2, 0) == 9));
    using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    auto const twice = [](Eigen::Ref<Rows> rows) { rows *= 2; };  // takes no map with an inner stride
    twice(eigen_map<Rows, Eigen::OuterStride<>>(t));
    CHECK(t[2][1].item<float>() == 18);
    CHECK((eigen_map<Eigen::MatrixXf, Eigen::OuterStride<>>(t.t())(1, 2) == 18));
    CHECK((eigen_map<float, Eigen::Stride<0, 0>>(t)(1, 0) == 8));
    CHECK((eigen_map<Eigen::VectorXf, Eigen::Stride<0, 0>>(t.select(0, 1))(3) == 14));
    CHECK((eigen_map<Eigen::VectorXf, Eigen::InnerStride<4>>(t.select(1, 1))(2) == 18));
    CHECK((eigen_map<float, Eigen::Stride<0, 0>>(t.slice(1, 1, 2).slice(0, 1, 2))(0, 0) == 10));  // one element: its strides are never taken
    CHECK((eigen_map<float, Eigen::OuterStride<>>(torch::zeros({0, 4}).t()).size() == 0));
    CHECK_THROWS_WITH((eigen_map<float, Eigen::OuterStride<>>(t.t())), contains("E_DATA") && contains("strides [1, 4]") && contains("contiguous"));
    CHECK_THROWS_WITH((eigen_map<float, Eigen::Stride<0, 0>>(t.slice(1, 1, 3))), contains("strides [4, 1]"));
    CHECK_THROWS_WITH((eigen_map<Eigen::VectorXf, Eigen::Stride<0, 0>>(t.select(1, 1))), contains("strides [4]"));
    CHECK_THROWS_WITH((eigen_map<Eigen::VectorXf, Eigen::InnerStride<2>>(t.select(1, 1))), contains("strides [4]"));
}

TEST_CASE("what cannot be mapped is refused", "[eigen]") {
    auto const w = torch::ones({2, 2}, torch::requires_grad());
    CHECK_THROWS_WITH(eigen_map<float>(torch::Tensor()), contains("undefined"));
    CHECK_THROWS_WITH(eigen_map<double>(torch::ones({2})), contains("expected Double") && contains("found Float"));
    CHECK_THROWS_WITH(eigen_map<float>(torch::ones({2, 2, 2})), contains("[2, 2, 2]"));
    CHECK_THROWS_WITH(eigen_map<float>(torch::ones({}).squeeze()), contains("1 or 2 dimensions"));
    CHECK_THROWS_WITH(eigen_map<float>(torch::ones({2, 2}, torch::kMeta)), contains("meta"));
    CHECK_THROWS_WITH(eigen_map<float>(torch::ones({2, 2}).to_sparse()), contains("Sparse"));
    CHECK_THROWS_WITH(eigen_map<float>(w), contains("requires grad") && contains("detach"));
    CHECK_THROWS_WITH(eigen_map<float>(torch::ones({1}).expand({4})), contains("share memory"));
    CHECK_THROWS_WITH(eigen_map<std::complex<float>>(torch::ones({2}, torch::kComplexFloat).conj()), contains("conj"));
    auto const freed = torch::ones({3});
    freed.storage().unsafeGetStorageImpl()->set_data_ptr_noswap(at::DataPtr(nullptr, torch::kCPU));  // as Fsdp does
    CHECK_THROWS_WITH(eigen_map<float>(freed), contains("no memory"));
    CHECK_THROWS_WITH(eigen_map<float const>(freed), contains("no memory"));
    float memory[] = {1, 2, 3};
    Eigen::Map<Eigen::VectorXf, Eigen::Unaligned, Eigen::InnerStride<>> backwards(memory + 2, 3, Eigen::InnerStride<>(-1));
    CHECK_THROWS_WITH(tensor_view(backwards), contains("E_DATA") && contains("tensor_of"));
    CHECK(torch::equal(tensor_of(backwards), torch::tensor({3.0F, 2.0F, 1.0F})));
    // To read, both will do.
    CHECK(eigen_map<float const>(w).sum() == 4);
    CHECK(eigen_map<Eigen::VectorXf const>(torch::ones({1}).expand({4})).sum() == 4);
    CHECK(eigen_map<float>(w.detach()).sum() == 4);
}

TEST_CASE("an Eigen matrix is a tensor", "[eigen]") {
    Eigen::MatrixXd m(2, 3);
    m << 1, 2, 3, 4, 5, 6;
    auto t = tensor_view(m);
    CHECK(t.sizes() == at::IntArrayRef({2, 3}));
    CHECK(t.strides() == at::IntArrayRef({1, 2}));  // column-major
    CHECK(torch::equal(t, torch::tensor({{1.0, 2.0, 3.0}, {4.0, 5.0, 6.0}}, torch::kDouble)));
    CHECK(t.data_ptr() == m.data());
    t[1][2] = 60;
    CHECK(m(1, 2) == 60);
    m(0, 0) = -1;
    CHECK(t[0][0].item<double>() == -1);

    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = Eigen::MatrixXf::Constant(2, 2, 3);
    CHECK(tensor_view(rows).is_contiguous());
    auto const block = tensor_view(m.block(0, 1, 2, 2));  // a block that dies, over memory that does not
    CHECK(torch::equal(block, torch::tensor({{2.0, 3.0}, {5.0, 60.0}}, torch::kDouble)));
    CHECK(tensor_view(m.row(1)).sizes() == at::IntArrayRef({3}));
    CHECK(tensor_view(m.row(1)).stride(0) == 2);
    Eigen::Vector3i v(7, 8, 9);
    CHECK(torch::equal(tensor_view(v), torch::tensor({7, 8, 9}, torch::kInt)));
    Eigen::ArrayXXf none(0, 3);
    CHECK(tensor_view(none).sizes() == at::IntArrayRef({0, 3}));
    std::vector<float> memory{1, 2, 3, 4};
    Eigen::Map<Eigen::Matrix2f> map(memory.data());
    CHECK(tensor_view(map).data_ptr() == memory.data());
    CHECK(eigen_map<double>(t).data() == m.data());  // there and back
}

TEST_CASE("a tensor can own an Eigen matrix", "[eigen]") {
    Eigen::MatrixXf m = Eigen::MatrixXf::Constant(3, 2, 4);
    auto* const data = m.data();
    auto t = tensor_of(std::move(m));
    CHECK(t.data_ptr() == data);  // moved, not copied
    CHECK(t.sum().item<float>() == 24);
    auto const sum = tensor_of(Eigen::Vector2d(1, 2) + Eigen::Vector2d(3, 4));
    CHECK(torch::equal(sum, torch::tensor({4.0, 6.0}, torch::kDouble)));
    Eigen::Matrix3d const fixed = Eigen::Matrix3d::Identity();
    auto const copy = tensor_of(fixed);
    CHECK(torch::equal(copy, torch::eye(3, torch::kDouble)));
    CHECK(copy.data_ptr() != fixed.data());
}
