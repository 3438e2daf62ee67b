// What becomes of checkpoints when the system fails: every file operation of a save can be the one at which the process dies, or that gives an
// error. The functions of the C library that this program calls are its own, below.
#include <torch/torch.h>

#include "support/catch.hpp"
#include "support/errors.hpp"
#include "support/folder.hpp"
#include "support/power_cut.hpp"

#include <accelerate.hpp>
#include <array>
#include <cstdarg>
#include <dlfcn.h>
#include <functional>
#include <sys/mount.h>
#include <sys/wait.h>
#include <thread>

namespace acc = accelerate;
namespace fs = std::filesystem;

namespace {

enum class Fault { None, Exit, Error, Half, Omitted };

/// What the next file operations meet: at number `at`, counted from 1, a fault.
struct Injector {
    bool armed = false;
    Fault fault = Fault::None;
    int64_t at = 0, calls = 0;
    int error = 0;
    std::vector<std::string> trace;  ///< "fsync /path", with the paths of descriptors
    PowerCut* disk = nullptr;        ///< is told of what happens
    std::string unsynced;            ///< the kind of file (see `kind`) whose fsync does nothing, as if it had been forgotten
} injector;

std::string path_of(int fd) {
    std::error_code ignored;
    return fs::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored).string();
}

/// Whether this call meets the fault.
bool meets(std::string const& what) {
    if (!injector.armed) return false;
    injector.armed = false;  // whatever is called below is not counted
    injector.trace.push_back(what);
    if (injector.disk != nullptr) injector.disk->moment();
    bool const now = ++injector.calls == injector.at;
    if (now && injector.fault == Fault::Exit) ::_exit(9);
    injector.armed = true;
    bool const can_be = injector.fault != Fault::Omitted || what.starts_with("rename ") || what.starts_with("publish ");
    return now && injector.fault != Fault::None && can_be;
}

/// Tells the model of a disk, if there is one, what has been done.
template <class Tell>
void tell(Tell const& tell) {
    if (!injector.armed || injector.disk == nullptr) return;
    injector.armed = false;
    tell(*injector.disk);
    injector.armed = true;
}

/// A path without what differs from run to run: "checkpoints/.tmp~checkpoint_1/.tmp~manifest.json".
std::string kind(fs::path const& path) {
    std::string kind;
    bool inside = false;
    for (auto const& part : path) {
        auto const name = part.string();
        inside = inside || name == "checkpoints";
        if (inside) kind += (kind.empty() ? "" : "/") + (name.starts_with(".tmp~") ? name.substr(0, name.find('~', 5)) : name);
    }
    return kind;
}

template <class F>
F* real(char const* name) {
    return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}

int fail() {
    errno = injector.error;
    return -1;
}

}  // namespace

extern "C" {

int open(char const* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    auto const mode = va_arg(arguments, mode_t);
    va_end(arguments);
    static auto* const next = real<int(char const*, int, ...)>("open");
    return meets(std::string("open ") + path) ? fail() : next(path, flags, mode);
}
int openat(int folder, char const* path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    auto const mode = va_arg(arguments, mode_t);
    va_end(arguments);
    static auto* const next = real<int(int, char const*, int, ...)>("openat");
    if (meets("create " + path_of(folder) + "/" + path)) return fail();
    auto const fd = next(folder, path, flags, mode);
    if (fd >= 0 && (flags & O_CREAT) != 0) tell([&](PowerCut& disk) { disk.made(path_of(fd)); });
    return fd;
}
ssize_t write(int fd, void const* data, size_t n) {
    static auto* const next = real<ssize_t(int, void const*, size_t)>("write");
    if (!meets("write " + path_of(fd))) return next(fd, data, n);
    return injector.fault == Fault::Half ? next(fd, data, (n + 1) / 2) : fail();
}
int fallocate(int fd, int mode, off_t offset, off_t length) {
    static auto* const next = real<int(int, int, off_t, off_t)>("fallocate");
    return meets("fallocate " + path_of(fd)) && injector.fault == Fault::Error ? fail() : next(fd, mode, offset, length);
}
int fsync(int fd) {
    static auto* const next = real<int(int)>("fsync");
    auto const path = path_of(fd);
    if (meets("fsync " + path) && injector.fault == Fault::Error) return fail();
    if (injector.armed && !injector.unsynced.empty() && kind(path) == injector.unsynced) return 0;
    auto const result = next(fd);
    tell([&](PowerCut& disk) { disk.synced(fd); });
    return result;
}
int mkdir(char const* path, mode_t mode) noexcept {
    static auto* const next = real<int(char const*, mode_t)>("mkdir");
    if (meets(std::string("mkdir ") + path) && injector.fault == Fault::Error) return fail();
    auto const result = next(path, mode);
    if (result == 0) tell([&](PowerCut& disk) { disk.made(path); });
    return result;
}
int chmod(char const* path, mode_t mode) noexcept {
    static auto* const next = real<int(char const*, mode_t)>("chmod");
    return meets(std::string("chmod ") + path) && injector.fault == Fault::Error ? fail() : next(path, mode);
}
int unlinkat(int folder, char const* path, int flags) noexcept {
    static auto* const next = real<int(int, char const*, int)>("unlinkat");
    return meets("remove " + path_of(folder) + "/" + path) && injector.fault == Fault::Error ? fail() : next(folder, path, flags);
}
int renameat(int from_folder, char const* from, int to_folder, char const* to) noexcept {
    static auto* const next = real<int(int, char const*, int, char const*)>("renameat");
    if (meets("rename " + path_of(to_folder) + "/" + to) && injector.fault != Fault::Half) return injector.fault == Fault::Omitted ? 0 : fail();
    return next(from_folder, from, to_folder, to);
}
int renameat2(int from_folder, char const* from, int to_folder, char const* to, unsigned flags) noexcept {
    static auto* const next = real<int(int, char const*, int, char const*, unsigned)>("renameat2");
    if (meets(std::string("publish ") + to) && injector.fault != Fault::Half) return injector.fault == Fault::Omitted ? 0 : fail();
    return next(from_folder, from, to_folder, to, flags);
}
}

