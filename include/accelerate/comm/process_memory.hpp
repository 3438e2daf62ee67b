#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <accelerate/comm/memory_source.hpp>
#include <accelerate/core/log.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>

namespace accelerate::comm {

/// How the processes of a node come by common memory. `Anonymous` appears in no folder, whatever ends the process, and is not
/// bounded by the size of /dev/shm; it needs /proc and ranks that see each other's processes. `File` is a file in /dev/shm that is
/// sized first and unlinked as soon as all have mapped it. `Automatic` tries them in this order.
enum class SharedMemory { Automatic, Anonymous, File, None };

/// Memory common to processes of one node.
class ProcessMemory final : public MemorySource {
public:
    explicit ProcessMemory(SharedMemory kind = SharedMemory::Automatic, std::filesystem::path directory = "/dev/shm") : kind_(kind), directory_(std::move(directory)) {}

    Region share(size_t bytes, Exchange const& exchange, std::vector<int64_t> const& members, int64_t me) override {
        bytes = std::max<size_t>(bytes, 1);
        for (auto const kind : {SharedMemory::Anonymous, SharedMemory::File}) {
            if (kind_ != SharedMemory::Automatic && kind_ != kind) continue;
            // Every rank of the assembly comes to the same decision, for every part of it.
            if (auto region = attempt(kind, bytes, exchange, members, me)) return region;
        }
        if (kind_ != SharedMemory::None)
            log::warning_once("the ranks of this node cannot share as much memory as they want (", directory_.string(), " is too small or closed",
                              kind_ == SharedMemory::Automatic ? ", and anonymous memory is refused" : "", "): data goes in slices through what there is, which is slower");
        return {};
    }

    /// Ranks found each other's processes.
    bool sees_processes() const { return anonymous_; }

private:
    /// What the maker of a file tells those who open it.
    struct Ticket {
        bool made = false;
        char path[200] = "";
        uint64_t device = 0, inode = 0;
    };

    class Descriptor {
    public:
        explicit Descriptor(int fd) : fd_(fd) {}
        ~Descriptor() {
            if (fd_ >= 0) close(fd_);
        }
        Descriptor(Descriptor const&) = delete;
        Descriptor& operator=(Descriptor const&) = delete;
        int get() const { return fd_; }

    private:
        int fd_;
    };

    /// The file is gone when this is, whatever ended the attempt: a peer may be lost on the way.
    struct Unlink {
        std::string path;
        ~Unlink() {
            if (!path.empty()) unlink(path.c_str());
        }
    };

    Region attempt(SharedMemory kind, size_t bytes, Exchange const& exchange, std::vector<int64_t> const& members, int64_t me) {
        Ticket ticket;
        Descriptor const made(me == members.front() ? make(kind, bytes, ticket) : -1);
        Unlink const file{kind == SharedMemory::File && made.get() >= 0 ? ticket.path : ""};
        auto const tickets = exchange({reinterpret_cast<char const*>(&ticket), sizeof ticket});
        std::memcpy(&ticket, tickets[static_cast<size_t>(members.front())].data(), sizeof ticket);
        auto region = ticket.made ? map(ticket, bytes) : Region{};
        char const mine = region ? 1 : 0;
        bool all = true;
        for (auto const& text : exchange({&mine, 1})) all = all && text[0] == 1;
        if (!all) return {};
        anonymous_ = anonymous_ || kind == SharedMemory::Anonymous;
        return region;
    }

    int make(SharedMemory kind, size_t bytes, Ticket& ticket) const {
        auto const fd = kind == SharedMemory::Anonymous ? memfd_create("accelerate", MFD_CLOEXEC) : make_file(bytes, ticket);
        if (fd < 0) return fd;
        struct stat status {};
        if (kind == SharedMemory::Anonymous) {
            if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return fd;
            std::snprintf(ticket.path, sizeof ticket.path, "/proc/%d/fd/%d", static_cast<int>(getpid()), fd);
        }
        if (fstat(fd, &status) != 0) return fd;
        ticket.device = status.st_dev, ticket.inode = status.st_ino;
        ticket.made = true;
        return fd;
    }

    /// Sized first: a file that is larger than its file system would be SIGBUS at the first touch. Large ones leave some room, in
    /// which later communicators can still meet.
    int make_file(size_t bytes, Ticket& ticket) const {
        struct statvfs space {};
        auto const spare = std::min<size_t>(bytes, 1 << 20);
        if (statvfs(directory_.c_str(), &space) != 0 || static_cast<size_t>(space.f_bavail) * space.f_frsize < bytes + spare) return -1;
        static std::atomic<int64_t> count{0};
        auto const path = (directory_ / concat("accelerate-", getpid(), "-", count.fetch_add(1))).string();
        if (path.size() >= sizeof ticket.path) return -1;
        auto const fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd < 0) return -1;
        int failed = 0;
        while ((failed = posix_fallocate(fd, 0, static_cast<off_t>(bytes))) == EINTR) {}
        if (failed != 0) {
            unlink(path.c_str());
            close(fd);
            return -1;
        }
        std::memcpy(ticket.path, path.c_str(), path.size() + 1);
        return fd;
    }

    static Region map(Ticket const& ticket, size_t bytes) {
        Descriptor const file(open(ticket.path, O_RDWR | O_CLOEXEC));
        struct stat status {};
        // Another process namespace may have another file under that name.
        if (file.get() < 0 || fstat(file.get(), &status) != 0 || status.st_dev != ticket.device || status.st_ino != ticket.inode) return {};
        auto* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
        if (data == MAP_FAILED) return {};
        return {std::shared_ptr<void>(data, [bytes](void* p) { munmap(p, bytes); }), static_cast<std::byte*>(data), bytes};
    }

    SharedMemory kind_;
    std::filesystem::path directory_;
    bool anonymous_ = false;
};

}  // namespace accelerate::comm
