#pragma once

#include <ATen/ops/empty.h>

#include <accelerate/comm/communicator.hpp>
#include <accelerate/data/metric_inputs.hpp>
#include <algorithm>

namespace accelerate::metrics {

/// How often a sample of class i was predicted to be of class j, over all samples that all ranks have seen. Takes 8 * classes^2 bytes.
///   auto const matrix = confusion.compute(accelerator.comm());
///   auto const recall = metrics::ConfusionMatrix::recall(matrix);  // of each class
class ConfusionMatrix {
public:
    /// Error E_CONFIG for a number that is not from 1 to 1,000,000.
    explicit ConfusionMatrix(int64_t classes) : classes_(classes) {
        check(classes >= 1 && classes <= 1'000'000, code::config, who, ": ", classes, " classes; give how many there are, 1 to 1000000");
        reset();
    }

    /// `predictions`: scores [n, classes] (the class with the highest is predicted; of equal ones the lowest; a NaN is the highest) or
    /// class numbers [n]; otherwise as for `Accuracy`. Error E_DATA also for a prediction that is no class; nothing is added then.
    void update(at::Tensor const& predictions, at::Tensor const& labels, Valid const& valid = {}) {
        detail::check_classes(predictions, labels, who, instead);
        check(predictions.dim() == 1 || predictions.size(1) == classes_, code::data, who, ": scores of shape ", predictions.sizes(), " for ", classes_,
              " classes; give scores [n, ", classes_, "]");
        auto said = predictions.dim() == 2 ? predictions.detach().argmax(1) : predictions, right = labels, counted = valid.mask(labels.sizes(), who);
        detail::to_cpu({&said, &right, &counted});
        said = said.to(at::kLong), right = right.to(at::kLong);
        detail::check_range(right, counted, classes_, who, "label");
        detail::check_range(said, counted, classes_, who, "prediction");
        auto const *const column = said.const_data_ptr<int64_t>(), *const row = right.const_data_ptr<int64_t>();
        auto const* const counts = counted.const_data_ptr<bool>();
        for (int64_t i = 0; i < right.numel(); ++i)
            if (counts[i]) ++counts_[static_cast<size_t>(row[i] * classes_ + column[i])];
    }
    /// Numbers do not compile.
    template <detail::number Number, class... Rest>
    void update(Number const&, Rest const&...) {
        static_assert(!detail::number<Number>, "metrics::ConfusionMatrix: give the prediction and the label of each sample, as tensors, not single numbers");
    }

    /// int64 [classes, classes], rows are true classes, of what this rank has seen. Error E_DATA when that was nothing.
    at::Tensor compute() const { return checked(counts()); }
    /// Of what all ranks have seen, on every rank. Collective: one all_reduce of the matrix. Error E_DATA, on every rank, when that was nothing.
    template <comm::communicator Communicator>
    at::Tensor compute(Communicator const& c) const {
        auto const all = counts();
        c.all_reduce(all, comm::Reduction::Sum);
        return checked(all);
    }
    /// As if nothing had been seen.
    void reset() { counts_.assign(static_cast<size_t>(classes_ * classes_), 0); }

    /// Of a matrix that `compute` gave, for each class, fp64 [classes]: the share of predictions of the class that are right; of its
    /// samples that are found; and the harmonic mean of both. 0 where a class has none, as in scikit-learn.
    static at::Tensor precision(at::Tensor const& matrix) { return share(matrix, matrix.sum(0)); }
    static at::Tensor recall(at::Tensor const& matrix) { return share(matrix, matrix.sum(1)); }
    static at::Tensor f1(at::Tensor const& matrix) { return share(matrix.mul(2), matrix.sum(0).add(matrix.sum(1))); }
    /// The share of samples that are on the diagonal. Error E_DATA for a matrix without samples.
    static double accuracy(at::Tensor const& matrix) { return matrix.diagonal().sum().item<double>() / checked(matrix).sum().item<double>(); }

private:
    static at::Tensor share(at::Tensor const& matrix, at::Tensor const& total) { return matrix.diagonal().to(at::kDouble).div(total.clamp_min(1)); }

    static at::Tensor const& checked(at::Tensor const& matrix) {
        check(matrix.sum().item<int64_t>() > 0, code::data, who, ".compute: no sample was counted; call update first, and look whether `valid` leaves any");
        return matrix;
    }
    at::Tensor counts() const {
        auto matrix = at::empty({classes_, classes_}, at::TensorOptions(at::kLong));
        std::copy(counts_.begin(), counts_.end(), matrix.mutable_data_ptr<int64_t>());
        return matrix;
    }

    static constexpr std::string_view who = "metrics::ConfusionMatrix";
    static constexpr std::string_view instead = "give the prediction and the label of each sample, as tensors, not single numbers";
    int64_t classes_;
    std::vector<int64_t> counts_;
};

}  // namespace accelerate::metrics
