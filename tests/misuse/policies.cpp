// Policies of a user's. As it stands this file is right and each policy satisfies its concept; each WRONG_name leaves a member out,
// and the compiler must then print the text that stands above it, in few lines. Run by tests/misuse.py.
#include <torch/torch.h>

#include <accelerate.hpp>

namespace acc = accelerate;

struct OwnDevice {
#ifndef WRONG_device_communicator  // device policy: give it `communicator
    using communicator = acc::comm::Self;
#endif
#ifndef WRONG_device_type  // device policy: give it `type
    static constexpr at::DeviceType type = at::kCPU;
#endif
#ifndef WRONG_device_name  // device policy: give it `name
    static constexpr char const* name = "own";
#endif
#ifndef WRONG_device_current  // device policy: give it `current
    static at::Device current() { return at::kCPU; }
#endif
#ifndef WRONG_device_synchronize  // device policy: give it `synchronize
    static void synchronize() {}
#endif
};

struct OwnPrecision {
#ifndef WRONG_precision_parameter  // precision policy: give it `parameter
    static constexpr at::ScalarType parameter = at::kFloat;
#endif
#ifndef WRONG_precision_compute  // precision policy: give it `compute
    static constexpr at::ScalarType compute = at::kHalf;
#endif
#ifndef WRONG_precision_scaler  // precision policy: it computes in fp16, where small gradients vanish; give it `scaler`
    using scaler = acc::precision::DynamicScaler;
#endif
#ifndef WRONG_precision_reduction  // precision policy: give it `reduction
    static constexpr at::ScalarType reduction = at::kFloat;
#endif
#ifndef WRONG_precision_master  // precision policy: give it `master
    static constexpr at::ScalarType master = at::kFloat;
#endif
#ifndef WRONG_precision_name  // precision policy: give it `name
    static constexpr char const* name = "own";
#endif
#ifndef WRONG_precision_impl  // precision policy: give it `impl
    template <class Impl>
    using impl = Impl;
#endif
#ifndef WRONG_precision_scope  // precision policy: give it `scope
    template <class Device>
    using scope = acc::precision::NoScope;
#endif
#ifndef WRONG_precision_pause  // precision policy: give it `pause
    template <class Device>
    using pause = acc::precision::NoScope;
#endif
#ifndef WRONG_precision_parameters_changed  // precision policy: give it `parameters_changed
    static void parameters_changed() {}
#endif
};

class OwnModel : public acc::sharding::FlatModel {
public:
    template <class Communicator>
    OwnModel(acc::sharding::ModelParts parts, Communicator const&) : FlatModel(std::move(parts.parameters)) {
        adopt_whole();
    }
#ifndef WRONG_model_before_forward  // sharding policy: give its model `before_forward`
    void before_forward() {}
#endif
#ifndef WRONG_model_before_backward  // sharding policy: give its model `before_backward`
    void before_backward(at::Tensor const&) {}
#endif
#ifndef WRONG_model_after_backward  // sharding policy: give its model `after_backward`
    void after_backward() {
        repair_all();
        if (window_.closed()) stage_ = acc::sharding::Stage::Reduced;
    }
#endif
#ifndef WRONG_model_owns_everything  // sharding policy: give its model `owns_everything`
    static constexpr bool owns_everything = true;
#endif
#ifndef WRONG_model_sum_over_ranks  // sharding policy: give its model `sum_over_ranks`
    double sum_over_ranks(double value) const { return value; }
#endif
#ifndef WRONG_model_replicas  // sharding policy: give its model `replicas`
    int64_t replicas() const { return 1; }
#endif
};

struct OwnSharding {
#ifndef WRONG_sharding_name  // sharding policy: give it `name
    static constexpr char const* name = "Own";
#endif
#ifndef WRONG_sharding_placement  // sharding policy: give it `placement
    template <class Device>
    using placement = acc::place::Resident;
#endif
#ifndef WRONG_sharding_model  // sharding policy: give it `model
    template <class Device>
    using model = OwnModel;
#endif
};

struct OwnLoader {
#ifndef WRONG_loader_name  // loader policy: give it `name
    static constexpr char const* name = "Own";
#endif
#ifndef WRONG_loader_prepared  // loader policy: give it `prepared
    template <class Loader>
    using prepared = acc::data::Prepared<Loader>;
#endif
};

using Run = acc::Accelerator<OwnDevice, OwnPrecision, OwnSharding, OwnLoader>;

double train() {
    Run accelerator{{.gradient_accumulation_steps = 2}};
#ifdef WRONG  // what comes after is right in any case, and long to compile
    return 0;
#else
    auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(4, 1), acc::optim::Sgd{.lr = 0.1});
    auto window = accelerator.accumulate(model);
    auto const loss = model(torch::ones({2, 4})).mean();
    accelerator.backward(loss);
    optimizer.step();
    return loss.item<double>();
#endif
}
