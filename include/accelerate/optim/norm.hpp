#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/stack.h>

#include <accelerate/core/reductions.hpp>
#include <span>
#include <vector>

namespace accelerate::optim {

/// How partial results of a norm become one: by adding powers, or as an extreme.
enum class Fold { Sum, Max, Min };

/// The p-norm of many 1-D buffers as if they were one vector, in two levels: one flat fp32 norm in LibTorch is wrong by 1e-3 at
/// 25 M elements, this one is within 1e-6 of fp64. A partial result (the sum of p-th powers, or the extreme for p = +-infinity)
/// can be folded with those of other ranks before `finish`. For p = 0 it counts the elements that are not zero. Of complex numbers it takes
/// the magnitudes.
class Norm {
public:
    explicit Norm(double p) : p_(p) {}

    Fold fold() const { return !std::isinf(p_) ? Fold::Sum : p_ > 0 ? Fold::Max : Fold::Min; }

    /// On the CPU: the partial result of all buffers, one pass over memory.
    double partial(std::span<at::Tensor const> buffers) const {
        double total = fold() == Fold::Min ? std::numeric_limits<double>::infinity() : 0;
        for (auto const& x : buffers)
            if (x.numel() > 0) total = folded(total, partial(x));
        return total;
    }

    /// On any device, as a 0-dim fp64 tensor, without waiting for the device.
    at::Tensor partial_tensor(std::span<at::Tensor const> buffers) const {
        std::vector<at::Tensor> parts;
        for (auto const& x : buffers)
            if (x.numel() > 0) parts.push_back(power(rows(x)));
        auto const all = parts.empty() ? at::scalar_tensor(fold() == Fold::Min ? std::numeric_limits<double>::infinity() : 0.0, at::kDouble) : at::stack(parts);
        return fold() == Fold::Sum ? all.sum() : fold() == Fold::Max ? all.amax() : all.amin();
    }

    /// The norm from the folded partial results.
    double finish(double total) const { return p_ == 2 ? std::sqrt(total) : is_power() ? std::pow(total, 1 / p_) : total; }
    at::Tensor finish(at::Tensor const& total) const { return p_ == 2 ? total.sqrt() : is_power() ? total.pow(1 / p_) : total; }

private:
    bool is_power() const { return p_ != 0 && !std::isinf(p_); }

    double folded(double a, double b) const {
        if (fold() == Fold::Sum) return a + b;
        if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<double>::quiet_NaN();
        return fold() == Fold::Max ? std::max(a, b) : std::min(a, b);
    }

    double partial(at::Tensor const& x) const {
        // With more threads LibTorch's parallel reduction over rows is the faster one.
        auto const ours = x.scalar_type() == at::kFloat && x.is_contiguous() && (p_ == 2 || fold() == Fold::Max) && at::get_num_threads() == 1;
        if (!ours) return power(rows(x)).item<double>();
        auto const* data = x.const_data_ptr<float>();
        return p_ == 2 ? kernel::sum_of_squares(data, x.numel()) : static_cast<double>(kernel::largest_magnitude(data, x.numel()));
    }

    /// First level: norms of rows that are short enough for fp32 accumulation.
    at::Tensor rows(at::Tensor const& x) const {
        int64_t const width = p_ == 2 ? 4096 : 256;  // LibTorch adds in lanes for p = 2 only
        auto const flat = (x.is_complex() ? x.abs() : x).reshape(-1);
        auto const dtype = flat.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
        auto const n = flat.numel() / width;
        std::vector<at::Tensor> norms;
        if (n > 0) norms.push_back(at::linalg_vector_norm(flat.narrow(0, 0, n * width).view({n, width}), p_, {1}, false, dtype));
        if (n * width < flat.numel()) norms.push_back(at::linalg_vector_norm(flat.narrow(0, n * width, flat.numel() - n * width), p_, {0}, true, dtype));
        return (norms.size() == 1 ? norms.front() : at::cat(norms)).to(at::kDouble);
    }

    /// Second level, in fp64.
    at::Tensor power(at::Tensor const& norms) const {
        if (fold() == Fold::Max) return norms.amax();
        if (fold() == Fold::Min) return norms.amin();
        return p_ == 2 ? norms.square().sum() : is_power() ? norms.pow(p_).sum() : norms.sum();
    }

    double p_;
};

/// The p-norm of 1-D buffers as a 0-dim tensor (fp64 for fp64 buffers, else fp32) on their device; does not wait for a GPU.
inline at::Tensor total_norm(std::span<at::Tensor const> buffers, double p = 2) {
    Norm const norm(p);
    auto dtype = at::kFloat;
    bool on_cpu = true;
    for (auto const& x : buffers) {
        if (c10::toRealValueType(x.scalar_type()) == at::kDouble) dtype = at::kDouble;
        on_cpu = on_cpu && x.is_cpu();
    }
    if (on_cpu) return at::scalar_tensor(norm.finish(norm.partial(buffers)), dtype);
    return norm.finish(norm.partial_tensor(buffers)).to(dtype);
}

}  // namespace accelerate::optim
