#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace accelerate::data {

/// An image [channels, height, width] and the number of its class: what `ImageFolder`, `Mnist` and `Cifar10` give.
struct LabelledImage {
    at::Tensor image;
    int64_t label;
    /// `image` is [samples, channels, height, width], `label` int64 [samples].
    struct batch {
        at::Tensor image, label;
    };
};

namespace detail {

/// The bytes of an image, where they lie, and its class.
struct RawImage {
    std::byte const* pixels;
    int64_t label;
};

/// A batch of images of `shape` as floats in 0 .. 1 (bytes / 255, as torchvision's ToTensor). `raw(i)` finds image i.
template <class F>
LabelledImage::batch read_images(std::span<int64_t const> indices, at::IntArrayRef shape, F const& raw) {
    std::vector<int64_t> sizes{static_cast<int64_t>(indices.size())};
    sizes.insert(sizes.end(), shape.begin(), shape.end());
    LabelledImage::batch out{at::empty(sizes, at::TensorOptions(at::kFloat)), at::empty({sizes[0]}, at::TensorOptions(at::kLong))};
    auto const bytes = c10::multiply_integers(shape);
    auto* to = out.image.mutable_data_ptr<float>();
    auto* label = out.label.mutable_data_ptr<int64_t>();
    for (auto i : indices) {
        RawImage const image = raw(i);
        for (int64_t k = 0; k < bytes; ++k) to[k] = static_cast<float>(image.pixels[k]) / 255.0f;
        to += bytes;
        *label++ = image.label;
    }
    return out;
}

/// The only sample of a batch of one.
inline LabelledImage only(LabelledImage::batch const& batch) { return {batch.image.select(0, 0), *batch.label.const_data_ptr<int64_t>()}; }

}  // namespace detail

}  // namespace accelerate::data
