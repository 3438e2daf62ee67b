#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

/// What a disk may hold after the power was cut. Only what was synced is certain: the bytes of a file since its last fsync, the names in a
/// folder since that folder's. Of everything younger each piece may be there or not, whatever came before what (Pillai et al., "All File Systems
/// Are Not Created Equal", OSDI 2014); the bytes of a file that was not synced may be missing, zero, or half there.
class PowerCut {
public:
    /// What is in `root` now is certain.
    explicit PowerCut(std::filesystem::path root) : root_(std::move(root)) {
        walk(root_, certain_);
        moment();
    }

    /// To be told of what the program does, when it has done it.
    void synced(int fd) {
        struct stat is {};
        ::fstat(fd, &is);
        auto const path = std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd));
        certain_[is.st_ino] = S_ISDIR(is.st_mode) ? folder(path) : file(path);
    }
    /// A new file or folder: the number under which the disk knows it may have been another one's.
    void made(std::filesystem::path const& path) { certain_.erase(number(path)); }
    /// The power may be cut here.
    void moment() {
        Nodes now;
        walk(root_, now);
        moments_.push_back({now, certain_});
    }

    size_t moments() const { return moments_.size(); }
    static constexpr int ways = 10;

    /// Makes `to` what may be left when the power is cut at a moment, in one of the ways.
    void leave(size_t moment, int way, std::filesystem::path const& to) const {
        std::mt19937_64 chance(moment * 31 + static_cast<size_t>(way));
        std::filesystem::remove_all(to);
        make(moments_[moment], number(root_), to, way, chance);
    }

private:
    using Number = ino_t;
    struct Node {
        bool is_folder = false;
        std::map<std::string, Number> names;
        std::string bytes;
    };
    using Nodes = std::map<Number, Node>;
    struct Moment {
        Nodes now, certain;
    };

    static Number number(std::filesystem::path const& path) {
        struct stat is {};
        ::lstat(path.c_str(), &is);
        return is.st_ino;
    }
    static Node folder(std::filesystem::path const& path) {
        Node node{true, {}, {}};
        for (auto const& entry : std::filesystem::directory_iterator(path)) node.names[entry.path().filename()] = number(entry.path());
        return node;
    }
    static Node file(std::filesystem::path const& path) {
        std::ifstream in(path, std::ios::binary);
        return {false, {}, {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()}};
    }
    static void walk(std::filesystem::path const& path, Nodes& nodes) {
        nodes[number(path)] = folder(path);
        for (auto const& entry : std::filesystem::directory_iterator(path)) {
            if (entry.is_directory()) walk(entry.path(), nodes);
            else nodes[number(entry.path())] = file(entry.path());
        }
    }

    /// The first ways are the extremes: nothing that is not certain (0), all names but none of the bytes (1), all names and zeros (2), everything (3).
    static void make(Moment const& at, Number n, std::filesystem::path const& to, int way, std::mt19937_64& chance) {
        auto const now = at.now.find(n), certain = at.certain.find(n);
        bool const is_folder = now != at.now.end() ? now->second.is_folder : certain != at.certain.end() && certain->second.is_folder;
        auto const younger = [&] { return way == 0 ? false : way <= 3 || chance() % 2 == 0; };
        if (!is_folder) {
            std::string bytes;
            if (certain != at.certain.end()) bytes = certain->second.bytes;
            bool const changed = now != at.now.end() && (certain == at.certain.end() || now->second.bytes != bytes);
            if (changed) {
                auto const& all = now->second.bytes;
                switch (way <= 3 ? way : static_cast<int>(chance() % 4)) {
                    case 0: break;
                    case 1: bytes.clear(); break;
                    case 2: bytes = std::string(all.size(), '\0'); break;
                    default: bytes = way == 3 ? all : all.substr(0, all.size() / 2) + std::string(all.size() - all.size() / 2, '\0');
                }
            }
            std::ofstream(to, std::ios::binary) << bytes;
            return;
        }
        std::filesystem::create_directories(to);
        std::map<std::string, Number> const none, &old = certain != at.certain.end() ? certain->second.names : none, &young = now != at.now.end() ? now->second.names : none;
        auto names = old;
        names.insert(young.begin(), young.end());
        for (auto const& [name, unused] : names) {
            auto const before = old.find(name), after = young.find(name);
            bool const same = before != old.end() && after != young.end() && before->second == after->second;
            auto const& chosen = same || !younger() ? old : young;
            if (auto const it = chosen.find(name); it != chosen.end()) make(at, it->second, to / name, way, chance);
        }
    }

    std::filesystem::path root_;
    Nodes certain_;
    std::vector<Moment> moments_;
};
