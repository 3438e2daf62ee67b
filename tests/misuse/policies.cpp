// Policies of a user's. As it stands this file is right and each policy satisfies its concept; each WRONG_name takes one that lacks a
// member, and the compiler must then print the text that stands beside it, in few lines. Run by tests/misuse.py.
#include <torch/torch.h>

#include <accelerate.hpp>
#include <type_traits>

namespace acc = accelerate;

struct Nothing {};
// What a policy gets its `Member` from, or, where that is the one it lacks, nothing.
template <class Lacking, class Member, class Called = Member>
using Unless = std::conditional_t<std::is_same_v<Lacking, Called>, Nothing, Member>;

struct Name {
    static constexpr char const* name = "own";
};

struct Communicator {
    using communicator = acc::comm::Self;
};
struct Type {
    static constexpr at::DeviceType type = at::kCPU;
};
struct Current {
    static at::Device current() { return at::kCPU; }
};
struct Synchronize {
    static void synchronize() {}
};
template <class Lacking = void>
struct OwnDevice : Unless<Lacking, Name>, Unless<Lacking, Communicator>, Unless<Lacking, Type>, Unless<Lacking, Current>, Unless<Lacking, Synchronize> {};

struct Parameter {
    static constexpr at::ScalarType parameter = at::kFloat;
};
struct Compute {
    static constexpr at::ScalarType compute = at::kHalf;
};
struct Scaler {
    using scaler = acc::precision::DynamicScaler;
};
struct Reduction {
    static constexpr at::ScalarType reduction = at::kFloat;
};
struct Master {
    static constexpr at::ScalarType master = at::kFloat;
};
struct Implementation {
    template <class Impl>
    using impl = Impl;
};
struct Scope {
    template <class Device>
    using scope = acc::precision::NoScope;
};
struct Pause {
    template <class Device>
    using pause = acc::precision::NoScope;
};
struct ParametersChanged {
    static void parameters_changed() {}
};
template <class Lacking = void>
struct OwnPrecision : Unless<Lacking, Name>, Unless<Lacking, Parameter>, Unless<Lacking, Compute>, Unless<Lacking, Scaler>, Unless<Lacking, Reduction>, Unless<Lacking, Master>,
                      Unless<Lacking, Implementation>, Unless<Lacking, Scope>, Unless<Lacking, Pause>, Unless<Lacking, ParametersChanged> {};

struct BeforeForward {
    void before_forward() {}
};
struct BeforeBackward {
    void before_backward(at::Tensor const&) {}
};
struct AfterBackward;
struct OwnsEverything {
    static constexpr bool owns_everything = true;
};
struct SumOverRanks {
    double sum_over_ranks(double value) const { return value; }
};
struct Replicas {
    int64_t replicas() const { return 1; }
};
template <class Lacking = void>
class OwnModel : public acc::sharding::FlatModel,
                 public Unless<Lacking, BeforeForward>,
                 public Unless<Lacking, BeforeBackward>,
                 public Unless<Lacking, OwnsEverything>,
                 public Unless<Lacking, SumOverRanks>,
                 public Unless<Lacking, Replicas> {
public:
    template <class Communicator>
    OwnModel(acc::sharding::ModelParts parts, Communicator const&) : FlatModel(std::move(parts.parameters)) {
        adopt_whole();
    }
    void after_backward()
        requires(!std::is_same_v<Lacking, AfterBackward>)
    {
        repair_all();
        if (window_.closed()) stage_ = acc::sharding::Stage::Reduced;
    }
};

struct Placement {
    template <class Device>
    using placement = acc::place::Resident;
};
struct AnyModel;
template <class Lacking>
struct Model {
    template <class Device>
    using model = OwnModel<Lacking>;
};
template <class Lacking = void>
struct OwnSharding : Unless<Lacking, Name>, Unless<Lacking, Placement>, Unless<Lacking, Model<Lacking>, AnyModel> {};

struct PreparedLoader {
    template <class Loader>
    using prepared = acc::data::Prepared<Loader>;
};
template <class Lacking = void>
struct OwnLoader : Unless<Lacking, Name>, Unless<Lacking, PreparedLoader> {};

using Run = acc::Accelerator<OwnDevice<>, OwnPrecision<>, OwnSharding<>, OwnLoader<>>;

