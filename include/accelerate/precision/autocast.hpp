#pragma once

#include <ATen/autocast_mode.h>

namespace accelerate::precision {

/// What LibTorch's automatic mixed precision is set to on this thread, for one device type.
struct AutocastState {
    bool enabled = false;
    at::ScalarType dtype = at::kFloat;
    bool cache = true;

    static AutocastState of(at::DeviceType device) {
        return {at::autocast::is_autocast_enabled(device), at::autocast::get_autocast_dtype(device), at::autocast::is_autocast_cache_enabled()};
    }
    void set(at::DeviceType device) const {
        at::autocast::set_autocast_enabled(device, enabled);
        at::autocast::set_autocast_dtype(device, dtype);
        at::autocast::set_autocast_cache_enabled(cache);
    }
};

/// Automatic mixed precision for one device type, while alive: operations on LibTorch's list run in `dtype`, those on its fp32
/// list in fp32. Guards nest and may end in any order: what was in force before the first comes back with the end of the last,
/// also when an exception ends them. Weights cast inside are cached until the outermost ends. Belongs to the thread that made it.
class Autocast {
public:
    Autocast(at::DeviceType device, at::ScalarType dtype, bool enabled = true, bool cache = true) : Autocast(device, AutocastState{enabled, dtype, cache}) {}
    ~Autocast() {
        if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
        // One that was opened inside this one and is still open hands back, when it ends, what this one found.
        Autocast** link = &innermost();
        Autocast* inner = nullptr;
        for (; *link != this; link = &(*link)->outer_)
            if ((*link)->device_ == device_) inner = *link;
        *link = outer_;
        if (inner) inner->before_ = before_;
        else before_.set(device_);
    }
    Autocast(Autocast const&) = delete;
    Autocast& operator=(Autocast const&) = delete;

protected:
    Autocast(at::DeviceType device, AutocastState const& state) : device_(device), before_(AutocastState::of(device)), outer_(innermost()) {
        state.set(device);
        at::autocast::increment_nesting();
        innermost() = this;
    }

private:
    static Autocast*& innermost() {
        static thread_local Autocast* guard = nullptr;
        return guard;
    }

    at::DeviceType device_;
    AutocastState before_;
    Autocast* outer_;
};

/// Full precision while alive, inside whatever scope: backward and the optimizer run so. Keeps the cache of the scope around it.
class AutocastPause {
public:
    explicit AutocastPause(at::DeviceType device) : device_(device), enabled_(at::autocast::is_autocast_enabled(device)) {
        if (enabled_) at::autocast::set_autocast_enabled(device_, false);
    }
    ~AutocastPause() {
        if (enabled_) at::autocast::set_autocast_enabled(device_, true);
    }
    AutocastPause(AutocastPause const&) = delete;
    AutocastPause& operator=(AutocastPause const&) = delete;

private:
    at::DeviceType device_;
    bool enabled_;
};

}  // namespace accelerate::precision
