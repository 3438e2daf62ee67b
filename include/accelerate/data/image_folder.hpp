#pragma once
// Outside of the umbrella: who includes this has stb_image.h.

#include <accelerate/data/decode_image.hpp>
#include <accelerate/data/labelled_image.hpp>
#include <algorithm>
#include <array>
#include <cctype>
#include <concepts>
#include <optional>
#include <string>

namespace accelerate::data {

/// Sides of an image, in pixels.
struct image_size {
    int64_t height = 0, width = 0;
};

/// How an `ImageFolder` is read.
struct image_folder_options {
    int64_t channels = 3;                           ///< of all images: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; others are converted
    std::optional<image_size> size = std::nullopt;  ///< which all images must have
};

/// Images in torchvision's layout, root/class/name.png: the classes are the folders of root by name, their files, in folders below
/// as well, by folder and name. An image is uint8 [channels, height, width], decoded when it is read; resizing and scaling are for
/// `data::map`. PNG, JPEG, BMP, PPM and PGM are decoded, 16 bits to 8; files without an image's extension are passed over.
///
///     data::Loader{data::ImageFolder("train", {.size = {{32, 32}}}), {.batch_size = 64, .shuffle = true, .num_workers = 4}}
class ImageFolder {
public:
    /// Errors: E_IO for a folder that cannot be listed; E_DATA for a root without classes and naming a class without images;
    /// E_CONFIG for options that cannot be. Reading an image that does not decode or has another size is E_DATA naming the file.
    template <std::convertible_to<std::filesystem::path> Path>
    explicit ImageFolder(Path const& root, image_folder_options o = {}) : o_(o) {
        static_assert(detail::has_stb_image || sizeof(Path) == 0,
                      "data::ImageFolder decodes with stb_image.h, which is not there: install libstb-dev (Debian and Ubuntu: apt install libstb-dev)");
        check(o.channels >= 1 && o.channels <= 4, code::config, "data::ImageFolder: channels is ", o.channels, "; expected 1 to 4");
        list(root);
    }

    /// Names of the classes, by label.
    std::vector<std::string> const& classes() const { return classes_; }
    /// Where sample i is.
    std::filesystem::path const& file(size_t i) const { return files_.at(i).path; }

    size_t size() const { return files_.size(); }
    LabelledImage operator[](size_t i) const {
        check(i < files_.size(), code::data, "data::ImageFolder: image ", i, " of ", files_.size());
        auto const& file = files_[i];
        auto image = detail::decode_image(file.path, o_.channels);
        if (o_.size)
            check(image.size(1) == o_.size->height && image.size(2) == o_.size->width, code::data, "data::ImageFolder: ", file.path, " has ", image.size(1),
                  " x ", image.size(2), " pixels (height x width); expected ", o_.size->height, " x ", o_.size->width,
                  "; resize it, or leave out `size` and resize in data::map");
        return {std::move(image), file.label};
    }

private:
    struct File {
        std::filesystem::path path;
        int64_t label;
    };

    static bool is_image(std::filesystem::path const& file) {
        auto extension = file.extension().string();
        std::ranges::transform(extension, extension.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        // torchvision's. What stb cannot decode of them is an error when it is read, rather than silently another data set.
        constexpr std::array extensions{".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"};
        return std::ranges::find(extensions, extension) != extensions.end();
    }

    /// What is in a folder and passes.
    template <class Iterator, class F>
    static std::vector<std::filesystem::path> entries(std::filesystem::path const& folder, F const& passes) {
        std::vector<std::filesystem::path> out;
        try {
            for (auto const& entry : Iterator(folder, std::filesystem::directory_options::follow_directory_symlink))
                if (passes(entry)) out.push_back(entry.path());
        } catch (std::filesystem::filesystem_error const& e) {
            check(false, code::io, "data::ImageFolder: ", folder, " cannot be listed: ", e.code().message());
        }
        std::ranges::sort(out, {}, [](auto const& path) { return std::pair(path.parent_path().native(), path.filename().native()); });
        return out;
    }

    void list(std::filesystem::path const& root) {
        namespace fs = std::filesystem;
        for (auto const& folder : entries<fs::directory_iterator>(root, [](auto const& entry) { return entry.is_directory(); })) {
            auto const label = static_cast<int64_t>(classes_.size());
            auto const files = entries<fs::recursive_directory_iterator>(folder, [](auto const& e) { return is_image(e.path()) && e.is_regular_file(); });
            check(!files.empty(), code::data, "data::ImageFolder: class ", folder,
                  " has no images; expected files such as name.png; remove the folder, or fill it");
            for (auto const& file : files) files_.push_back({file, label});
            classes_.push_back(folder.filename().string());
        }
        check(!classes_.empty(), code::data, "data::ImageFolder: ", root,
              " has no classes; expected a folder for each class with its images: root/class/name.png");
    }

    image_folder_options o_;
    std::vector<std::string> classes_;
    std::vector<File> files_;
};

}  // namespace accelerate::data
