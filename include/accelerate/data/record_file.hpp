#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <accelerate/data/mapped_file.hpp>
#include <cstring>
#include <vector>

namespace accelerate::data {

/// How a `RecordFile` is read.
struct record_options {
    std::vector<int64_t> shape = {};    ///< of one record; none: a single number
    at::ScalarType dtype = at::kFloat;  ///< of its elements, as they lie in memory
    int64_t header = 0;                 ///< bytes before the first record
};

/// A file of equal records without anything between them, as NumPy's `tofile` writes an array: record i is a tensor of `shape` and
/// `dtype`. The file is mapped, not read in (see `MappedFile`); a batch is copied from there into one new tensor. Records with a
/// label (CIFAR's 1 + 3072 bytes) are read as at::kByte and taken apart by `data::map`.
///
///     data::RecordFile images("images.bin", {.shape = {3, 32, 32}, .dtype = at::kByte});
class RecordFile {
public:
    /// Errors: E_IO when the file cannot be mapped; E_DATA when it does not end with a whole record; E_CONFIG for a record that
    /// cannot be, and for bool (any byte but 0 and 1 would be undefined behaviour: read at::kByte).
    explicit RecordFile(std::filesystem::path const& path, record_options o = {}) : file_(path), o_(std::move(o)) {
        bool const plain = o_.dtype < at::ScalarType::NumOptions && o_.dtype != at::ScalarType::Undefined && o_.dtype != at::kBool && !at::isQIntType(o_.dtype);
        check(plain, code::config, "data::RecordFile: dtype ", o_.dtype, "; expected a dtype of plain numbers (for bool read at::kByte)");
        bytes_ = static_cast<int64_t>(at::elementSize(o_.dtype));
        for (auto n : o_.shape)
            check(n >= 1 && !__builtin_mul_overflow(bytes_, n, &bytes_), code::config, "data::RecordFile: shape ", at::IntArrayRef(o_.shape),
                  "; expected positive sizes, and a record of less than 2^63 bytes");
        check(o_.header >= 0, code::config, "data::RecordFile: header is ", o_.header, "; it must not be negative");
        auto const size = static_cast<int64_t>(file_.bytes().size());
        check(size >= o_.header && (size - o_.header) % bytes_ == 0, code::data, "data::RecordFile: ", path, " has ", size, " bytes; expected ", o_.header,
              " of header and a multiple of ", bytes_, ", the bytes of a record; is it cut off, or shape or dtype another?");
        records_ = (size - o_.header) / bytes_;
    }

    size_t size() const { return static_cast<size_t>(records_); }
    at::Tensor operator[](size_t i) const {
        auto const index = static_cast<int64_t>(i);
        return read({&index, 1}, o_.shape);
    }
    at::Tensor batch(std::span<int64_t const> indices) const {
        std::vector<int64_t> sizes{static_cast<int64_t>(indices.size())};
        sizes.insert(sizes.end(), o_.shape.begin(), o_.shape.end());
        return read(indices, sizes);
    }

private:
    at::Tensor read(std::span<int64_t const> indices, std::vector<int64_t> const& sizes) const {
        constexpr int64_t worth_asking = 1 << 17;  // below, asking costs as much as copying what is in memory already
        for (auto i : indices) {
            check(i >= 0 && i < records_, code::data, "data::RecordFile: record ", i, " of ", file_.path(), ", which has ", records_);
            if (bytes_ >= worth_asking) file_.will_need(o_.header + i * bytes_, bytes_);
        }
        auto out = at::empty(sizes, at::TensorOptions(o_.dtype));
        auto* to = static_cast<std::byte*>(out.mutable_data_ptr());
        for (auto i : indices) {
            std::memcpy(to, file_.bytes().data() + o_.header + i * bytes_, static_cast<size_t>(bytes_));
            to += bytes_;
        }
        return out;
    }

    MappedFile file_;
    record_options o_;
    int64_t bytes_ = 0, records_ = 0;
};

}  // namespace accelerate::data
