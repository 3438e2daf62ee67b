#pragma once

#include <torch/csrc/autograd/custom_function.h>

#include <accelerate/precision/fp8_gemm.hpp>
#include <accelerate/precision/fp8_watch.hpp>
#include <accelerate/precision/low_precision_linear.hpp>
#include <utility>

namespace accelerate {

/// Options of `precision::Fp8`; names are TransformerEngine's.
struct fp8 {
    int64_t margin = 0;                     ///< powers of two between the largest number and the end of the range
    bool use_autocast_during_eval = false;  ///< fp8 also in modules that are in eval mode; else they run in bf16
    /// Products that stay in bf16: of the forward, of the input's gradient, of the weight's gradient.
    bool override_fprop = false, override_dgrad = false, override_wgrad = false;
    Gemm gemm = Gemm::Auto;                 ///< of fp8 layers: `_scaled_mm` or emulated; of those that stay in bf16 as `bf16{.gemm}`
    bool counters = false;                  ///< counts saturations and underflows (`precision::fp8_report`); costs a few passes
    bool shadow = false;                    ///< computes each forward in bf16 as well, to compare with (`precision::fp8_report`)
};

namespace precision {

/// What an fp8 layer remembers from call to call. Shared with the graphs of its forwards, which may outlive it.
struct Fp8State : torch::CustomClassHolder {
    Fp8State(AmaxHistory h, std::shared_ptr<WeightCache> k) : history(std::move(h)), kept(std::move(k)) {}

    AmaxHistory history;
    std::shared_ptr<WeightCache> kept;
    Fp8Watch watch;
};

/// `x w^T + b` of an fp8 recipe, and its gradients: e4m3 forward, e5m2 for what comes back. Operands are rounded to fp8, the weight once
/// where it is kept; results have the dtypes that a bf16 layer's would.
template <class Recipe, fp8 O>
struct Fp8Product : torch::autograd::Function<Fp8Product<Recipe, O>> {
    static at::Tensor forward(torch::autograd::AutogradContext* context, at::Tensor const& x, at::Tensor const& weight, std::optional<at::Tensor> const& bias,
                              c10::intrusive_ptr<Fp8State> const& state) {
        context->save_for_backward({x, weight});
        context->saved_data["bias"] = bias.has_value();
        context->saved_data["state"] = at::IValue::make_capsule(state);
        auto const rows = rows_of(x);
        auto const result = [&]<bool InBf16>(std::bool_constant<InBf16>) {
            return fp8_product(rounded<InBf16>(*state, rows, at::kFloat8_e4m3fn, Operand::Activation), weight_as<InBf16>(*state, weight, WeightCache::Rows), at::kBFloat16, bias.value_or(at::Tensor()));
        };
        auto const y = result(std::bool_constant<O.override_fprop>());
        if constexpr (O.shadow) state->watch.compare(y, result(std::true_type()));
        auto shape = x.sizes().vec();
        shape.back() = weight.size(0);
        return y.view(shape);
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list const& gradients) {
        auto const saved = context->get_saved_variables();
        auto const& x = saved[0];
        auto const& weight = saved[1];
        auto& state = static_cast<Fp8State&>(*context->saved_data["state"].toCapsule());
        AutocastPause const pause(x.device().type());  // a backward inside a scope must not round the products
        auto const g = rows_of(gradients[0]);
        at::Tensor to_x, to_weight, to_bias;
        if (context->needs_input_grad(0))
            to_x = fp8_product(rounded<O.override_dgrad>(state, g, at::kFloat8_e5m2, Operand::Gradient), weight_as<O.override_dgrad>(state, weight, WeightCache::Columns), at::kBFloat16)
                       .view(x.sizes()).to(x.scalar_type());
        if (context->needs_input_grad(1)) {
            to_weight = fp8_product(rounded<O.override_wgrad>(state, g.t(), at::kFloat8_e5m2, Operand::Gradient),
                                    rounded<O.override_wgrad>(state, rows_of(x).t(), at::kFloat8_e4m3fn, Operand::Activation), at::kFloat);
            if constexpr (requires { Recipe::weight_gradient(to_weight); }) to_weight = Recipe::weight_gradient(to_weight);
            to_weight = to_weight.to(weight.scalar_type());
        }
        if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) to_bias = g.sum(0).to(weight.scalar_type());
        return {to_x, to_weight, to_bias, at::Tensor()};
    }

private:
    static at::Tensor rows_of(at::Tensor const& t) { return t.reshape({-1, t.size(-1)}).to(at::kFloat); }

