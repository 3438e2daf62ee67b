#pragma once

#include <accelerate/state/input_file.hpp>
#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::state {

/// Whether a name that a file gives can be one of a file beside it: no path, no drive, nothing that a terminal or another system reads as more.
inline bool plain_name(std::string_view name) {
    auto const bad = [](unsigned char c) { return c < 0x20 || c == 0x7F || c == '/' || c == '\\' || c == ':'; };
    return !name.empty() && name.size() <= 255 && name != "." && name != ".." && std::none_of(name.begin(), name.end(), bad);
}

/// A folder that is open: files in it are opened by plain names, so that nothing outside it is reached, also when somebody moves it meanwhile.
/// Symbolic links are not followed (E_SYMLINK), except into `links_into`, where that is given: the cache of Hugging Face's hub
/// keeps its files elsewhere and links to them.
class Folder {
public:
    explicit Folder(std::filesystem::path path, std::filesystem::path links_into = {}) : path_(std::move(path)), links_into_(std::move(links_into)) {
        fd_ = Descriptor(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (fd_.get() < 0) fail_io("cannot open the folder", path_, errno);
    }

    std::filesystem::path const& path() const { return path_; }

    InputFile open(std::string const& name) const {
        std::error_code failed;
        if (links_into_.empty() || !std::filesystem::is_symlink(path_ / name, failed)) return InputFile(fd_, name, path_ / name);
        auto const root = std::filesystem::canonical(links_into_, failed), target = std::filesystem::canonical(path_ / name, failed);
        bool const inside = !failed && std::mismatch(root.begin(), root.end(), target.begin(), target.end()).first == root.end();
        check(inside, code::symlink, path_ / name, " is a symbolic link that does not lead into ", links_into_);
        return InputFile(target);
    }

    /// What is in it, sorted.
    std::vector<std::string> names() const {
        std::vector<std::string> all;
        std::error_code failed;
        for (std::filesystem::directory_iterator at(path_, failed), end; !failed && at != end; at.increment(failed)) all.push_back(at->path().filename().string());
        if (failed) fail_io("cannot list the folder", path_, failed.value());
        std::ranges::sort(all);
        return all;
    }

private:
    std::filesystem::path path_, links_into_;
    Descriptor fd_;
};

}  // namespace accelerate::state
