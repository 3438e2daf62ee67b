#pragma once

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <accelerate/precision/fp8_cast.hpp>
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
    /// `learns`: the weight will get a gradient. On fp8 units `x` is then kept for it in fp8, half as large as in bf16.
    static at::Tensor forward(torch::autograd::AutogradContext* context, at::Tensor const& x, at::Tensor const& weight, std::optional<at::Tensor> const& bias,
                              c10::intrusive_ptr<Fp8State> const& state, bool learns) {
        context->saved_data["bias"] = bias.has_value();
        context->saved_data["state"] = at::IValue::make_capsule(state);
        context->saved_data["sizes"] = x.sizes();
        context->saved_data["dtype"] = x.scalar_type();
        auto const rows = rows_of(x);
        auto const product = [&]<bool InBf16>(std::bool_constant<InBf16>, Rounded const& a) {
            auto const w = weight_as<InBf16>(*state, weight, WeightCache::Rows);
            return fp8_product(a, w, at::kBFloat16, bias.value_or(at::Tensor()), Accumulation::Fast);
        };
        bool const reused = learns && !O.override_fprop && !O.override_wgrad;
        auto const a = operand<O.override_fprop>(*state, rows, at::kFloat8_e4m3fn, Operand::Activation, {.in_rows = true, .in_columns = reused && on_units(x)});
        auto const y = product(std::bool_constant<O.override_fprop>(), a.in_rows);
        if constexpr (O.shadow) state->watch.compare(y, product(std::true_type(), operand<true>(*state, rows, at::kFloat8_e4m3fn, Operand::Activation, {.in_rows = true}).in_rows));
        auto const& kept = a.in_columns;
        context->save_for_backward({kept.scale.defined() ? kept.numbers : x, weight, kept.scale});
        auto shape = x.sizes().vec();
        shape.back() = weight.size(0);
        return y.view(shape);
    }

    static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context, torch::autograd::variable_list const& gradients) {
        auto const saved = context->get_saved_variables();
        auto const& x = saved[0];
        auto const& weight = saved[1];
        Rounded const kept{x, saved[2]};
        auto& state = static_cast<Fp8State&>(*context->saved_data["state"].toCapsule());
        AutocastPause const pause(weight.device().type());  // a backward inside a scope must not round the products
        auto const rows = rows_of(gradients[0]);
        bool const to_input = context->needs_input_grad(0), to_weights = context->needs_input_grad(1);
        bool const both = to_input && to_weights && !O.override_dgrad && !O.override_wgrad && on_units(rows);
        Fp8Matrix g;
        at::Tensor to_x, to_weight, to_bias;
        if (to_input) {
            g = operand<O.override_dgrad>(state, rows, at::kFloat8_e5m2, Operand::Gradient, {.in_rows = true, .in_columns = both});
            to_x = fp8_product(g.in_rows, weight_as<O.override_dgrad>(state, weight, WeightCache::Columns), at::kBFloat16)
                       .view(context->saved_data["sizes"].toIntVector())
                       .to(context->saved_data["dtype"].toScalarType());
        }
        if (to_weights) {
            if (!both) g = operand<O.override_wgrad>(state, rows, at::kFloat8_e5m2, Operand::Gradient, {.in_columns = true});
            auto const a = kept.scale.defined() ? kept : operand<O.override_wgrad>(state, rows_of(x), at::kFloat8_e4m3fn, Operand::Activation, {.in_columns = true}).in_columns;
            to_weight = fp8_product(g.in_columns, a, at::kFloat);
            if constexpr (requires { Recipe::weight_gradient(to_weight); }) to_weight = Recipe::weight_gradient(to_weight);
            to_weight = to_weight.to(weight.scalar_type());
        }
        if (context->saved_data["bias"].toBool() && context->needs_input_grad(2)) to_bias = rows.to(at::kFloat).sum(0).to(weight.scalar_type());
        return {to_x, to_weight, to_bias, at::Tensor(), at::Tensor()};
    }

    /// The weight in e4m3, rounded elsewhere, becomes what the products take.
    static void take(Fp8State const& state, Rounded const& weight) {
        auto const with = [&](WeightCache::Form form, at::Tensor const& numbers) {
            state.kept->take(form, on_units(numbers) ? Rounded{detail::padded_columns(numbers), weight.scale} : Rounded{numbers.to(at::kFloat) / weight.scale, {}});
        };
        with(WeightCache::Rows, weight.numbers);
        with(WeightCache::Columns, weight.numbers.t());
    }

