#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accelerate/core/error.hpp>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <system_error>
#include <utility>

namespace accelerate::data {

/// The bytes of a regular file, mapped for reading: nothing is read before it is looked at, and the processes of a machine share one
/// copy in memory. Copies share the map, which lasts as long as any of them. An empty file has no bytes and is legal.
/// The file must not become shorter while it is mapped: looking behind its new end is a SIGBUS, which ends the process.
class MappedFile {
public:
    /// Error E_IO naming a file that is missing, must not be read, cannot be mapped, or is no regular file (a directory, a FIFO).
    explicit MappedFile(std::filesystem::path path) : path_(std::move(path)) {
        auto const fd = ::open(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);  // a FIFO would block
        auto const failure = fd < 0 ? message(errno) : map(fd);
        if (fd >= 0) ::close(fd);
        check(failure.empty(), code::io, "data::MappedFile: ", path_, " cannot be mapped: ", failure);
    }

    std::filesystem::path const& path() const { return path_; }
    std::span<std::byte const> bytes() const { return {start_.get(), size_}; }

    /// Has the system read those bytes, in the background: worth it for several ranges at once that may not be in memory yet, then
    /// the disk reads them together. About a microsecond for each where they are.
    void will_need(int64_t begin, int64_t count) const {
        auto const skew = begin % ::sysconf(_SC_PAGESIZE);
        ::madvise(const_cast<std::byte*>(start_.get()) + (begin - skew), static_cast<size_t>(count + skew), MADV_WILLNEED);
    }

private:
    static std::string message(int error) { return std::generic_category().message(error); }

    /// What went wrong, or nothing.
    std::string map(int fd) {
        struct stat file {};
        if (::fstat(fd, &file) != 0) return message(errno);
        if (!S_ISREG(file.st_mode)) return S_ISDIR(file.st_mode) ? message(EISDIR) : "it is no regular file";
        size_ = static_cast<size_t>(file.st_size);
        if (size_ == 0) return {};
        auto* const start = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
        if (start == MAP_FAILED) return message(errno);
        start_ = {static_cast<std::byte const*>(start), [start, size = size_](auto) { ::munmap(start, size); }};
        return {};
    }

    std::filesystem::path path_;
    std::shared_ptr<std::byte const> start_;
    size_t size_ = 0;
};

}  // namespace accelerate::data
