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
        context->saved_data["bias"] = bias.has_value();
        context->saved_data["state"] = at::IValue::make_capsule(state);
        context->saved_data["sizes"] = x.sizes();
        context->saved_data["dtype"] = x.scalar_type();
        auto const rows = rows_of(x);
        auto const product = [&]<bool InBf16>(std::bool_constant<InBf16>, Rounded const& a) {
            return fp8_product(a, weight_as<InBf16>(*state, weight, WeightCache::Rows), at::kBFloat16, bias.value_or(at::Tensor()), Accumulation::Fast);
        };
        auto const a = rounded<O.override_fprop>(*state, rows, at::kFloat8_e4m3fn, Operand::Activation);
        auto const y = product(std::bool_constant<O.override_fprop>(), a);
        if constexpr (O.shadow) state->watch.compare(y, product(std::true_type(), rounded<true>(*state, rows, at::kFloat8_e4m3fn, Operand::Activation)));
        // With one scale a matrix the rounded input serves the weight's gradient too, and is half as large.
        bool const once = !O.override_fprop && !O.override_wgrad && rounds_once(x.device());
        context->save_for_backward({once ? a.numbers : x, weight, once ? a.scale : at::Tensor()});
        auto shape = x.sizes().vec();
        shape.back() = weight.size(0);
        return y.view(shape);
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list const& gradients) {
        auto const saved = context->get_saved_variables();
        auto const& x = saved[0];
        auto const& weight = saved[1];
        auto const& scale_of_x = saved[2];
        auto& state = static_cast<Fp8State&>(*context->saved_data["state"].toCapsule());
        AutocastPause const pause(x.device().type());  // a backward inside a scope must not round the products
        auto const g = rows_of(gradients[0]);
        Rounded g_in_rows;
        at::Tensor to_x, to_weight, to_bias;
        if (context->needs_input_grad(0)) {
            g_in_rows = rounded<O.override_dgrad>(state, g, at::kFloat8_e5m2, Operand::Gradient);
            to_x = fp8_product(g_in_rows, weight_as<O.override_dgrad>(state, weight, WeightCache::Columns), at::kBFloat16)
                       .view(context->saved_data["sizes"].toIntVector())
                       .to(context->saved_data["dtype"].toScalarType());
        }
        if (context->needs_input_grad(1)) {
            bool const once = !O.override_dgrad && !O.override_wgrad && g_in_rows.numbers.defined() && rounds_once(g.device());
            auto const g_in_columns = once ? turned(g_in_rows) : rounded<O.override_wgrad>(state, g, at::kFloat8_e5m2, Operand::Gradient, Along::Columns);
            auto const x_in_columns = scale_of_x.defined() ? turned({x, scale_of_x}) : rounded<O.override_wgrad>(state, rows_of(x), at::kFloat8_e4m3fn, Operand::Activation, Along::Columns);
            to_weight = fp8_product(g_in_columns, x_in_columns, at::kFloat);
            if constexpr (requires { Recipe::weight_gradient(to_weight); }) to_weight = Recipe::weight_gradient(to_weight);
            to_weight = to_weight.to(weight.scalar_type());
        }
        if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) to_bias = g.to(at::kFloat).sum(0).to(weight.scalar_type());
        return {to_x, to_weight, to_bias, at::Tensor()};
    }

private:
    /// The dimension of a matrix that a product sums over.
    enum class Along { Rows, Columns };

    static at::Tensor rows_of(at::Tensor const& t) { return t.reshape({-1, t.size(-1)}); }

    /// Whether a matrix is rounded to the same numbers whichever dimension is summed over.
    static bool rounds_once(at::Device device) { return scales_of<Recipe> == Fp8Scales::Matrix && has_fp8_product<Recipe, O.gemm>(device); }
    static Rounded turned(Rounded const& in_rows) { return {transposed(in_rows.numbers), in_rows.scale}; }

    /// The weight as the forward (`Rows`) or the input's gradient (`Columns`) takes it.
    template <bool InBf16>
    static Rounded weight_as(Fp8State& state, at::Tensor const& weight, WeightCache::Form form) {
        auto const make = [&] { return rounded<InBf16>(state, weight, at::kFloat8_e4m3fn, Operand::Weight, form == WeightCache::Rows ? Along::Rows : Along::Columns); };
        if constexpr (InBf16) return make();
        else return state.kept->get(weight, form, make);
    }

    /// A matrix as the product takes it: as it is or, to be summed over its columns' dimension 0, transposed.
    template <bool InBf16>
    static Rounded rounded(Fp8State& state, at::Tensor const& t, at::ScalarType format, Operand is, Along along = Along::Rows) {
        bool const native = has_fp8_product<Recipe, O.gemm>(t.device());
        auto const as_summed = along == Along::Rows ? t : t.t();
        if constexpr (InBf16) {
            auto const numbers = as_summed.to(at::kBFloat16);
            return {native ? numbers : numbers.to(at::kFloat), {}};
        }
        if (t.numel() == 0) return {as_summed, {}};
        auto const matrix = native ? as_summed : as_summed.to(at::kFloat);
        constexpr bool by_history = has_history<Recipe>;
        auto const amax = [&] {
            if constexpr (by_history)
                if (is != Operand::Weight) return state.history.amax(matrix, is == Operand::Activation ? AmaxHistory::Activations : AmaxHistory::Gradients);
            return Recipe::amax(matrix, is);
        };
        auto const scale = fp8_scale(amax(), format, O.margin);
        if constexpr (O.counters) {
            auto const scaled = matrix.to(at::kFloat) * scale;
            state.watch.count(is, scaled, saturated(scaled, format), format);
        }
        if (!native) return {saturated(matrix * scale, format).to(at::kFloat) / scale, {}};
        bool const saturates = O.margin < 0 || (by_history && is != Operand::Weight);
        if (along == Along::Rows) return {to_fp8(t, scale, format, saturates).contiguous(), scale};
        return {transposed(to_fp8(t, scale.dim() == 2 ? scale.t() : scale, format, saturates)), scale};
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