namespace {

using Run = acc::Accelerator<acc::device::BasicCpu<acc::comm::Self>, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>>;

struct Number {
    int64_t value = 0;
    acc::StateDict state_dict() const { return {{}, {{"value", value}}}; }
    void load_state_dict(acc::StateDict const& s) { value = s.value<int64_t>("value", "Number"); }
};

/// A run with checkpoints in a folder; each save is of the next number.
struct Saves {
    explicit Saves(fs::path const& folder, int64_t limit = 2) : accelerator({.project_dir = folder, .total_limit = limit}), model(accelerator.prepare(torch::nn::Linear(40, 30))) { accelerator.register_for_checkpointing(number); }

    void save(bool asynchronous = false) {
        ++number.value;
        accelerator.save_state({.asynchronous = asynchronous});
        accelerator.wait_for_checkpoint();
    }
    /// The same with a fault at one call. Gives how many calls there were.
    template <class F>
    int64_t with_fault(Fault fault, int64_t at, int error, F&& f) {
        injector.armed = true, injector.fault = fault, injector.at = at, injector.calls = 0, injector.error = error, injector.trace.clear();
        try {
            f();
        } catch (...) {
            injector.armed = false;
            throw;
        }
        injector.armed = false;
        return injector.calls;
    }

    Run accelerator;
    decltype(accelerator.prepare(torch::nn::Linear(40, 30))) model;
    Number number;
};

/// The number in the newest whole checkpoint, found by a run that knows nothing.
int64_t found_in(fs::path const& folder) {
    Saves fresh(folder);
    return fresh.accelerator.resume() ? fresh.number.value : 0;
}

bool leftovers(fs::path const& folder) {
    for (auto const& entry : fs::recursive_directory_iterator(folder))
        if (entry.path().filename().string().starts_with('.')) return true;
    return false;
}

/// Saves again and again, each time in a process that dies at a later file operation, until one lives.
void die_everywhere(bool asynchronous, int64_t limit) {
    Folder folder;
    int64_t points = 0, lost = 0;
    for (int64_t k = 1;; ++k) {
        auto const before = found_in(folder.path);
        auto const child = ::fork();
        if (child == 0) {
            Saves saves(folder.path, limit);
            saves.number.value = before;
            saves.with_fault(Fault::Exit, k, 0, [&] { saves.save(asynchronous); });
            ::_exit(0);
        }
        int status = 0;
        REQUIRE(::waitpid(child, &status, 0) == child);
        REQUIRE(WIFEXITED(status));
        auto const after = found_in(folder.path);
        lost += after != before && after != before + 1;
        if (WEXITSTATUS(status) == 0) {
            lost += after != before + 1;
            break;
        }
        REQUIRE(WEXITSTATUS(status) == 9);
        ++points;
    }
    WARN(points << " crash points of a " << (asynchronous ? "save by a thread, " : "save, ") << limit << " kept: " << lost << " lost");
    CHECK(points > 20);
    CHECK(lost == 0);
    CHECK_FALSE(leftovers(folder.path));  // what dead saves had hidden is gone
    CHECK(std::distance(fs::directory_iterator(folder / "checkpoints"), fs::directory_iterator()) == limit + 1);  // with `latest`
}

}  // namespace

TEST_CASE("a save that dies at any file operation leaves the checkpoint before it, or itself", "[checkpoint_writer][async_checkpoint][output_file]") {
    for (int64_t const limit : {1, 2, 3}) die_everywhere(false, limit);
    die_everywhere(true, 2);
}

