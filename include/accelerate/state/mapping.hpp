#pragma once

#include <sys/mman.h>

#include <accelerate/state/input_file.hpp>
#include <cerrno>
#include <cstddef>

namespace accelerate::state {

/// A whole file as memory. Private: what is written to it stays in this process.
class Mapping {
public:
    explicit Mapping(InputFile const& file) : size_(static_cast<size_t>(file.size())), data_(::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file.descriptor(), 0)) {
        if (data_ == MAP_FAILED) fail_io("cannot map", file.path(), errno);
    }
    Mapping(Mapping const&) = delete;
    Mapping& operator=(Mapping const&) = delete;
    ~Mapping() { ::munmap(data_, size_); }

    char* data() const { return static_cast<char*>(data_); }

private:
    size_t size_;
    void* data_;
};

}  // namespace accelerate::state