    /// The weight as the forward (`Rows`) or the input's gradient (`Columns`) takes it; products sum over the last dimension.
    template <bool InBf16>
    static Rounded weight_as(Fp8State& state, at::Tensor const& weight, WeightCache::Form form) {
        auto const make = [&] {
            auto const wide = weight.to(at::kFloat);
            return rounded<InBf16>(state, form == WeightCache::Rows ? wide : wide.t(), at::kFloat8_e4m3fn, Operand::Weight);
        };
        if constexpr (InBf16) return make();
        else return state.kept->get(weight, form, make);
    }

    /// An fp32 matrix as the product takes it; scales go along its last dimension.
    template <bool InBf16>
    static Rounded rounded(Fp8State& state, at::Tensor const& t, at::ScalarType format, Operand is) {
        if constexpr (InBf16) return {t.to(at::kBFloat16).to(at::kFloat), {}};
        if (t.numel() == 0) return {t, {}};
        auto const amax = [&] {
            if constexpr (has_history<Recipe>)
                if (is != Operand::Weight) return state.history.amax(t, is == Operand::Activation ? AmaxHistory::Activations : AmaxHistory::Gradients);
            return Recipe::amax(t, is);
        };
        auto const scale = fp8_scale(amax(), format, O.margin), scaled = t * scale, in_fp8 = saturated(scaled, format);
        if constexpr (O.counters) state.watch.count(is, scaled, in_fp8, format);
        if (has_fp8_product<Recipe, O.gemm>(t.device())) return {in_fp8.contiguous(), scale};
        return {in_fp8.to(at::kFloat) / scale, {}};
    }
};

/// What `prepare` asks and tells an `acc::Linear<S>` of an fp8 policy.
struct Fp8Layer : WeightKeeper {
    explicit Fp8Layer(AmaxHistory history) : state(c10::make_intrusive<Fp8State>(std::move(history), kept)) {}
    Fp8Layer(Fp8Layer const& other) : WeightKeeper(other), runs_in_fp8(other.runs_in_fp8), state(c10::make_intrusive<Fp8State>(other.state->history, kept)) {}
    Fp8Layer& operator=(Fp8Layer const&) = delete;

    bool runs_in_fp8 = false;  ///< decided by `prepare`; until then in bf16
    c10::intrusive_ptr<Fp8State> state;
};

template <class Recipe>
struct Fp8LayerOf : Fp8Layer {
    Fp8LayerOf() : Fp8Layer(history()) {}

private:
    static AmaxHistory history() {
        if constexpr (has_history<Recipe>) return Recipe::history();
        else return {1, {}};
    }
};

/// `torch::nn::LinearImpl` that multiplies in fp8 where `prepare` has said so, inside a scope of the policy, else as a bf16 layer.
template <class Impl, class Recipe, fp8 O>
class Fp8Linear : public Impl, public Fp8LayerOf<Recipe> {
public:
    using Impl::Impl;

    at::Tensor forward(at::Tensor const& x) {
        auto const device = x.device().type();
        if (!this->runs_in_fp8 || !(O.use_autocast_during_eval || this->is_training()) || !at::autocast::is_autocast_enabled(device))
            return Product<at::kBFloat16, O.gemm>::linear(x, this->weight, this->bias, *this->kept);
        AutocastPause const pause(device);
        return Fp8Product<Recipe, O>::apply(x, this->weight, this->bias.defined() ? std::optional(this->bias) : std::nullopt, this->state);
    }

    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        return clone_of<Impl>(*this, device);
    }
};

}  // namespace precision
}  // namespace accelerate
