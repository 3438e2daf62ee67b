#pragma once
// Outside of the umbrella: for who has these files.

#include <accelerate/data/labelled_image.hpp>
#include <accelerate/data/mapped_file.hpp>
#include <initializer_list>

namespace accelerate::data {

/// MNIST and what has its format (Fashion-MNIST, KMNIST, EMNIST): two IDX files, unpacked by gunzip. An image is float [1, 28, 28] in
/// 0 .. 1. The files are mapped, not read in (see `MappedFile`); a batch is converted from there into one new tensor.
///
///     data::Loader{data::Mnist("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), {.batch_size = 64, .shuffle = true}}
class Mnist {
public:
    /// Errors: E_IO when a file cannot be mapped; E_DATA naming the file when its header is no IDX header of 28 x 28 images (of
    /// labels), when it has not the bytes that its header says, and when there are not as many labels as images.
    Mnist(std::filesystem::path const& images, std::filesystem::path const& labels) : images_(images), labels_(labels) {
        count_ = checked(images_, "images", 0x803, {28, 28});
        auto const count = checked(labels_, "labels", 0x801, {});
        check(count == count_, code::data, "data::Mnist: ", labels, " has ", count, " labels; expected ", count_, ", one for each image of ", images,
              "; take both files of the same half, train or test");
    }

    size_t size() const { return static_cast<size_t>(count_); }
    LabelledImage operator[](size_t i) const {
        auto const index = static_cast<int64_t>(i);
        return detail::only(batch({&index, 1}));
    }
    LabelledImage::batch batch(std::span<int64_t const> indices) const {
        return detail::read_images(indices, {1, 28, 28}, [this](int64_t i) {
            check(i >= 0 && i < count_, code::data, "data::Mnist: image ", i, " of ", images_.path(), ", which has ", count_);
            return detail::RawImage{images_.bytes().data() + 16 + i * 28 * 28, std::to_integer<int64_t>(labels_.bytes()[8 + static_cast<size_t>(i)])};
        });
    }

private:
    /// The big-endian number at a byte.
    static int64_t number(MappedFile const& file, size_t at) {
        int64_t n = 0;
        for (auto byte : file.bytes().subspan(at, 4)) n = n << 8 | std::to_integer<int64_t>(byte);
        return n;
    }

    /// How many items of `shape` a file has: all of it is as its header says.
    static int64_t checked(MappedFile const& file, char const* what, int64_t magic, std::initializer_list<int64_t> shape) {
        auto const found = static_cast<int64_t>(file.bytes().size());
        auto const header = 8 + 4 * static_cast<int64_t>(shape.size());
        check(found >= header, code::data, "data::Mnist: ", file.path(), " has ", found, " bytes; expected at least ", header, ", the header of ", what,
              "; is it cut off?");
        check(number(file, 0) >> 16 != 0x1f8b, code::data, "data::Mnist: ", file.path(), " begins with gzip's 1f8b; unpack it first: gunzip ", file.path());
        check(number(file, 0) == magic, code::data, "data::Mnist: ", file.path(), " begins with the number ", number(file, 0), "; expected ", magic,
              ", that of IDX ", what, "; the images' file comes first, the labels' second");
        auto const count = number(file, 4);
        int64_t bytes = count;
        size_t at = 8;
        for (auto n : shape) {
            check(number(file, at) == n, code::data, "data::Mnist: ", file.path(), " says at byte ", at, " that its ", what, " have a side of ",
                  number(file, at), "; expected ", n);
            bytes *= n;
            at += 4;
        }
        check(found == header + bytes, code::data, "data::Mnist: ", file.path(), " has ", found, " bytes; expected ", header + bytes, " for the ", count, " ",
              what, " that its header names; is it cut off?");
        return count;
    }

    MappedFile images_, labels_;
    int64_t count_ = 0;
};

}  // namespace accelerate::data
