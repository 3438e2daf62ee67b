#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accelerate/data/mapped_file.hpp>
#include <bit>
#include <cstring>

namespace accelerate::data {

/// How a `TokenFile` is read.
struct token_file_options {
    int64_t context = 1024;       ///< tokens of a window
    int64_t bytes_per_token = 2;  ///< 2 or 4
    int64_t stride = 0;           ///< tokens from one window's start to the next one's; 0: context, every token is a target once
    int64_t header = 0;           ///< bytes before the first token (1024 in the files of llm.c)
};

/// Windows over a file of tokens as nanoGPT prepares it: unsigned little-endian integers, nothing else. The file is mapped, not
/// read in (see `MappedFile`); a batch is widened from there into its tensors, without a tensor for each sample.
///
///     data::Loader{data::TokenFile("train.bin", {.context = 1024}), {.batch_size = 12, .shuffle = true}}
class TokenFile {
    static_assert(std::endian::native == std::endian::little, "token files are little-endian, and so is every machine this library runs on");

public:
    /// `target` is `input` one token later; both int64 of `context` elements (in a batch [samples, context]).
    struct Window {
        at::Tensor input, target;
    };

    /// Errors: E_IO when the file cannot be mapped; E_DATA when it does not end with a whole token, or has not even one window;
    /// E_CONFIG for options that cannot be.
    explicit TokenFile(std::filesystem::path const& path, token_file_options o = {}) : file_(path), o_(o) {
        check(o.context >= 1 && o.stride >= 0 && o.header >= 0 && (o.bytes_per_token == 2 || o.bytes_per_token == 4), code::config,
              "data::TokenFile: context is ", o.context, ", bytes_per_token ", o.bytes_per_token, ", stride ", o.stride, ", header ", o.header,
              "; expected a positive context, 2 or 4 bytes per token, and nothing negative");
        if (o_.stride == 0) o_.stride = o_.context;
        auto const size = static_cast<int64_t>(file_.bytes().size());
        check(size >= o.header && (size - o.header) % o.bytes_per_token == 0, code::data, "data::TokenFile: ", path, " has ", size, " bytes; expected ",
              o.header, " of header and a multiple of ", o.bytes_per_token, "; is it cut off, or its token size another?");
        tokens_ = (size - o.header) / o.bytes_per_token;
        check(tokens_ > o.context, code::data, "data::TokenFile: ", path, " has ", tokens_, " tokens; a window needs one more than its context of ", o.context,
              "; use a longer file or a shorter context");
        windows_ = (tokens_ - 1 - o.context) / o_.stride + 1;
    }

    int64_t tokens() const { return tokens_; }
    size_t size() const { return static_cast<size_t>(windows_); }
    Window operator[](size_t i) const {
        auto const index = static_cast<int64_t>(i);
        return read({&index, 1}, {o_.context});
    }
    Window batch(std::span<int64_t const> indices) const { return read(indices, {static_cast<int64_t>(indices.size()), o_.context}); }

private:
    Window read(std::span<int64_t const> indices, std::initializer_list<int64_t> sizes) const {
        Window out{at::empty(sizes, at::TensorOptions(at::kLong)), at::empty(sizes, at::TensorOptions(at::kLong))};
        auto *input = out.input.mutable_data_ptr<int64_t>(), *target = out.target.mutable_data_ptr<int64_t>();
        for (auto i : indices) {
            check(i >= 0 && i < windows_, code::data, "data::TokenFile: window ", i, " of ", file_.path(), ", which has ", windows_);
            auto const* from = file_.bytes().data() + o_.header + i * o_.stride * o_.bytes_per_token;
            for (auto** to : {&input, &target}) {
                *to = o_.bytes_per_token == 2 ? widen<uint16_t>(from, *to) : widen<uint32_t>(from, *to);
                from += o_.bytes_per_token;
            }
        }
        return out;
    }

    template <class Token>
    int64_t* widen(std::byte const* from, int64_t* to) const {
        for (int64_t k = 0; k < o_.context; ++k, from += sizeof(Token)) {
            Token token;
            std::memcpy(&token, from, sizeof(Token));
            to[k] = token;
        }
        return to + o_.context;
    }

    MappedFile file_;
    token_file_options o_;
    int64_t tokens_ = 0, windows_ = 0;
};

}  // namespace accelerate::data
