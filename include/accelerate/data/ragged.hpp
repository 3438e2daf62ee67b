#pragma once

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <vector>

namespace accelerate::data {

namespace detail {

/// Lengths in dimension 0. Error E_DATA when the other dimensions or dtypes differ.
inline std::vector<int64_t> ragged_lengths(std::vector<at::Tensor> const& items, char const* who) {
    std::vector<int64_t> lengths;
    for (size_t i = 0; i < items.size(); ++i) {
        auto const& t = items[i];
        check(t.defined() && t.dim() > 0, code::data, who, ": item ", i, " of the batch is no sequence; it needs a dimension 0");
        check(t.sizes().slice(1) == items[0].sizes().slice(1) && t.scalar_type() == items[0].scalar_type(), code::data, who, ": item ", i,
              " of the batch has shape ", t.sizes(), " and dtype ", t.scalar_type(),
              ", item 0 has ", items[0].sizes(), " and ", items[0].scalar_type(), "; all but dimension 0 must agree");
        lengths.push_back(t.size(0));
    }
    return lengths;
}

}  // namespace detail

/// Sequences of different length side by side, filled up to the longest.
struct PaddedBatch {
    at::Tensor values;   ///< [n, longest, ...]
    at::Tensor mask;     ///< bool [n, longest]: true where a value is real
    at::Tensor lengths;  ///< int64 [n]
};

/// Sequences one behind the other, as attention kernels for sequences of different length take them.
struct PackedBatch {
    at::Tensor values;       ///< [sum of lengths, ...]
    at::Tensor cu_seqlens;   ///< int32 [n + 1]: where each begins, and the end
    int64_t max_length = 0;  ///< of the longest
};

/// Pads tensors [length, ...] at their end with `value` (Python's `pad_sequence` with batch_first), to a multiple of `multiple_of`.
/// Error E_DATA when they differ in more than their length.
inline PaddedBatch pad(std::vector<at::Tensor> const& items, double value = 0, int64_t multiple_of = 1) {
    auto const lengths = detail::ragged_lengths(items, "data::pad");
    auto longest = *std::max_element(lengths.begin(), lengths.end());
    longest = (longest + multiple_of - 1) / multiple_of * multiple_of;
    auto sizes = items[0].sizes().vec();
    sizes[0] = longest;
    sizes.insert(sizes.begin(), static_cast<int64_t>(items.size()));
    auto const values = at::full(sizes, value, items[0].options());
    for (size_t i = 0; i < items.size(); ++i) values.select(0, static_cast<int64_t>(i)).narrow(0, 0, lengths[i]).copy_(items[i]);
    auto const counts = at::tensor(lengths, at::TensorOptions(at::kLong));
    return {values, at::arange(longest, at::TensorOptions(at::kLong)).lt(counts.unsqueeze(1)), counts};
}

/// Packs tensors [length, ...] without padding. Error E_DATA when they differ in more than their length.
inline PackedBatch pack(std::vector<at::Tensor> const& items) {
    auto const lengths = detail::ragged_lengths(items, "data::pack");
    std::vector<int> starts{0};
    for (auto n : lengths) starts.push_back(starts.back() + static_cast<int>(n));
    return {at::cat(items), at::tensor(starts, at::TensorOptions(at::kInt)), *std::max_element(lengths.begin(), lengths.end())};
}

/// A member of a sample, or a whole sample, whose batch is a `PaddedBatch`: [length, ...].
struct PaddedSequence {
    at::Tensor values;

    static PaddedBatch collate(std::vector<PaddedSequence>&& items) { return pad(values_of(items)); }
    template <class Sequence>
    static std::vector<at::Tensor> values_of(std::vector<Sequence> const& items) {
        std::vector<at::Tensor> out;
        for (auto const& item : items) out.push_back(item.values);
        return out;
    }
};

/// The same with a `PackedBatch`.
struct PackedSequence {
    at::Tensor values;

    static PackedBatch collate(std::vector<PackedSequence>&& items) { return pack(PaddedSequence::values_of(items)); }
};

}  // namespace accelerate::data
