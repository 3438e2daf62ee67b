#pragma once

#include <accelerate/core/random_state.hpp>
#include <accelerate/precision/autocast.hpp>
#include <optional>

namespace accelerate::module {

/// What a forward on one type of device depends on besides its arguments: autocast and the random generator. Taken when made.
class DeviceState {
public:
    explicit DeviceState(at::DeviceType device) : device_(device), autocast_(precision::AutocastState::of(device)), random_(random_state(device)) {}

    /// While alive everything is as it was, except that no cast is cached; then it is again as it was found.
    class Restored {
    public:
        explicit Restored(DeviceState const& state) : state_(state), autocast_(state.device_, state.autocast_.dtype, state.autocast_.enabled, false), found_(random_state(state.device_)) { set_random_state(state.device_, state.random_); }
        ~Restored() { set_random_state(state_.device_, found_); }
        Restored(Restored const&) = delete;
        Restored& operator=(Restored const&) = delete;

    private:
        DeviceState const& state_;
        precision::Autocast autocast_;
        at::Tensor found_;
    };

private:
    at::DeviceType device_;
    precision::AutocastState autocast_;
    at::Tensor random_;
};

/// The same of the CPU and of one more device, if there is one that computes.
class ForwardState {
public:
    explicit ForwardState(at::DeviceType device) : cpu_(at::kCPU) {
        if (device != at::kCPU && at::autocast::is_autocast_available(device)) device_.emplace(device);
    }

    class Restored {
    public:
        explicit Restored(ForwardState const& state) : cpu_(state.cpu_) {
            if (state.device_) device_.emplace(*state.device_);
        }

    private:
        DeviceState::Restored cpu_;
        std::optional<DeviceState::Restored> device_;
    };

private:
    DeviceState cpu_;
    std::optional<DeviceState> device_;
};

/// While alive, autocast keeps no casts of weights.
class WithoutCastCache {
public:
    WithoutCastCache() : before_(at::autocast::is_autocast_cache_enabled()) { at::autocast::set_autocast_cache_enabled(false); }
    ~WithoutCastCache() { at::autocast::set_autocast_cache_enabled(before_); }
    WithoutCastCache(WithoutCastCache const&) = delete;
    WithoutCastCache& operator=(WithoutCastCache const&) = delete;

private:
    bool before_;
};

}  // namespace accelerate::module
