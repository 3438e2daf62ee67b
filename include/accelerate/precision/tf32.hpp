#pragma once

#include <ATen/Context.h>

#include <accelerate/precision/policy.hpp>
#include <mutex>
#include <type_traits>

namespace accelerate::precision {

/// LibTorch's permission to multiply matrices on TF32 units, while alive. It is one for the whole process: where ranks are
/// threads it holds from the first scope that is open to the last.
class AllowTf32 {
public:
    explicit AllowTf32(bool allow = true) : allow_(allow) { change(allow_ ? 1 : 0, allow_ ? 0 : 1); }
    ~AllowTf32() { change(allow_ ? -1 : 0, allow_ ? 0 : -1); }
    AllowTf32(AllowTf32 const&) = delete;
    AllowTf32& operator=(AllowTf32 const&) = delete;

private:
    /// Counts the open scopes of either kind; an island of full precision wins over what is around it.
    static void change(int allowing, int forbidding) {
        static std::mutex mutex;
        static int allowed = 0, forbidden = 0;
        static bool before = false;
        std::lock_guard const lock(mutex);
        auto& context = at::globalContext();
        if (allowed + forbidden == 0) before = context.allowTF32CuBLAS();
        allowed += allowing, forbidden += forbidding;
        context.setAllowTF32CuBLAS(allowed + forbidden == 0 ? before : forbidden == 0);
    }

    bool allow_;
};

/// Fp32 whose matrix products may use the GPU's TF32 units (10 bits of mantissa, some ten times the speed) inside a scope; plain
/// Fp32 on a CPU and on hardware without such units.
struct Tf32 {
    static constexpr at::ScalarType parameter = at::kFloat, compute = at::kFloat, reduction = at::kFloat, master = at::kFloat;
    static constexpr char const* name = "tf32";
    template <class Impl>
    using impl = Impl;
    template <class Device>
    using scope = std::conditional_t<Device::type == at::kCUDA, AllowTf32, NoScope>;
    template <class Device>
    using pause = NoScope;
    static void parameters_changed() {}
};

}  // namespace accelerate::precision
