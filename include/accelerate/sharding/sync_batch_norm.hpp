#pragma once

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/container/sequential.h>

#include <accelerate/comm/communicator.hpp>
#include <concepts>
#include <memory>
#include <vector>

namespace accelerate {
namespace sharding {

/// Sums a tensor over the ranks; erased to a function pointer, so that a module needs no communicator in its type.
class SumOverRanks {
public:
    SumOverRanks() = default;
    template <class Comm>
        requires(!std::same_as<Comm, SumOverRanks>) && comm::communicator<Comm>  // in this order: the concept asks whether Comm can be copied
    explicit SumOverRanks(Comm const& communicator)
        : context_(std::make_shared<Comm>(communicator)),
          sum_([](void* context, at::Tensor const& t) { static_cast<Comm*>(context)->all_reduce(t, comm::Reduction::Sum); }) {}

    void operator()(at::Tensor const& t) const {
        if (sum_) sum_(context_.get(), t);
    }

private:
    std::shared_ptr<void> context_;
    void (*sum_)(void*, at::Tensor const&) = nullptr;
};

/// Batch normalisation with the statistics of the batches of all ranks. Forward and backward exchange two numbers a channel each.
struct SyncBatchNormFunction : torch::autograd::Function<SyncBatchNormFunction> {
    /// Everything but dim 1.
    static std::vector<int64_t> reduced_dims(at::Tensor const& x) {
        std::vector<int64_t> dims{0};
        for (int64_t d = 2; d < x.dim(); ++d) dims.push_back(d);
        return dims;
    }
    static at::Tensor per_channel(at::Tensor const& v, at::Tensor const& x) {
        std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
        shape[1] = -1;
        return v.view(shape);
    }

    /// `statistics` receives mean, biased variance and count over all ranks.
    static at::Tensor forward(torch::autograd::AutogradContext* context, at::Tensor const& x, at::Tensor const& weight, at::Tensor const& bias, double eps,
                              SumOverRanks const* sum, std::vector<at::Tensor>* statistics) {
        auto const channels = x.size(1);
        auto const dims = reduced_dims(x);
        auto const wide = x.to(at::kDouble);
        auto const count = at::full({1}, static_cast<double>(x.numel() / channels), wide.options());
        auto const sums = at::cat({wide.sum(dims), (wide * wide).sum(dims), count});
        (*sum)(sums);
        auto const n = sums.narrow(0, 2 * channels, 1);
        auto const mean = sums.narrow(0, 0, channels) / n;
        auto const variance = (sums.narrow(0, channels, channels) / n - mean * mean).clamp_min(0);
        auto const inverse = (variance + eps).rsqrt();
        auto const normalised = ((wide - per_channel(mean, x)) * per_channel(inverse, x)).to(x.scalar_type());
        *statistics = {mean, variance, n};
        context->save_for_backward({normalised, weight, inverse, n});
        context->saved_data["sum"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(*sum));
        auto y = normalised;
        if (weight.defined()) y = y * per_channel(weight, x);
        if (bias.defined()) y = y + per_channel(bias, x);
        return y;
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list const& gradients) {
        auto const saved = context->get_saved_variables();
        auto const& normalised = saved[0];
        auto const& weight = saved[1];
        auto const& dy = gradients[0];
        auto const channels = normalised.size(1);
        auto const dims = reduced_dims(normalised);
        auto const wide = dy.to(at::kDouble);
        auto const sum_dy = wide.sum(dims), sum_dy_x = (wide * normalised).sum(dims);
        auto const sums = at::cat({sum_dy, sum_dy_x});
        auto const holder = c10::static_intrusive_pointer_cast<Holder>(context->saved_data["sum"].toCapsule());
        holder->sum(sums);
        auto const mean_dy = per_channel(sums.narrow(0, 0, channels) / saved[3], dy), mean_dy_x = per_channel(sums.narrow(0, channels, channels) / saved[3], dy);
        auto scale = saved[2];
        if (weight.defined()) scale = scale * weight;
        auto const dx = ((wide - mean_dy - normalised * mean_dy_x) * per_channel(scale, dy)).to(dy.scalar_type());
        return {dx, weight.defined() ? sum_dy_x.to(weight.scalar_type()) : at::Tensor(), weight.defined() ? sum_dy.to(weight.scalar_type()) : at::Tensor(), {}, {}, {}};
    }

