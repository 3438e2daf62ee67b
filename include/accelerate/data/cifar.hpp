#pragma once
// Outside of the umbrella: for who has these files.

#include <accelerate/data/labelled_image.hpp>
#include <accelerate/data/mapped_file.hpp>
#include <algorithm>
#include <concepts>

namespace accelerate::data {

namespace detail {

/// Records of `label_bytes` labels and 3 x 32 x 32 pixels, of one or several files.
class CifarFiles {
public:
    CifarFiles(char const* name, std::vector<std::filesystem::path> const& files, int64_t label_bytes, int64_t label_at, int64_t classes)
        : name_(name), bytes_(label_bytes + pixels), label_bytes_(label_bytes), label_at_(label_at), classes_(classes) {
        check(!files.empty(), code::config, name_, ": no files; name at least one, such as data_batch_1.bin");
        for (auto const& path : files) {
            auto const size = static_cast<int64_t>(files_.emplace_back(path).bytes().size());
            check(size > 0 && size % bytes_ == 0, code::data, name_, ": ", path, " has ", size, " bytes; expected a positive multiple of ", bytes_,
                  ", the bytes of a record (", label_bytes, " of labels and ", pixels, " of pixels); is it cut off, packed, or not the binary version?");
            ends_.push_back((ends_.empty() ? 0 : ends_.back()) + size / bytes_);
        }
    }

    size_t size() const { return static_cast<size_t>(ends_.back()); }
    LabelledImage operator[](size_t i) const {
        auto const index = static_cast<int64_t>(i);
        return only(batch({&index, 1}));
    }
    LabelledImage::batch batch(std::span<int64_t const> indices) const {
        return read_images(indices, {3, 32, 32}, [this](int64_t i) {
            check(i >= 0 && i < ends_.back(), code::data, name_, ": image ", i, " of ", ends_.back());
            auto const k = static_cast<size_t>(std::ranges::upper_bound(ends_, i) - ends_.begin());
            auto const record = i - (k == 0 ? 0 : ends_[k - 1]);
            auto const* from = files_[k].bytes().data() + record * bytes_;
            auto const label = std::to_integer<int64_t>(from[label_at_]);
            check(label < classes_, code::data, name_, ": ", files_[k].path(), ", record ", record, " (byte ", record * bytes_ + label_at_, "): its label is ",
                  label, "; expected less than ", classes_, "; is it a file of another data set?");
            return RawImage{from + label_bytes_, label};
        });
    }

private:
    static constexpr int64_t pixels = 3 * 32 * 32;
    char const* name_;
    std::vector<MappedFile> files_;
    std::vector<int64_t> ends_;  ///< of each file, in the records of all
    int64_t bytes_, label_bytes_, label_at_, classes_;
};

}  // namespace detail

/// CIFAR-10 in its binary version: the images of those files one after another, each float [3, 32, 32] in 0 .. 1. The files are
/// mapped, not read in (see `MappedFile`); a batch is converted from there into one new tensor.
///
///     data::Loader{data::Cifar10({"data_batch_1.bin", "data_batch_2.bin"}), {.batch_size = 64, .shuffle = true}}
class Cifar10 : public detail::CifarFiles {
public:
    /// Errors: E_IO when a file cannot be mapped; E_DATA naming one that has not a whole number of records or is empty; E_CONFIG
    /// without files. Reading an image whose label is none is E_DATA.
    explicit Cifar10(std::vector<std::filesystem::path> const& files) : CifarFiles("data::Cifar10", files, 1, 0, 10) {}
    template <std::convertible_to<std::filesystem::path> Path>
    explicit Cifar10(Path const& file) : Cifar10(std::vector<std::filesystem::path>{file}) {}
};

/// Which of the two labels `Cifar100` gives.
struct cifar_options {
    bool coarse = false;  ///< the superclass (20 of them) in place of the class (100)
};

/// CIFAR-100 in its binary version; all else as `Cifar10`.
class Cifar100 : public detail::CifarFiles {
public:
    explicit Cifar100(std::vector<std::filesystem::path> const& files, cifar_options o = {})
        : CifarFiles("data::Cifar100", files, 2, o.coarse ? 0 : 1, o.coarse ? 20 : 100) {}
    template <std::convertible_to<std::filesystem::path> Path>
    explicit Cifar100(Path const& file, cifar_options o = {}) : Cifar100(std::vector<std::filesystem::path>{file}, o) {}
};

}  // namespace accelerate::data