TEST_CASE("a save whose file operation fails is a typed error that changes nothing", "[checkpoint_writer][output_file]") {
    Folder folder;
    Saves saves(folder.path);
    saves.save();
    auto const calls = saves.with_fault(Fault::None, 0, 0, [&] { saves.save(); });
    auto const trace = injector.trace;
    int64_t trials = 0, wrong = 0;
    for (int error : {ENOSPC, EIO, EDQUOT, EMFILE, EACCES, EROFS})
        for (int64_t k = 1; k <= calls; ++k) {
            auto const before = saves.number.value;
            std::string code = "none";
            try {
                saves.with_fault(Fault::Error, k, error, [&] { saves.save(); });
            } catch (acc::Error const& e) {
                code = e.code().name;
            }
            auto const published = found_in(folder.path);
            // Behind the rename the checkpoint is there, whatever is said of it. Reserving space is a favour that may be refused.
            bool const fine = code == "none" ? published == before + 1 : (published == before || published == before + 1) && code == (error == ENOSPC || error == EDQUOT ? "E_NO_SPACE" : "E_IO");
            wrong += !fine || leftovers(folder.path);
            if (!fine) UNSCOPED_INFO("call " << k << " " << injector.trace.back() << ", error " << error << ": " << code << ", " << before << " then " << published);
            saves.number.value = published;
            ++trials;
        }
    for (int64_t k = 1; k <= calls; ++k) {  // what is no failure: half a write
        if (!trace[static_cast<size_t>(k - 1)].starts_with("write ")) continue;
        auto const before = saves.number.value;
        saves.with_fault(Fault::Half, k, 0, [&] { saves.save(); });
        wrong += found_in(folder.path) != before + 1;
        ++trials;
    }
    WARN(trials << " faults at " << calls << " calls, " << wrong << " wrong");
    CHECK(wrong == 0);
}

namespace {

struct Cuts {
    int64_t tried = 0, wrong = 0;
    std::string first;  ///< what was wrong first
};

/// Cuts the power at every file operation of a save and at its end, in every way. What is left must be the checkpoint before it or itself, at the end
/// itself, and `latest` must name a checkpoint that is there, at the end this one.
Cuts cut_everywhere(Saves& saves, fs::path const& root, std::string const& unsynced = {}) {
    Folder left;
    auto const before = saves.number.value;
    PowerCut disk(root);
    injector.disk = &disk, injector.unsynced = unsynced;
    saves.with_fault(Fault::None, 0, 0, [&] { saves.save(); });
    injector.disk = nullptr, injector.unsynced.clear();
    disk.moment();
    Cuts cuts;
    for (size_t m = 0; m < disk.moments(); ++m)
        for (int way = 0; way < PowerCut::ways; ++way) {
            disk.leave(m, way, left / "root");
            bool const ended = m + 1 == disk.moments();
            auto const latest = left / "root/checkpoints/latest";
            std::string named;
            std::getline(std::ifstream(latest), named);
            bool fine = fs::exists(latest) ? fs::exists(left / "root/checkpoints" / named / "manifest.json") : !ended;
            if (ended) fine = fine && named == "checkpoint_" + std::to_string(before);
            int64_t found = 0;
            try {
                found = found_in(left / "root");
            } catch (acc::Error const& e) {
                fine = fine && before == 0 && e.code() == acc::code::ck_incomplete;  // there is only what a first save has left
            }
            fine = fine && (found == before + 1 || (!ended && found == before));
            ++cuts.tried;
            if (!fine && cuts.wrong++ == 0) cuts.first = acc::concat("moment ", m, " of ", disk.moments(), ", way ", way, ": ", found, " found after ", before, ", latest \"", named, "\"");
        }
    return cuts;
}

}  // namespace

TEST_CASE("after a power cut at any moment the checkpoint before is there, or the new one", "[checkpoint_writer][output_file][latest]") {
    Folder folder;
    Saves saves(folder.path);
    int64_t tried = 0;
    for (int save = 0; save < 4; ++save) {  // from the third on an old one is removed
        auto const cuts = cut_everywhere(saves, folder.path);
        INFO(cuts.first);
        CHECK(cuts.wrong == 0);
        tried += cuts.tried;
    }
    WARN(tried << " power cuts");
    // Each fsync is needed: forgotten, something is lost.
    std::vector<std::string> kinds;
    injector.trace.clear();
    saves.with_fault(Fault::None, 0, 0, [&] { saves.save(); });
    for (auto const& line : injector.trace)
        if (line.starts_with("fsync "))
            if (auto k = kind(line.substr(6)); std::ranges::find(kinds, k) == kinds.end()) kinds.push_back(k);
    CHECK(kinds.size() == 5);  // the rank's file, the manifest, their folder, the folder around it, `latest`
    for (auto name : kinds) {
        auto const digits = name.find("checkpoint_");
        Folder fresh;
        Saves others(fresh.path);
        others.save();
        if (digits != name.npos) name.replace(digits, name.find('/', digits) - digits, "checkpoint_1");
        auto const cuts = cut_everywhere(others, fresh.path, name);
        INFO("no fsync of " << name);
        CHECK(cuts.wrong > 0);
        UNSCOPED_INFO(name << ": " << cuts.wrong << " of " << cuts.tried << " cuts wrong");
    }
}

