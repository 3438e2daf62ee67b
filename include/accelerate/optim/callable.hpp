#pragma once

#include <memory>
#include <type_traits>
#include <utility>

namespace accelerate::optim {

template <class Signature>
class Callable;

/// A function given by the user as an option: a predicate on names, a factor of the learning rate. Copies share one object, so
/// that copying a recipe never copies what a lambda has captured; it is called as const. Used when things are bound and once a
/// schedule step, never per parameter in an optimizer step.
template <class R, class... Args>
class Callable<R(Args...)> {
public:
    Callable() = default;

    template <class F>
        requires(!std::is_same_v<std::remove_cvref_t<F>, Callable> && std::is_invocable_r_v<R, F const&, Args...>)
    Callable(F f) : object_(std::make_shared<F const>(std::move(f))), call_([](void const* object, Args... args) -> R {
        return static_cast<R>((*static_cast<F const*>(object))(std::forward<Args>(args)...));
    }) {}

    explicit operator bool() const { return call_ != nullptr; }
    R operator()(Args... args) const { return call_(object_.get(), std::forward<Args>(args)...); }

private:
    std::shared_ptr<void const> object_;
    R (*call_)(void const*, Args...) = nullptr;
};

}  // namespace accelerate::optim
