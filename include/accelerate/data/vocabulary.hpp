#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accelerate/core/error.hpp>
#include <array>
#include <cmath>
#include <string>
#include <string_view>

namespace accelerate::data {

/// The bytes that occur in a text, numbered in their order: a character-level vocabulary of at most 256 entries. One further
/// number, the last, stands for every byte that did not occur (held-out text may have some); it is written as '?'.
class Vocabulary {
public:
    explicit Vocabulary(std::string_view text) {
        std::array<bool, 256> seen{};
        for (auto c : text) seen[byte(c)] = true;
        for (size_t b = 0; b < seen.size(); ++b)
            if (seen[b]) symbols_ += static_cast<char>(b);
        ids_.fill(static_cast<uint8_t>(std::min<size_t>(symbols_.size(), 255)));
        for (size_t i = 0; i < symbols_.size(); ++i) ids_[byte(symbols_[i])] = static_cast<uint8_t>(i);
    }

    /// How many numbers there are.
    int64_t size() const { return std::min<int64_t>(256, static_cast<int64_t>(symbols_.size()) + 1); }
    /// The bytes by number. `Vocabulary(v.symbols())` equals v: keep this string beside a model.
    std::string const& symbols() const { return symbols_; }

    uint8_t id(char c) const { return ids_[byte(c)]; }
    /// Error E_DATA when there is no such number.
    char symbol(int64_t id) const {
        check(id >= 0 && id < size(), code::data, "data::Vocabulary: number ", id, "; there are ", size());
        return static_cast<size_t>(id) < symbols_.size() ? symbols_[static_cast<size_t>(id)] : '?';
    }

    /// The numbers of a text's bytes: int64, 1-D.
    at::Tensor encode(std::string_view text) const {
        auto out = at::empty({static_cast<int64_t>(text.size())}, at::TensorOptions(at::kLong));
        auto* to = out.mutable_data_ptr<int64_t>();
        for (auto c : text) *to++ = id(c);
        return out;
    }
    /// The text of an integer tensor of numbers.
    std::string decode(at::Tensor const& numbers) const {
        auto const flat = numbers.to(at::kCPU, at::kLong).contiguous();
        std::string text;
        for (int64_t i = 0; i < flat.numel(); ++i) text += symbol(flat.const_data_ptr<int64_t>()[i]);
        return text;
    }

private:
    static size_t byte(char c) { return static_cast<unsigned char>(c); }

    std::string symbols_;
    std::array<uint8_t, 256> ids_;
};

/// Entropy of a text's byte frequencies in nats: the loss of a model that knows only how frequent each byte is.
inline double unigram_entropy(std::string_view text) {
    std::array<int64_t, 256> count{};
    for (auto c : text) ++count[static_cast<unsigned char>(c)];
    double entropy = 0;
    for (auto c : count) {
        auto const p = static_cast<double>(c) / static_cast<double>(text.size());
        if (c > 0) entropy -= p * std::log(p);
    }
    return entropy;
}

}  // namespace accelerate::data
