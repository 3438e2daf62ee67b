#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <accelerate/core/config.hpp>
#include <accelerate/core/error.hpp>
#include <accelerate/device/cuda_library.hpp>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::device {

namespace detail {

/// The functions of NVRTC and of the CUDA driver that a kernel needs, found in the libraries that LibTorch's CUDA build loads for itself.
/// Written out here because no CUDA header is needed to build; they are part of CUDA's stable C interface.
struct KernelCompiler {
    int (*create)(void** program, char const* source, char const* name, int headers, char const* const* texts, char const* const* names) = nullptr;
    int (*compile)(void* program, int options, char const* const* texts) = nullptr;
    int (*log_size)(void* program, size_t* bytes) = nullptr;
    int (*log)(void* program, char* text) = nullptr;
    int (*binary_size)(void* program, size_t* bytes) = nullptr;
    int (*binary)(void* program, char* bytes) = nullptr;
    int (*destroy)(void** program) = nullptr;
    int (*init)(unsigned flags) = nullptr;
    int (*attribute)(int* value, int attribute, int device) = nullptr;
    int (*current_context)(void** context) = nullptr;
    int (*set_context)(void* context) = nullptr;
    int (*primary_context)(void** context, int device) = nullptr;
    int (*load_module)(void** module, void const* binary) = nullptr;
    int (*function)(void** function, void* module, char const* name) = nullptr;
    int (*launch)(void* function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned shared, void* stream, void** parameters, void** extra) = nullptr;
    std::string why;  ///< why there is none; empty: all were found

    static KernelCompiler const& instance() {
        static KernelCompiler const compiler;
        return compiler;
    }

    /// The device's primary context, which LibTorch uses as well, for the calling thread where it has none yet.
    void enter(int device) const {
        void* context = nullptr;
        if (current_context(&context) == 0 && context != nullptr) return;
        if (primary_context(&context, device) == 0) set_context(context);
    }

private:
    KernelCompiler() {
        auto const library = CudaLibrary::load("libcaffe2_nvrtc.so");  // needs both NVRTC and the driver, and knows where they are
        why = library.why;
        auto const find = [&](char const* name, auto*& f) {
            if (why.empty() && !library.find(name, f)) why = concat(name, " is not in LibTorch's libraries");
        };
        find("nvrtcCreateProgram", create), find("nvrtcCompileProgram", compile), find("nvrtcGetProgramLogSize", log_size), find("nvrtcGetProgramLog", log);
        find("nvrtcGetCUBINSize", binary_size), find("nvrtcGetCUBIN", binary), find("nvrtcDestroyProgram", destroy);
        find("cuInit", init), find("cuDeviceGetAttribute", attribute), find("cuCtxGetCurrent", current_context), find("cuCtxSetCurrent", set_context);
        find("cuDevicePrimaryCtxRetain", primary_context), find("cuModuleLoadData", load_module), find("cuModuleGetFunction", function), find("cuLaunchKernel", launch);
    }
};

}  // namespace detail

/// A kernel for NVIDIA GPUs, compiled for the one at hand when it is first asked for there (some 0.1 s), by the run-time compiler that comes with
/// LibTorch's CUDA build (NVRTC): a program is built without a CUDA compiler.
class CudaKernel {
public:
    /// `source`, CUDA C++, defines `extern "C" __global__ void name(...)`; `options` are NVRTC's, without the architecture.
    CudaKernel(std::string name, std::string source, std::vector<std::string> options = {}) : name_(std::move(name)), source_(std::move(source)), options_(std::move(options)) {}
    CudaKernel(CudaKernel const&) = delete;
    CudaKernel& operator=(CudaKernel const&) = delete;

    /// Why it cannot run on that GPU; empty where it can.
    std::string const& why_not(at::Device device) const { return compiled(device).why; }

    /// Enqueues it on the calling thread's current stream of `device`, where `why_not` is empty. Arguments must have the types of the kernel's
    /// parameters, pointers those of the GPU's memory.
    template <class... Arguments>
    void launch(at::Device device, int64_t blocks, unsigned threads, Arguments... arguments) const {
        auto const& kernel = compiled(device);
        check(kernel.why.empty(), code::internal, name_, ": ", kernel.why);
        c10::DeviceGuard const guard(device);
        auto const& cuda = detail::KernelCompiler::instance();
        cuda.enter(device.index());
        auto const stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(device);
        void* parameters[] = {&arguments..., nullptr};  // none of size zero
        auto const result = cuda.launch(kernel.function, static_cast<unsigned>(blocks), 1, 1, threads, 1, 1, 0, stream.native_handle(), parameters, nullptr);
        check(result == 0, code::internal, name_, ": cuLaunchKernel failed with CUDA error ", result);
    }

private:
    struct Compiled {
        void* function = nullptr;
        std::string why;
    };

    Compiled const& compiled(at::Device device) const {
        std::lock_guard const lock(mutex_);
        auto const [place, fresh] = by_device_.try_emplace(device.index());
        if (fresh) place->second = compile(device);
        return place->second;
    }

    Compiled compile(at::Device device) const {
        auto const& cuda = detail::KernelCompiler::instance();
        if (!cuda.why.empty()) return {nullptr, cuda.why};
        c10::DeviceGuard const guard(device);
        int major = 0, minor = 0;
        constexpr int capability_major = 75, capability_minor = 76;
        cuda.init(0);
        cuda.attribute(&major, capability_major, device.index()), cuda.attribute(&minor, capability_minor, device.index());
        auto options = options_;
        options.push_back(concat("--gpu-architecture=sm_", major, minor));
        options.emplace_back("--std=c++17");
        std::vector<char const*> texts;
        for (auto const& o : options) texts.push_back(o.c_str());
        void* program = nullptr;
        if (auto const e = cuda.create(&program, source_.c_str(), name_.c_str(), 0, nullptr, nullptr); e != 0) return {nullptr, concat("nvrtcCreateProgram failed with error ", e)};
        auto const binary = [&]() -> std::pair<std::string, std::string> {  // and why there is none
            size_t size = 0;
            if (cuda.compile(program, static_cast<int>(texts.size()), texts.data()) != 0) {
                cuda.log_size(program, &size);
                std::string log(size, '\0');
                cuda.log(program, log.data());
                return {{}, "NVRTC: " + log};
            }
            cuda.binary_size(program, &size);
            std::string bytes(size, '\0');
            cuda.binary(program, bytes.data());
            return {bytes, {}};
        }();
        cuda.destroy(&program);
        if (!binary.second.empty()) return {nullptr, binary.second};
        cuda.enter(device.index());
        void *module = nullptr, *function = nullptr;  // the module stays as long as the process
        if (auto const e = cuda.load_module(&module, binary.first.data()); e != 0) return {nullptr, concat("cuModuleLoadData failed with CUDA error ", e)};
        if (auto const e = cuda.function(&function, module, name_.c_str()); e != 0) return {nullptr, concat("cuModuleGetFunction failed with CUDA error ", e)};
        return {function, {}};
    }

    std::string const name_, source_;
    std::vector<std::string> const options_;
    mutable std::mutex mutex_;
    mutable std::map<int, Compiled> by_device_;
};

}  // namespace accelerate::device