TEST_CASE("each rename is needed: left out, the save fails or is not found", "[checkpoint_writer][output_file][latest]") {
    int64_t renames = 0, calls = 2;
    for (int64_t k = 1; k <= calls; ++k) {
        Folder folder;
        Saves saves(folder.path);
        saves.save();
        bool failed = false;
        calls = saves.with_fault(Fault::Omitted, k, 0, [&] {
            try {
                saves.save();
            } catch (acc::Error const&) {
                failed = true;
            }
        });
        auto const& what = injector.trace[static_cast<size_t>(k - 1)];
        if (!what.starts_with("rename ") && !what.starts_with("publish ")) continue;
        INFO(what);
        std::string latest;
        std::getline(std::ifstream(folder / "checkpoints/latest"), latest);
        CHECK((failed || found_in(folder.path) != 2 || latest != "checkpoint_1"));
        ++renames;
    }
    CHECK(renames == 4);  // the rank's file, the manifest, their folder, `latest`
}

TEST_CASE("a full disk is a typed error, and training goes on", "[checkpoint_writer][save_model]") {
    Folder folder;
    auto const small = folder / "small";
    fs::create_directories(small);
    auto const need = [&] {
        Saves saves(folder / "roomy");
        saves.save();
        return acc::inspect(folder / "roomy/checkpoints/checkpoint_0").bytes;
    }();
    constexpr int64_t page = 4096;
    int64_t trials = 0, wrong = 0;
    for (double part : {0.25, 0.5, 0.9, 0.99})
        for (bool model : {false, true}) {
            auto const pages = std::max<int64_t>(1, static_cast<int64_t>(part * static_cast<double>(need) / page));
            if (::mount("tmpfs", small.c_str(), "tmpfs", 0, acc::concat("size=", pages * page).c_str()) != 0) {
                WARN("not tried: a file system of its own needs rights that this user has not");
                return;
            }
            {
                Saves saves(small);
                std::string code = "none";
                try {
                    if (model) acc::save_model(*saves.model, small, {.max_shard_size = 2000});
                    else saves.save();
                } catch (acc::Error const& e) {
                    code = e.code().name;
                }
                wrong += code != "E_NO_SPACE" || leftovers(small) || fs::exists(small / "model.safetensors.index.json");
                saves.accelerator.backward(saves.model(torch::ones({2, 40})).sum());  // goes on
            }
            ::umount(small.c_str());
            ++trials;
        }
    WARN(trials << " full disks, " << wrong << " wrong");
    CHECK(wrong == 0);
}

TEST_CASE("of two jobs that save under one name one wins", "[checkpoint_writer]") {
    Folder folder;
    int64_t wrong = 0;
    for (int round = 0; round < 10; ++round) {
        auto const dir = folder / std::to_string(round);
        std::array<pid_t, 2> jobs{};
        for (int job = 0; job < 2; ++job) {
            jobs[static_cast<size_t>(job)] = ::fork();
            if (jobs[static_cast<size_t>(job)] != 0) continue;
            Saves saves(folder.path);
            saves.number.value = 100 + job;
            try {
                saves.accelerator.save_state(dir);
                ::_exit(0);
            } catch (acc::Error const& e) {
                ::_exit(e.code() == acc::code::exists ? 1 : 2);
            }
        }
        std::array<int, 2> codes{};
        for (size_t job = 0; job < 2; ++job) {
            int status = 0;
            REQUIRE(::waitpid(jobs[job], &status, 0) == jobs[job]);
            codes[job] = WEXITSTATUS(status);
        }
        Saves fresh(folder.path);
        fresh.accelerator.load_state(dir);  // whole, and of one of them
        wrong += codes[0] + codes[1] != 1 || fresh.number.value != (codes[0] == 0 ? 100 : 101);
    }
    CHECK(wrong == 0);
    CHECK_FALSE(leftovers(folder.path));
    if (::geteuid() != 0) {  // root may write anywhere
        fs::permissions(folder.path, fs::perms::owner_read | fs::perms::owner_exec);
        Saves saves(folder.path);
        CHECK(code_of([&] { saves.accelerator.save_state(folder / "x"); }) == acc::code::io);
        fs::permissions(folder.path, fs::perms::owner_all);
    }
}
