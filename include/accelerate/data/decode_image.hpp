#pragma once
// Outside of the umbrella: decoding needs stb_image.h.

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <accelerate/data/mapped_file.hpp>
#include <accelerate/data/stb_image.hpp>
#include <algorithm>
#include <cstring>
#include <memory>

namespace accelerate::data::detail {

#if __has_include(<stb/stb_image.h>) || __has_include(<stb_image.h>)

inline constexpr bool has_stb_image = true;

/// A file as stb reads it, and whether it wanted more than there is: stb itself fills up many a cut off image without a word.
struct ImageBytes {
    std::span<std::byte const> bytes;
    size_t at = 0;
    bool cut_off = false;
    char* buffer = nullptr;  ///< stb's own, the first that it fills; there it asks for more than it needs

    static int read(void* user, char* to, int n) {
        auto& self = *static_cast<ImageBytes*>(user);
        if (!self.buffer) self.buffer = to;
        auto const count = std::min(static_cast<size_t>(n), self.bytes.size() - self.at);
        self.cut_off |= to == self.buffer ? count == 0 : count < static_cast<size_t>(n);
        if (count > 0) std::memcpy(to, self.bytes.data() + self.at, count);
        self.at += count;
        return static_cast<int>(count);
    }
    static void skip(void* user, int n) {  // or back
        auto& self = *static_cast<ImageBytes*>(user);
        auto const to = static_cast<int64_t>(self.at) + n, size = static_cast<int64_t>(self.bytes.size());
        self.cut_off |= to > size;
        self.at = static_cast<size_t>(std::clamp<int64_t>(to, 0, size));
    }
    static int at_end(void* user) { return static_cast<ImageBytes*>(user)->at == static_cast<ImageBytes*>(user)->bytes.size(); }
};

/// A PNG, JPEG, BMP, PPM or PGM file as bytes [channels, height, width]. Error E_DATA naming the file and what stb says.
inline at::Tensor decode_image(std::filesystem::path const& path, int64_t channels) {
    MappedFile const file(path);
    ImageBytes source{file.bytes()};
    stb::stbi_io_callbacks const calls{ImageBytes::read, ImageBytes::skip, ImageBytes::at_end};
    int width = 0, height = 0, in_file = 0;
    std::unique_ptr<stb::stbi_uc, void (*)(void*)> const pixels(
        stb::stbi_load_from_callbacks(&calls, &source, &width, &height, &in_file, static_cast<int>(channels)), stb::stbi_image_free);
    auto const* failure = pixels ? nullptr : stb::stbi_failure_reason();
    if (pixels && (width < 1 || height < 1)) failure = "it has no pixels";
    if (source.cut_off) failure = "it is cut off";
    check(!failure, code::data, "data::ImageFolder: ", path, " (", file.bytes().size(),
          " bytes) is no PNG, JPEG, BMP, PPM or PGM image that stb_image can decode: ", failure ? failure : "", "; replace it, or remove it");
    return at::from_blob(pixels.get(), {height, width, channels}, at::TensorOptions(at::kByte)).permute({2, 0, 1}).clone(at::MemoryFormat::Contiguous);
}

#else

inline constexpr bool has_stb_image = false;
inline at::Tensor decode_image(std::filesystem::path const&, int64_t) { return {}; }

#endif

}  // namespace accelerate::data::detail
