#pragma once

#include <c10/core/DeviceType.h>
#include <c10/core/ScalarType.h>

#include <concepts>

namespace accelerate {
namespace precision::detail {
/// Stands for a device policy and for a module where a concept asks about templates.
struct SomeDevice {
    static constexpr at::DeviceType type = at::kCPU;
};
struct SomeImpl {};
}  // namespace precision::detail

/// A precision policy: in which dtypes a model is kept, computed, reduced and updated.
///   `parameter`, `compute`, `reduction`, `master`   the four dtypes
///   `name`                  what `mixed_precision()` returns: "no", "tf32", "bf16"
///   `impl<Impl>`            what an arithmetic leaf (`Linear<S>`) becomes; `Impl` itself where nothing changes; derived from
///                           `precision::WeightKeeper` where it casts its weight, so that it need not at every use
///   `scope<Device>`         holds the precision for forward and loss while alive; made from nothing or from a bool (false: an
///                           island of full precision). Neither copied nor moved; kept in a std::optional where it outlives a
///                           function. An empty type costs nothing.
///   `pause<Device>`         full precision inside such a scope: backward and the optimizer step
///   `parameters_changed()`  called after each optimizer step and by who writes into parameters otherwise: cached casts are stale
///   `prepare(model, fp8_layers, device)`  optional: what it does to a model before anything else, the device to which that will go
///   `after_update(model)`   optional: makes what is called after each optimizer step with the device and `max_over_ranks(tensor)`
///   `state_dict(model)`, `load_state_dict(model, state)`  optional: what it remembers of a model from step to step, for checkpoints
///   `low_bit_level`         optional: what optimizers keep in less unless told otherwise (see `optim::low_bit_storage`)
///   `scaler`                only where the range of `compute` is too small for gradients (fp16): `precision::DynamicScaler` or the like
/// `precision::Fp32` is the shortest model of how to write one.
template <class P, class Device = precision::detail::SomeDevice>
concept precision_policy = requires {
    { P::parameter } -> std::convertible_to<at::ScalarType>;
    { P::compute } -> std::convertible_to<at::ScalarType>;
    { P::reduction } -> std::convertible_to<at::ScalarType>;
    { P::master } -> std::convertible_to<at::ScalarType>;
    { P::name } -> std::convertible_to<char const*>;
    typename P::template impl<precision::detail::SomeImpl>;
    requires std::default_initializable<typename P::template scope<Device>>;
    requires std::constructible_from<typename P::template scope<Device>, bool>;
    requires std::default_initializable<typename P::template pause<Device>>;
    P::parameters_changed();
    requires P::compute != at::kHalf || requires { typename P::scaler; };
};

namespace precision {

/// A scope that does nothing.
struct NoScope {
    NoScope() = default;
    explicit NoScope(bool) {}
    ~NoScope() {}  // user-provided, so that a variable of it never counts as unused
    NoScope(NoScope const&) = delete;
    NoScope& operator=(NoScope const&) = delete;
};

}  // namespace precision
}  // namespace accelerate
