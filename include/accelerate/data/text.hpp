#pragma once

#include <accelerate/data/vocabulary.hpp>
#include <algorithm>
#include <span>
#include <vector>

namespace accelerate::data {

/// Consecutive windows over a text, one token a byte: what a character-level language model trains on. A token takes one byte of
/// memory; batches are written as int64 without a tensor for each sample.
class TextWindows {
public:
    /// `target` is `input` one token later; both int64 of `context` elements (in a batch [samples, context]).
    struct Window {
        at::Tensor input, target;
    };

    /// With a `limit`, at most so many windows, spread evenly over the text. Error E_DATA when the text has not even one.
    TextWindows(Vocabulary const& vocabulary, std::string_view text, int64_t context, int64_t limit = 0) : context_(context), tokens_(text.size()) {
        check(context >= 1 && limit >= 0, code::config, "data::TextWindows: context is ", context, " and limit ", limit,
              "; the context must be positive, the limit not negative");
        std::transform(text.begin(), text.end(), tokens_.begin(), [&](char c) { return vocabulary.id(c); });
        windows_ = (static_cast<int64_t>(text.size()) - 1) / context;
        check(windows_ >= 1, code::data, "data::TextWindows: the text has ", text.size(), " bytes, one window needs ", context + 1,
              "; use more text or a shorter context");
        if (limit > 0 && windows_ > limit) {
            every_ = windows_ / limit;
            windows_ = limit;
        }
    }

    size_t size() const { return static_cast<size_t>(windows_); }
    Window operator[](size_t i) const {
        auto const index = static_cast<int64_t>(i);
        auto const one = batch({&index, 1});
        return {one.input[0], one.target[0]};
    }
    Window batch(std::span<int64_t const> indices) const { return {rows(indices, 0), rows(indices, 1)}; }

private:
    at::Tensor rows(std::span<int64_t const> indices, int64_t shift) const {
        auto out = at::empty({static_cast<int64_t>(indices.size()), context_}, at::TensorOptions(at::kLong));
        auto* to = out.mutable_data_ptr<int64_t>();
        for (auto i : indices) to = std::copy_n(tokens_.data() + i * every_ * context_ + shift, context_, to);
        return out;
    }

    int64_t context_, windows_ = 0, every_ = 1;
    std::vector<uint8_t> tokens_;
};

}  // namespace accelerate::data
