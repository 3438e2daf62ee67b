#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <memory>
#include <mutex>
#include <optional>

namespace accelerate::module {

/// What runs in the place of every operation that this thread calls while an `Interception` of it is alive.
struct Interceptor : c10::DebugInfoBase {
    using Handle = void (*)(Interceptor& self, c10::OperatorHandle const& op, c10::DispatchKeySet keys, torch::jit::Stack& stack);
    explicit Interceptor(Handle h) : handle(h) {}
    Handle handle;
};

/// LibTorch reserves this key for deferred initialisation and gives it no kernels. It stands before autograd and devices, so that
/// whoever holds it sees each operation as it was called.
inline constexpr auto intercept_key = c10::DispatchKey::DeferredInit;

// The interceptor of this thread is kept in a slot of LibTorch's own, because only one shared object of a program can register the
// fallback: it must find what another one, with hidden symbols, has set.
inline c10::DebugInfoKind intercept_slot() { return c10::DebugInfoKind::TEST_INFO_2; }

/// The interceptor in force on this thread; none gives nullptr.
inline Interceptor* interceptor() { return static_cast<Interceptor*>(c10::ThreadLocalDebugInfo::get(intercept_slot())); }

namespace detail {

inline void intercept(c10::OperatorHandle const& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
    auto* const in_force = interceptor();
    in_force->handle(*in_force, op, keys, *stack);
}

inline void register_interceptor() {
    static std::mutex mutex;
    static std::optional<c10::RegistrationHandleRAII> registration;
    std::lock_guard const lock(mutex);
    auto& dispatcher = c10::Dispatcher::singleton();
    if (dispatcher.hasBackendFallbackForDispatchKey(intercept_key)) return;  // by us before, or by another shared object
    registration.emplace(dispatcher.registerFallback(intercept_key, c10::KernelFunction::makeFromBoxedFunction<&intercept>(), "accelerate"));
}

}  // namespace detail

/// While alive, `interceptor` handles every operation that this thread calls. Nests: the innermost is in force.
class [[nodiscard]] Interception {
public:
    explicit Interception(Interceptor& interceptor)
        : before_((detail::register_interceptor(), c10::impl::tls_is_dispatch_key_included(intercept_key))),
          slot_(intercept_slot(), std::shared_ptr<c10::DebugInfoBase>(std::shared_ptr<void>(), &interceptor)) {
        c10::impl::tls_set_dispatch_key_included(intercept_key, true);
    }
    ~Interception() { c10::impl::tls_set_dispatch_key_included(intercept_key, before_); }
    Interception(Interception const&) = delete;
    Interception& operator=(Interception const&) = delete;

private:
    bool before_;
    c10::DebugInfoGuard slot_;
};

}  // namespace accelerate::module