double train() {
    Run accelerator{{.gradient_accumulation_steps = 2}};
    auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(4, 1), acc::optim::Sgd{.lr = 0.1});
    auto window = accelerator.accumulate(model);
    auto const loss = model(torch::ones({2, 4})).mean();
    accelerator.backward(loss);
    optimizer.step();
    return loss.item<double>();
}

template <class Lacking>
using WithDevice = acc::Accelerator<OwnDevice<Lacking>, OwnPrecision<>, OwnSharding<>, OwnLoader<>>;
template <class Lacking>
using WithPrecision = acc::Accelerator<OwnDevice<>, OwnPrecision<Lacking>, OwnSharding<>, OwnLoader<>>;
template <class Lacking>
using WithSharding = acc::Accelerator<OwnDevice<>, OwnPrecision<>, OwnSharding<Lacking>, OwnLoader<>>;
template <class Lacking>
using WithLoader = acc::Accelerator<OwnDevice<>, OwnPrecision<>, OwnSharding<>, OwnLoader<Lacking>>;

#ifdef WRONG_device_communicator  // device policy: give it `communicator
WithDevice<Communicator> device_communicator;
#endif
#ifdef WRONG_device_type  // device policy: give it `type
WithDevice<Type> device_type;
#endif
#ifdef WRONG_device_name  // device policy: give it `name
WithDevice<Name> device_name;
#endif
#ifdef WRONG_device_current  // device policy: give it `current
WithDevice<Current> device_current;
#endif
#ifdef WRONG_device_synchronize  // device policy: give it `synchronize
WithDevice<Synchronize> device_synchronize;
#endif
#ifdef WRONG_precision_parameter  // precision policy: give it `parameter
WithPrecision<Parameter> precision_parameter;
#endif
#ifdef WRONG_precision_compute  // precision policy: give it `compute
WithPrecision<Compute> precision_compute;
#endif
#ifdef WRONG_precision_scaler  // precision policy: it computes in fp16, where small gradients vanish; give it `scaler`
WithPrecision<Scaler> precision_scaler;
#endif
#ifdef WRONG_precision_reduction  // precision policy: give it `reduction
WithPrecision<Reduction> precision_reduction;
#endif
#ifdef WRONG_precision_master  // precision policy: give it `master
WithPrecision<Master> precision_master;
#endif
#ifdef WRONG_precision_name  // precision policy: give it `name
WithPrecision<Name> precision_name;
#endif
#ifdef WRONG_precision_impl  // precision policy: give it `impl
WithPrecision<Implementation> precision_impl;
#endif
#ifdef WRONG_precision_scope  // precision policy: give it `scope
WithPrecision<Scope> precision_scope;
#endif
#ifdef WRONG_precision_pause  // precision policy: give it `pause
WithPrecision<Pause> precision_pause;
#endif
#ifdef WRONG_precision_parameters_changed  // precision policy: give it `parameters_changed
WithPrecision<ParametersChanged> precision_parameters_changed;
#endif
#ifdef WRONG_sharding_name  // sharding policy: give it `name
WithSharding<Name> sharding_name;
#endif
#ifdef WRONG_sharding_placement  // sharding policy: give it `placement
WithSharding<Placement> sharding_placement;
#endif
#ifdef WRONG_sharding_model  // sharding policy: give it `model
WithSharding<AnyModel> sharding_model;
#endif
#ifdef WRONG_model_before_forward  // sharding policy: give its model `before_forward`
WithSharding<BeforeForward> model_before_forward;
#endif
#ifdef WRONG_model_before_backward  // sharding policy: give its model `before_backward`
WithSharding<BeforeBackward> model_before_backward;
#endif
#ifdef WRONG_model_after_backward  // sharding policy: give its model `after_backward`
WithSharding<AfterBackward> model_after_backward;
#endif
#ifdef WRONG_model_owns_everything  // sharding policy: give its model `owns_everything`
WithSharding<OwnsEverything> model_owns_everything;
#endif
#ifdef WRONG_model_sum_over_ranks  // sharding policy: give its model `sum_over_ranks`
WithSharding<SumOverRanks> model_sum_over_ranks;
#endif
#ifdef WRONG_model_replicas  // sharding policy: give its model `replicas`
WithSharding<Replicas> model_replicas;
#endif
#ifdef WRONG_loader_name  // loader policy: give it `name
WithLoader<Name> loader_name;
#endif
#ifdef WRONG_loader_prepared  // loader policy: give it `prepared
WithLoader<PreparedLoader> loader_prepared;
#endif
