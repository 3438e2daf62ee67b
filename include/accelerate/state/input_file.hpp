#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <accelerate/state/codes.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

namespace accelerate::state {

/// Owns a file descriptor, which is none of the standard streams': where a program has closed those, the next file that is opened takes their
/// place, and what is printed would go into it.
class Descriptor {
public:
    explicit Descriptor(int fd = -1) : fd_(fd) {
        if (fd < 0 || fd > STDERR_FILENO) return;
        fd_ = ::fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
        auto const failure = errno;
        ::close(fd);
        errno = failure;
    }
    Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Descriptor& operator=(Descriptor&& other) noexcept {
        std::swap(fd_, other.fd_);
        return *this;
    }
    ~Descriptor() {
        if (fd_ >= 0) ::close(fd_);
    }
    int get() const { return fd_; }
    int release() { return std::exchange(fd_, -1); }

private:
    int fd_;
};

/// E_NO_SPACE or E_IO for the operating system's `error`, naming what was tried on which path.
[[noreturn]] inline void fail_io(char const* what, std::filesystem::path const& path, int error) {
    bool const space = error == ENOSPC || error == EDQUOT || error == EFBIG;
    throw Error(space ? code::no_space : code::io, concat(what, " ", path, ": ", std::generic_category().message(error)));
}

/// A regular file, opened once for reading at any position; never mapped, so a file that shrinks is an error and not a SIGBUS.
/// Directories, FIFOs, sockets, devices and the files of /proc and /sys are E_NOT_REGULAR, without blocking and without side effect.
class InputFile {
public:
    /// The path is the caller's own: symbolic links in it are followed.
    explicit InputFile(std::filesystem::path path) : path_(std::move(path)) {
        struct stat seen {};
        if (::stat(path_.c_str(), &seen) != 0) fail_io("cannot open", path_, errno);
        require_regular(seen);  // before open: opening a device may already do something
        opened([&] { return ::open(path_.c_str(), flags); });
    }
    /// A plain name in a folder that is open. Error E_SYMLINK for a symbolic link.
    InputFile(Descriptor const& folder, std::string const& name, std::filesystem::path path) : path_(std::move(path)) {
        struct stat seen {};
        if (::fstatat(folder.get(), name.c_str(), &seen, AT_SYMLINK_NOFOLLOW) != 0) fail_io("cannot open", path_, errno);
        require_regular(seen);
        opened([&] { return ::openat(folder.get(), name.c_str(), flags | O_NOFOLLOW); });
    }

    std::filesystem::path const& path() const { return path_; }
    int64_t size() const { return static_cast<int64_t>(at_open_.st_size); }
    int descriptor() const { return fd_.get(); }

    /// Reads exactly `bytes` bytes from `position`; many in halves on two threads, as one core moves less than the memory could. Error E_ST_CHANGED
    /// when the file has become shorter than it was.
    void read_at(void* to, int64_t bytes, int64_t position) const {
        auto* const out = static_cast<char*>(to);
        static bool const cores = std::thread::hardware_concurrency() > 1;
        constexpr int64_t many = int64_t{8} << 20;
        if (bytes < many || !cores) return read_here(out, bytes, position);
        auto const half = bytes / 2;
        std::exception_ptr failure;
        {
            std::jthread const other([&] {
                try {
                    read_here(out + half, bytes - half, position + half);
                } catch (...) {
                    failure = std::current_exception();
                }
            });
            read_here(out, half, position);
        }
        if (failure) std::rethrow_exception(failure);
    }

    /// All of it, as text.
    std::string read_text() const {
        std::string text(static_cast<size_t>(size()), '\0');
        read_at(text.data(), size(), 0);
        return text;
    }

    /// Error E_ST_CHANGED when size or time of last writing are not what they were at opening.
    void check_unchanged() const {
        auto const now = status();
        check(now.st_size == at_open_.st_size && now.st_mtim.tv_sec == at_open_.st_mtim.tv_sec && now.st_mtim.tv_nsec == at_open_.st_mtim.tv_nsec, code::st_changed, path_,
              " was written to while it was read (", size(), " bytes when opened, ", now.st_size, " now)");
    }

private:
    static constexpr int flags = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;

    void read_here(char* out, int64_t bytes, int64_t position) const {
        constexpr int64_t most = int64_t{1} << 30;  // Linux moves at most 2^31 bytes a call
        while (bytes > 0) {
            auto const n = ::pread(fd_.get(), out, static_cast<size_t>(std::min(bytes, most)), static_cast<off_t>(position));
            if (n < 0 && errno == EINTR) continue;
            if (n < 0) fail_io("cannot read", path_, errno);
            check(n > 0, code::st_changed, path_, " ends at byte ", position, " but had ", size(), " bytes when it was opened; is somebody writing it?");
            out += n, bytes -= n, position += n;
        }
    }

    template <class Open>
    void opened(Open const& open) {
        do fd_ = Descriptor(open());
        while (fd_.get() < 0 && errno == EINTR);
        check(fd_.get() >= 0 || errno != ELOOP, code::symlink, path_, " is a symbolic link; expected a regular file");
        if (fd_.get() < 0) fail_io("cannot open", path_, errno);
        at_open_ = status();
        require_regular(at_open_);
        struct statfs system {};
        constexpr long proc = 0x9FA0, sys = 0x62656572;
        bool const made_up = ::fstatfs(fd_.get(), &system) == 0 && (static_cast<long>(system.f_type) == proc || static_cast<long>(system.f_type) == sys);
        check(!made_up, code::not_regular, path_, " is made up by the kernel; expected a regular file");
    }

    struct stat status() const {
        struct stat s {};
        if (::fstat(fd_.get(), &s) != 0) fail_io("cannot stat", path_, errno);
        return s;
    }

    void require_regular(struct stat const& s) const {
        if (S_ISREG(s.st_mode)) return;
        check(!S_ISLNK(s.st_mode), code::symlink, path_, " is a symbolic link; expected a regular file");
        auto const* kind = S_ISDIR(s.st_mode) ? "directory" : S_ISFIFO(s.st_mode) ? "FIFO" : S_ISSOCK(s.st_mode) ? "socket" : "device";
        throw Error(code::not_regular, concat(path_, " is a ", kind, "; expected a regular file"));
    }

    std::filesystem::path path_;
    Descriptor fd_;
    struct stat at_open_ {};
};

}  // namespace accelerate::state
