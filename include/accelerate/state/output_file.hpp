#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <accelerate/state/input_file.hpp>
#include <accelerate/state/leftovers.hpp>
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace accelerate::state {

inline Descriptor open_folder(std::filesystem::path const& folder, std::filesystem::path const& of) {
    Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() < 0) fail_io("cannot open the folder of", of, errno);
    return fd;
}

/// Makes the names in a folder durable. Some network file systems cannot sync a folder and say EINVAL; nothing better can be done there.
inline void sync_folder(Descriptor const& folder, std::filesystem::path const& of) {
    if (::fsync(folder.get()) != 0 && errno != EINVAL) fail_io("cannot sync the folder of", of, errno);
}

/// The folder in which `path` lies, made with its parents if it is not there, and then durable.
inline std::filesystem::path folder_for(std::filesystem::path const& path) {
    auto const folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
    std::error_code failed;
    std::vector<std::filesystem::path> made;
    for (auto at = std::filesystem::absolute(folder, failed); !failed && at.has_relative_path() && !std::filesystem::exists(at, failed); at = at.parent_path()) made.push_back(at);
    std::filesystem::create_directories(folder, failed);
    if (failed) fail_io("cannot make the folder of", path, failed.value());
    for (auto const& there : made) {
        // Its name is in the folder around it, which somebody else may own and not let us read; then its name is not ours to keep either.
        Descriptor const around(::open(there.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        if (around.get() >= 0) sync_folder(around, path);
    }
    return folder;
}

/// Writes a file that appears under its name whole or not at all: everything goes to a temporary file in the same folder, which
/// `commit` makes durable (fsync of file and folder) and renames over the name. A kill before that leaves the old file, if there
/// was one, and a hidden file (see leftovers.hpp); an error leaves nothing. Missing parent folders are made. A symbolic link under the
/// name is replaced, not followed. Errors: E_NO_SPACE or E_IO naming path and call, E_NOT_REGULAR for a name that is a folder,
/// FIFO or device.
class OutputFile {
public:
    /// `bytes` is the size the file will have: space is taken at once, so that a full disk is known before anything is written.
    OutputFile(std::filesystem::path path, int64_t bytes) : path_(std::move(path)) {
        auto const name = path_.filename().string();
        check(!name.empty() && name != "." && name != "..", code::io, "cannot write ", path_, ": there is no file name in it");
        struct stat there {};
        bool const special = ::lstat(path_.c_str(), &there) == 0 && !S_ISREG(there.st_mode) && !S_ISLNK(there.st_mode);
        check(!special, code::not_regular, "cannot write ", path_, ": something that is not a regular file has this name");
        // All later steps are relative to this descriptor: a folder that is moved meanwhile keeps its file.
        folder_ = open_folder(folder_for(path_), path_);
        buffer_.reserve(buffered);
        do {
            temporary_ = hidden_name(name);
            file_ = Descriptor(::openat(folder_.get(), temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666));
        } while (file_.get() < 0 && (errno == EEXIST || errno == EINTR));
        if (file_.get() < 0) fail_with("cannot create a temporary file beside", errno);
        if (bytes > 0 && ::fallocate(file_.get(), 0, 0, static_cast<off_t>(bytes)) != 0 && errno != EOPNOTSUPP && errno != ENOSYS && errno != EINTR && errno != EINVAL)
            fail_with("cannot reserve space for", errno);
    }

    OutputFile(OutputFile const&) = delete;
    OutputFile& operator=(OutputFile const&) = delete;
    ~OutputFile() { discard(); }

    /// Appends. Small pieces are collected, large ones go straight from the caller's memory to the system.
    void write(void const* data, int64_t bytes) {
        auto const* from = static_cast<char const*>(data);
        auto const size = static_cast<size_t>(bytes);
        if (buffer_.size() + size > buffered) flush();
        if (size > buffered) write_now(from, size);
        else buffer_.insert(buffer_.end(), from, from + size);
    }
    void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }

    /// Makes the file durable and gives it its name.
    void commit() {
        finish();
        publish();
    }
    /// Makes what was written durable; it has no name yet. Where several files belong together, all are finished before one is published.
    void finish() {
        flush();
        if (::fsync(file_.get()) != 0) fail_with("cannot sync", errno);
        if (::close(file_.release()) != 0) fail_with("cannot close", errno);
    }
    void publish() {
        if (::renameat(folder_.get(), temporary_.c_str(), folder_.get(), path_.filename().c_str()) != 0) fail_with("cannot rename a temporary file to", errno);
        temporary_.clear();
        sync_folder(folder_, path_);
    }

private:
    static constexpr size_t buffered = 1 << 18;

    void flush() {
        write_now(buffer_.data(), buffer_.size());
        buffer_.clear();
    }

    void write_now(char const* from, size_t size) {
        while (size > 0) {
            auto const n = ::write(file_.get(), from, std::min(size, size_t{16} << 20));  // much larger ones are slower
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail_with("cannot write", errno);
            from += n, size -= static_cast<size_t>(n), written_ += n;
        }
        // The disk begins while the rest is written; what it has not done is left to fsync, which also hears of what goes wrong.
        constexpr int64_t batch = int64_t{16} << 20;
        if (written_ - begun_ < batch) return;
        ::sync_file_range(file_.get(), begun_, written_ - begun_, SYNC_FILE_RANGE_WRITE);
        begun_ = written_;
    }

    [[noreturn]] void fail_with(char const* what, int error) {
        discard();
        fail_io(what, path_, error);
    }

    void discard() noexcept {
        if (!temporary_.empty()) ::unlinkat(folder_.get(), temporary_.c_str(), 0);
        temporary_.clear();
    }

    std::filesystem::path path_;
    Descriptor folder_, file_;
    std::string temporary_;
    std::vector<char> buffer_;
    int64_t written_ = 0, begun_ = 0;  ///< bytes given to the system, and those that it has been told to write
};

/// A small file, whole or not at all, durable when this returns.
inline void write_text(std::filesystem::path const& path, std::string_view text) {
    OutputFile file(path, static_cast<int64_t>(text.size()));
    file.write(text);
    file.commit();
}

}  // namespace accelerate::state