private:
    /// How products take a matrix: summing over its columns, or over its rows.
    struct Ways {
        bool in_rows = false, in_columns = false;
    };

    static at::Tensor rows_of(at::Tensor const& t) { return t.reshape({-1, t.size(-1)}); }
    static bool on_units(at::Tensor const& t) { return has_fp8_product<Recipe, O.gemm>(t.device()); }

    /// The weight as the forward (`Rows`) or the input's gradient (`Columns`) takes it.
    template <bool InBf16>
    static Rounded weight_as(Fp8State& state, at::Tensor const& weight, WeightCache::Form form) {
        bool const rows = form == WeightCache::Rows;
        auto const make = [&] {
            auto const w = operand<InBf16>(state, weight, at::kFloat8_e4m3fn, Operand::Weight, {.in_rows = rows, .in_columns = !rows});
            return rows ? w.in_rows : w.in_columns;
        };
        if constexpr (InBf16) return make();
        else return state.kept->get(weight, form, make);
    }

    /// A matrix as products take it.
    template <bool InBf16>
    static Fp8Matrix operand(Fp8State& state, at::Tensor const& t, at::ScalarType format, Operand is, Ways ways) {
        auto const each = [&](auto&& made) { return Fp8Matrix{ways.in_rows ? made(t) : Rounded(), ways.in_columns ? made(t.t()) : Rounded()}; };
        bool const units = on_units(t);
        if constexpr (InBf16) {
            return each([&](at::Tensor const& m) {
                auto const numbers = m.to(at::kBFloat16);
                return Rounded{units ? numbers : numbers.to(at::kFloat), {}};
            });
        } else {
            if (t.numel() == 0) return each([](at::Tensor const& m) { return Rounded{m, {}}; });
            if (!units) return each([&](at::Tensor const& m) { return emulated(state, m.to(at::kFloat), format, is); });
            at::Tensor row_scales, column_scales;
            if (ways.in_rows) row_scales = scales(state, t, format, is);
            if (ways.in_columns) column_scales = scales_of<Recipe> == Fp8Scales::Row ? scales(state, t.t(), format, is) : ways.in_rows ? row_scales : scales(state, t, format, is);
            return to_fp8(t, format, row_scales, column_scales);
        }
    }

    /// The numbers that fp8 stands for, in fp32.
    static Rounded emulated(Fp8State& state, at::Tensor const& matrix, at::ScalarType format, Operand is) {
        auto const scale = scales(state, matrix, format, is);
        return {saturated(matrix * scale, format).to(at::kFloat) / scale, {}};
    }

    /// What a matrix is multiplied by before it is rounded for a sum over its columns; by the way it is counted.
    static at::Tensor scales(Fp8State& state, at::Tensor const& matrix, at::ScalarType format, Operand is) {
        auto const amax = [&] {
            if constexpr (has_history<Recipe>)
                if (is != Operand::Weight) return state.history.amax(matrix, is == Operand::Activation ? AmaxHistory::Activations : AmaxHistory::Gradients);
            return Recipe::amax(matrix, is);
        };
        auto const scale = fp8_scale(amax(), format, O.margin);
        if constexpr (O.counters) {
            auto const scaled = matrix.to(at::kFloat) * scale;
            state.watch.count(is, scaled, saturated(scaled, format), format);
        }
        return scale;
    }
};

/// What `prepare` asks and tells an `acc::Linear<S>` of an fp8 policy.
struct Fp8Layer : WeightKeeper {
    explicit Fp8Layer(AmaxHistory history) : state(c10::make_intrusive<Fp8State>(std::move(history), kept)) {}
    Fp8Layer(Fp8Layer const& other) : WeightKeeper(other), runs_in_fp8(other.runs_in_fp8), state(c10::make_intrusive<Fp8State>(other.state->history, kept)) {}
    Fp8Layer& operator=(Fp8Layer const&) = delete;
    virtual ~Fp8Layer() = default;

    /// For shardings that gather weights in fp8, a quarter of the bytes (torchao's `enable_fsdp_float8_all_gather`). Where the weight `travels`,
    /// each rank rounds what it keeps of it (`saturated(part * scale, kFloat8_e4m3fn)`) by the scale of the largest magnitude on all ranks, and
    /// the layer takes the whole: forward and backward are those of the weight itself, whose memory is not read until `kept->forget()`.
    /// It does not travel where a layer has several scales, or needs it in bf16 as well.
    virtual bool weight_travels() const = 0;
    virtual at::Tensor weight_scale(at::Tensor const& amax) const = 0;
    virtual void take_weight(Rounded const& rounded) = 0;

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
        if (!in_fp8() || !at::autocast::is_autocast_enabled(device))
            return Product<at::kBFloat16, O.gemm>::linear(x, this->weight, this->bias, *this->kept);
        AutocastPause const pause(device);
        return Fp8Product<Recipe, O>::apply(x, this->weight, this->bias.defined() ? std::optional(this->bias) : std::nullopt, this->state, at::GradMode::is_enabled() && this->weight.requires_grad());
    }

    std::shared_ptr<torch::nn::Module> clone(std::optional<at::Device> const& device = std::nullopt) const override {
        return clone_of<Impl>(*this, device);
    }

    bool weight_travels() const override { return scales_of<Recipe> == Fp8Scales::Matrix && !O.override_fprop && !O.override_dgrad && !O.shadow && in_fp8(); }
    at::Tensor weight_scale(at::Tensor const& amax) const override { return fp8_scale(amax, at::kFloat8_e4m3fn, O.margin); }
    void take_weight(Rounded const& rounded) override { Fp8Product<Recipe, O>::take(*this->state, rounded); }

private:
    bool in_fp8() const { return this->runs_in_fp8 && (O.use_autocast_during_eval || this->is_training()); }
};

}  // namespace precision
}  // namespace accelerate
