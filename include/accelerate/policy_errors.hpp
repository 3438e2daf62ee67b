#pragma once

#include <accelerate/data/policy.hpp>
#include <accelerate/device/cpu.hpp>
#include <accelerate/precision/fp32.hpp>
#include <accelerate/sharding/none.hpp>
#include <accelerate/sharding/policy.hpp>
#include <accelerate/training.hpp>

namespace accelerate {
namespace detail {

// What a type has of a policy, member by member: the concepts say it too, but compilers print those as expressions and no remedy.
template <class D>
struct DeviceMembers {
    static constexpr bool communicator = requires { requires comm::communicator<typename D::communicator>; };
    static constexpr bool type = requires { { D::type } -> std::convertible_to<at::DeviceType>; };
    static constexpr bool name = requires { { D::name } -> std::convertible_to<char const*>; };
    static constexpr bool current = requires { { D::current() } -> std::same_as<at::Device>; };
    static constexpr bool synchronize = requires { D::synchronize(); };
    static constexpr bool any = communicator || type || current || synchronize;
    static constexpr bool all = communicator && type && name && current && synchronize;
};

template <class P, class Device = precision::detail::SomeDevice>
struct PrecisionMembers {
    static constexpr bool parameter = requires { { P::parameter } -> std::convertible_to<at::ScalarType>; };
    static constexpr bool compute = requires { { P::compute } -> std::convertible_to<at::ScalarType>; };
    static constexpr bool reduction = requires { { P::reduction } -> std::convertible_to<at::ScalarType>; };
    static constexpr bool master = requires { { P::master } -> std::convertible_to<at::ScalarType>; };
    static constexpr bool name = requires { { P::name } -> std::convertible_to<char const*>; };
    static constexpr bool impl = requires { typename P::template impl<precision::detail::SomeImpl>; };
    static constexpr bool scope = requires { typename P::template scope<Device>; requires std::default_initializable<typename P::template scope<Device>>; requires std::constructible_from<typename P::template scope<Device>, bool>; };
    static constexpr bool pause = requires { requires std::default_initializable<typename P::template pause<Device>>; };
    static constexpr bool parameters_changed = requires { P::parameters_changed(); };
    static constexpr bool scaler = [] {
        if constexpr (compute) return P::compute != at::kHalf || requires { typename P::scaler; };
        else return true;
    }();
    static constexpr bool any = parameter || compute || reduction || master || scope || pause || parameters_changed;
    static constexpr bool all = scaler && parameter && compute && reduction && master && name && impl && scope && pause && parameters_changed;
};

template <class M>
struct ModelMembers {
    static constexpr bool before_forward = requires(M& m) { m.before_forward(); };
    static constexpr bool before_backward = requires(M& m, at::Tensor const& loss) { m.before_backward(loss); };
    static constexpr bool after_backward = requires(M& m) { m.after_backward(); };
    static constexpr bool owns_everything = requires { { M::owns_everything } -> std::convertible_to<bool>; };
    static constexpr bool sum_over_ranks = requires(M const& m, double value) { { m.sum_over_ranks(value) } -> std::convertible_to<double>; };
    static constexpr bool replicas = requires(M const& m) { { m.replicas() } -> std::convertible_to<int64_t>; };
    static constexpr bool these = before_forward && before_backward && after_backward && owns_everything && sum_over_ranks && replicas;
};

template <class S, class Device>
struct ShardingMembers {
    static constexpr bool name = requires { { S::name } -> std::convertible_to<char const*>; };
    static constexpr bool placement = requires { requires accelerate::placement<typename S::template placement<Device>>; };
    static constexpr bool model = requires { typename S::template model<Device>; };
    static constexpr bool any = placement || model;
};
template <class S, class Device>
struct ModelOf {
    using type = void;
};
template <class S, class Device>
    requires requires { typename S::template model<Device>; }
struct ModelOf<S, Device> {
    using type = typename S::template model<Device>;
};

template <class L>
struct LoaderMembers {
    static constexpr bool name = requires { { L::name } -> std::convertible_to<char const*>; };
    static constexpr bool prepared = requires { typename L::template prepared<AnyLoader>; };
};

}  // namespace detail

template <class Device, class Precision, class Sharding, class Loader>
class Accelerator;

namespace detail {
/// What takes the place of an accelerator whose policies cannot be, so that one mistake is one error.
template <class>
struct Substitute {
    using type = Accelerator<device::BasicCpu<comm::Self>, precision::Fp32, sharding::None, loader::Stateful<>>;
};
}  // namespace detail

/// The accelerator of four types that are not a device, a precision, a sharding and a loader policy: it says what is missing.
template <class Device, class Precision, class Sharding, class Loader>
class Accelerator : public detail::Substitute<Device>::type {
    using D = detail::DeviceMembers<Device>;
    using P = detail::PrecisionMembers<Precision>;
    using S = detail::ShardingMembers<Sharding, Device>;
    using M = detail::ModelMembers<typename detail::ModelOf<Sharding, Device>::type>;
    using L = detail::LoaderMembers<Loader>;
    // Which members are asked for: none of what is no policy of its kind at all.
    static constexpr bool d = D::any, p = P::any, s = D::communicator && S::any, m = s && S::model, l = L::prepared || L::name;

