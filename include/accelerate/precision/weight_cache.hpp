#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <array>
#include <memory>
#include <utility>

namespace accelerate::precision {

/// A matrix as a product takes it: its rounded numbers, and what they were multiplied by before (undefined: nothing).
struct Rounded {
    at::Tensor numbers, scale;
};

/// What a layer makes of its weight for its products. Once `keep` has been called it is made at the first use and lasts until the weight
/// changes: operations on it are noticed, and prepared models, whose optimizers write past LibTorch, call `forget`. What was made elsewhere
/// is given by `take`, and lasts until `forget` whatever the weight's memory holds. Costs the size of what is kept.
class WeightCache {
public:
    enum Form {
        Cast,     ///< in a lower dtype
        Rows,     ///< in fp8, scaled for products that sum over its columns
        Columns,  ///< in fp8 and transposed, for products that sum over its rows
    };

    void keep() { keeps_ = true; }
    bool keeps() const { return keeps_; }
    void forget() { kept_ = {}; }
    void take(Form form, Rounded made) { kept_[form] = {.made = std::move(made), .taken = true}; }

    /// The weight in that form: as kept, else `make()`.
    template <class F>
    Rounded get(at::Tensor const& weight, Form form, F&& make) {
        auto& [made, data, version, taken] = kept_[form];
        if (taken) return made;
        if (!keeps_ || weight.is_inference()) return make();
        auto const& numbers = made.numbers;
        // What was made without grad mode has no graph to the weight.
        bool const usable = numbers.defined() && data == weight.const_data_ptr() && version == weight._version() && (!at::GradMode::is_enabled() || numbers.requires_grad() == weight.requires_grad());
        if (!usable) made = make(), data = weight.const_data_ptr(), version = weight._version();
        return made;
    }

private:
    struct Kept {
        Rounded made;
        void const* data = nullptr;
        int64_t version = 0;
        bool taken = false;
    };

    std::array<Kept, 3> kept_;
    bool keeps_ = false;
};

/// A layer that keeps what it makes of its weight where `prepare` asks it to: between the steps of models whose weights stay whole.
/// A copy keeps nothing yet.
struct WeightKeeper {
    WeightKeeper() = default;
    WeightKeeper(WeightKeeper const&) {}
    WeightKeeper& operator=(WeightKeeper const&) = delete;
    ~WeightKeeper() = default;

    std::shared_ptr<WeightCache> const kept = std::make_shared<WeightCache>();
};

}  // namespace accelerate::precision
