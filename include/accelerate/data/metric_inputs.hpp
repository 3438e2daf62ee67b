#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>

#include <accelerate/core/error.hpp>
#include <concepts>
#include <initializer_list>
#include <optional>
#include <vector>

namespace accelerate::metrics {

/// Which samples of a batch count: all (`{}` or an undefined tensor), the first so many (an integer), or those where a bool tensor
/// is true. The others are padding: whatever they hold, also NaN, has no influence.
class Valid {
public:
    Valid() = default;
    Valid(at::Tensor const& mask) : mask_(mask) {}
    template <std::integral Count>
        requires(!std::same_as<Count, bool>)
    Valid(Count count) : count_(static_cast<int64_t>(count)) {}

    /// A bool tensor of `sizes`, [n] or [n, t]; a mask [n] then counts for all of a sample. Error E_DATA, naming `who`, for a mask of
    /// another dtype or shape, or a count that is not from 0 to n.
    at::Tensor mask(at::IntArrayRef sizes, std::string_view who) const {
        auto const n = sizes[0];
        auto rows = mask_.defined() ? mask_.detach() : count_ ? at::arange(n).lt(*count_) : at::ones({n}, at::kBool);
        check(!count_ || (*count_ >= 0 && *count_ <= n), code::data, who, ": ", count_.value_or(0), " valid samples in a batch of ", n,
              "; give how many of them are real");
        check(rows.scalar_type() == at::kBool, code::data, who, ": `valid` must be a bool tensor, it is ", rows.scalar_type(),
              "; compare, as in labels.ne(-100); weights are for WeightedMean");
        if (rows.sizes() == sizes) return rows;
        check(rows.sizes() == sizes.slice(0, 1), code::data, who, ": `valid` has shape ", rows.sizes(), ", the values have ", sizes,
              "; it needs one element for each value or sample");
        return rows.unsqueeze(1).expand(sizes);
    }

private:
    at::Tensor mask_;
    std::optional<int64_t> count_;
};

namespace detail {

/// What stands for a whole batch where a tensor with one element for each sample belongs.
template <class T>
concept number = std::convertible_to<T, double> || std::same_as<T, at::Scalar>;

/// Real numbers with dimension 0 for the samples, without their graph. Error E_DATA: `instead` for a 0-dim tensor, else found and expected.
inline at::Tensor samples(at::Tensor const& t, int64_t most_dims, std::string_view who, std::string_view instead) {
    check(t.defined(), code::data, who, ": an undefined tensor; give one that was computed");
    check(t.dim() > 0, code::data, who, ": ", instead);
    check(t.dim() <= most_dims, code::data, who, ": expected shape ", most_dims == 1 ? "[n]" : "[n] or [n, t]", ", found ", t.sizes(),
          "; bring each sample to ", most_dims == 1 ? "one value first, as in values.flatten(1).mean(1)" : "one row first, as in losses.flatten(1)");
    check(!c10::isComplexType(t.scalar_type()), code::data, who, ": expected real numbers, found ", t.scalar_type(), "; take abs() or real()");
    return t.detach();
}

/// Makes each tensor a contiguous one of the CPU. Those of a device, the same for all, travel packed in one copy, so that it is waited
/// for once. No arithmetic is done there: it need not know fp64.
inline void to_cpu(std::initializer_list<at::Tensor*> tensors) {
    std::vector<at::Tensor*> away;
    std::vector<at::Tensor> bytes;
    for (auto* t : tensors) {
        *t = t->detach().resolve_neg().contiguous();
        if (t->is_cpu()) continue;
        away.push_back(t);
        bytes.push_back(t->flatten().view(at::kByte));
    }
    if (away.empty()) return;
    auto const packed = at::cat(bytes).to(at::kCPU);
    int64_t begin = 0;
    for (auto* t : away) {
        auto const length = static_cast<int64_t>(t->nbytes());
        *t = packed.narrow(0, begin, length).clone().view(t->scalar_type()).view(t->sizes());
        begin += length;
    }
}

/// Refuses what is not predictions [n, classes] or [n] with labels [n].
inline void check_classes(at::Tensor const& predictions, at::Tensor const& labels, std::string_view who, std::string_view instead) {
    check(predictions.defined() && labels.defined(), code::data, who, ": an undefined tensor; give predictions and labels");
    check(predictions.dim() > 0 && labels.dim() > 0, code::data, who, ": ", instead);
    check(predictions.dim() <= 2 && labels.dim() == 1 && predictions.size(0) == labels.size(0), code::data, who,
          ": expected predictions [n, classes] (scores) or [n] (class numbers) and labels [n], found ", predictions.sizes(), " and ", labels.sizes(),
          "; other dimensions belong in the first, as in scores.flatten(0, 1), labels.flatten()");
    auto const integers = c10::isIntegralType(labels.scalar_type(), true) && (predictions.dim() == 2 || c10::isIntegralType(predictions.scalar_type(), true));
    check(integers, code::data, who, ": class numbers must be integers, found predictions of ", predictions.scalar_type(), " and labels of ",
          labels.scalar_type(), "; scores need shape [n, classes], a single score must be compared first, as in score.gt(0.5)");
}

/// Refuses class numbers of counted samples that are no class. Both are contiguous on the CPU, int64 and bool.
inline void check_range(at::Tensor const& numbers, at::Tensor const& counted, int64_t classes, std::string_view who, std::string_view what) {
    auto const* const number = numbers.const_data_ptr<int64_t>();
    auto const* const counts = counted.const_data_ptr<bool>();
    for (int64_t i = 0; i < numbers.numel(); ++i)
        check(!counts[i] || (number[i] >= 0 && number[i] < classes), code::data, who, ": ", what, " ", number[i], " of sample ", i, ", but there are ", classes,
              " classes, numbered from 0; number them so, or leave the sample out by `valid`");
}

}  // namespace detail
}  // namespace accelerate::metrics
