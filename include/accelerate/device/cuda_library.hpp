#pragma once

#include <c10/core/Allocator.h>
#include <dlfcn.h>

#include <filesystem>
#include <string>

namespace accelerate::device {

/// A library of LibTorch's CUDA build, loaded, and why it could not be (then the handle is null).
struct CudaLibrary {
    void* handle = nullptr;
    std::string why;

    /// By its name, else from the folder of the LibTorch that this program runs with.
    static CudaLibrary load(char const* name) {
        if (auto* const handle = ::dlopen(name, RTLD_NOW | RTLD_GLOBAL)) return {handle, {}};
        std::string why = ::dlerror();
        if (Dl_info here; ::dladdr(c10::GetAllocator(at::kCPU), &here) != 0 && here.dli_fname != nullptr) {  // an object that lies in LibTorch
            auto const beside = std::filesystem::path(here.dli_fname).parent_path() / name;
            if (auto* const handle = ::dlopen(beside.c_str(), RTLD_NOW | RTLD_GLOBAL)) return {handle, {}};
            why = ::dlerror();
        }
        return {nullptr, why};
    }

    /// Sets `function` to what is called `name` there, or in a library that it needs; false where there is none.
    template <class Function>
    bool find(char const* name, Function*& function) const {
        function = handle == nullptr ? nullptr : reinterpret_cast<Function*>(::dlsym(handle, name));
        return function != nullptr;
    }
};

}  // namespace accelerate::device