    struct Holder : torch::CustomClassHolder {
        explicit Holder(SumOverRanks const& s) : sum(s) {}
        SumOverRanks sum;
    };
};

}  // namespace sharding

/// `torch::nn::BatchNorm1d/2d/3d` over the global batch (PyTorch's SyncBatchNorm): same parameters, buffers and names. In
/// evaluation, or before it is prepared, it is an ordinary batch normalisation. `prepare` connects it to the accelerator's ranks.
class SyncBatchNormImpl : public torch::nn::BatchNormImplBase<2, SyncBatchNormImpl> {
public:
    using Base = torch::nn::BatchNormImplBase<2, SyncBatchNormImpl>;
    using Base::Base;

    template <comm::communicator Comm>
    void connect(Comm const& communicator) {
        if (communicator.size() == 1) return;
        sum_ = sharding::SumOverRanks(communicator);
        // Named here, in a template, so that a file which prepares no model does not compile it.
        normalise_ = [](at::Tensor const& x, SyncBatchNormImpl const& m, std::vector<at::Tensor>* statistics) {
            return sharding::SyncBatchNormFunction::apply(x, m.weight, m.bias, m.options.eps(), &m.sum_, statistics);
        };
    }

    at::Tensor forward(at::Tensor const& x) {
        if (!this->is_training() || normalise_ == nullptr) return Base::forward(x);
        std::vector<at::Tensor> statistics;
        auto y = normalise_(x, *this, &statistics);
        if (options.track_running_stats()) update_running(statistics);
        return y;
    }

private:
    /// Any rank of input that a batch normalisation takes.
    void _check_input_dim(at::Tensor const& x) override { check(x.dim() >= 2, code::data, "SyncBatchNorm: expected at least 2 dims, found ", x.dim()); }

    void update_running(std::vector<at::Tensor> const& statistics) {
        at::NoGradGuard no_grad;
        num_batches_tracked += 1;
        auto const momentum = options.momentum() ? *options.momentum() : 1.0 / static_cast<double>(num_batches_tracked.item<int64_t>());
        auto const unbiased = statistics[1] * (statistics[2] / (statistics[2] - 1).clamp_min(1));
        running_mean.lerp_(statistics[0].to(running_mean.scalar_type()), momentum);
        running_var.lerp_(unbiased.to(running_var.scalar_type()), momentum);
    }

    sharding::SumOverRanks sum_;
    at::Tensor (*normalise_)(at::Tensor const&, SyncBatchNormImpl const&, std::vector<at::Tensor>*) = nullptr;  ///< null until connected
};
TORCH_MODULE(SyncBatchNorm);

namespace sharding {

template <class Norm>
bool convert_one(torch::nn::Module& module, std::string const& name, torch::nn::Sequential& out) {
    auto* norm = module.as<Norm>();
    if (!norm) return false;
    SyncBatchNorm made(norm->options);
    for (auto& p : norm->named_parameters(false)) made->named_parameters(false)[p.key()].set_data(p.value().data());
    for (auto& b : norm->named_buffers(false)) made->named_buffers(false)[b.key()].set_data(b.value());
    made->train(norm->is_training());
    out->push_back(name, torch::nn::AnyModule(made));
    return true;
}

}  // namespace sharding

/// A Sequential in which every BatchNorm1d, 2d and 3d has become a `SyncBatchNorm` with the same parameters and buffers;
/// everything else is shared. A batch normalisation that is a typed member of a module cannot be
/// exchanged from outside (LibTorch calls it by its type): declare that member as `acc::SyncBatchNorm`.
template <std::same_as<torch::nn::Sequential> Model>  // a template, so that a file which converts nothing compiles none of it
torch::nn::Sequential convert_sync_batchnorm(Model const& model) {
    torch::nn::Sequential out;
    auto any = model->begin();
    for (auto const& child : model->named_children()) {
        auto& module = *child.value();
        if (!sharding::convert_one<torch::nn::BatchNorm1dImpl>(module, child.key(), out) && !sharding::convert_one<torch::nn::BatchNorm2dImpl>(module, child.key(), out) &&
                 !sharding::convert_one<torch::nn::BatchNorm3dImpl>(module, child.key(), out))
            out->push_back(child.key(), *any);
        ++any;
    }
    out->train(model->is_training());
    return out;
}

}  // namespace accelerate
