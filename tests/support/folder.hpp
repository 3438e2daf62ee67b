#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

/// A folder that is gone at the end of the test.
struct Folder {
    Folder() : path(std::filesystem::temp_directory_path() / ("accelerate_test_" + std::to_string(::getpid()) + "_" + std::to_string(next++))) { std::filesystem::create_directories(path); }
    ~Folder() { std::filesystem::remove_all(path); }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;

    std::filesystem::path operator/(std::string const& name) const { return path / name; }
    size_t files() const { return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator())); }

    std::filesystem::path write(std::string const& name, std::string const& bytes) const {
        std::filesystem::create_directories((path / name).parent_path());
        std::ofstream(path / name, std::ios::binary) << bytes;
        return path / name;
    }
    template <class T>
    std::filesystem::path write(std::string const& name, std::vector<T> const& numbers, std::string const& header = {}) const {
        return write(name, header + std::string(reinterpret_cast<char const*>(numbers.data()), numbers.size() * sizeof(T)));
    }

    std::filesystem::path path;
    static inline int next = 0;
};