    static_assert(d, "Accelerator<Device, Precision, Sharding, Loader>: the first argument is no device policy; see accelerate/device/policy.hpp");
    static_assert(!d || D::communicator, "device policy: give it `communicator`, the type through which its ranks talk, as in using communicator = acc::comm::Mpi");
    static_assert(!d || D::type, "device policy: give it `type`, LibTorch's name for it, as in static constexpr at::DeviceType type = at::kCPU");
    static_assert(!d || D::name, "device policy: give it `name`, as in static constexpr char const* name = \"cpu\"");
    static_assert(!d || D::current, "device policy: give it `current`, the device of the calling rank, as in static at::Device current()");
    static_assert(!d || D::synchronize, "device policy: give it `synchronize`, which waits for the device's work, as in static void synchronize()");
    static_assert(!D::all || device_policy<Device>, "device policy: it does not satisfy accelerate::device_policy; see accelerate/device/policy.hpp");

    static_assert(p, "Accelerator<Device, Precision, Sharding, Loader>: the second argument is no precision policy; see accelerate/precision/policy.hpp");
    static_assert(!p || P::parameter, "precision policy: give it `parameter`, the dtype of parameters, as in static constexpr at::ScalarType parameter = at::kFloat");
    static_assert(!p || P::compute, "precision policy: give it `compute`, the dtype of arithmetic, as in static constexpr at::ScalarType compute = at::kBFloat16");
    static_assert(!p || P::reduction, "precision policy: give it `reduction`, the dtype in which gradients are reduced, as in static constexpr at::ScalarType reduction = at::kFloat");
    static_assert(!p || P::master, "precision policy: give it `master`, the dtype that the optimizer updates, as in static constexpr at::ScalarType master = at::kFloat");
    static_assert(!p || P::name, "precision policy: give it `name`, as in static constexpr char const* name = \"bf16\"");
    static_assert(!p || P::impl, "precision policy: give it `impl`, what a linear layer becomes, as in template <class Impl> using impl = Impl");
    static_assert(!p || P::scope, "precision policy: give it `scope<Device>`, made from nothing or a bool, as in template <class Device> using scope = acc::precision::NoScope");
    static_assert(!p || P::pause, "precision policy: give it `pause<Device>`, made from nothing, as in template <class Device> using pause = acc::precision::NoScope");
    static_assert(!p || P::parameters_changed, "precision policy: give it `parameters_changed`, called after each update, as in static void parameters_changed() {}");
    static_assert(!p || P::scaler, "precision policy: it computes in fp16, where small gradients vanish; give it `scaler`, as in using scaler = acc::precision::DynamicScaler");
    static_assert(!P::all || precision_policy<Precision>, "precision policy: it does not satisfy accelerate::precision_policy; see accelerate/precision/policy.hpp");

    static_assert(!D::communicator || S::any, "Accelerator<Device, Precision, Sharding, Loader>: the third argument is no sharding policy; see accelerate/sharding/policy.hpp");
    static_assert(!s || S::name, "sharding policy: give it `name`, as in static constexpr char const* name = \"Ddp\"");
    static_assert(!s || S::placement, "sharding policy: give it `placement<Device>`, how units are held, as in template <class Device> using placement = acc::place::Resident");
    static_assert(!s || S::model, "sharding policy: give it `model<Device>`, what a prepared model becomes; see accelerate/sharding/policy.hpp");
    static_assert(!m || M::before_forward, "sharding policy: give its model `before_forward`, as in void before_forward()");
    static_assert(!m || M::before_backward, "sharding policy: give its model `before_backward`, as in void before_backward(at::Tensor const& loss)");
    static_assert(!m || M::after_backward, "sharding policy: give its model `after_backward`, as in void after_backward()");
    static_assert(!m || M::owns_everything, "sharding policy: give its model `owns_everything`, whether each rank updates all parameters, as in static constexpr bool owns_everything = true");
    static_assert(!m || M::sum_over_ranks, "sharding policy: give its model `sum_over_ranks`, as in double sum_over_ranks(double value) const");
    static_assert(!m || M::replicas, "sharding policy: give its model `replicas`, as in int64_t replicas() const");
    static_assert(!(m && M::these && S::name && S::placement) || sharding_policy<Sharding, Device>,
                  "sharding policy: its model does not satisfy sharding::trained_model; derive it from acc::sharding::FlatModel, and construct it from (ModelParts, communicator)");

    static_assert(l, "Accelerator<Device, Precision, Sharding, Loader>: the fourth argument is no loader policy; see accelerate/data/policy.hpp");
    static_assert(!l || L::name, "loader policy: give it `name`, as in static constexpr char const* name = \"Stateful\"");
    static_assert(!l || L::prepared, "loader policy: give it `prepared<Loader>`, what a loader becomes, as in template <class Loader> using prepared = acc::data::Prepared<Loader>");
    static_assert(!(l && L::name && L::prepared) || loader_policy<Loader>, "loader policy: its prepared<Loader> must be made from (Loader, data::Context), be a range and have state_dict; see accelerate/data/policy.hpp");

public:
    template <class... Communicator>
    explicit Accelerator(accelerator_options given = {}, Communicator const&...) : detail::Substitute<Device>::type(std::move(given)) {}
};

}  // namespace accelerate
