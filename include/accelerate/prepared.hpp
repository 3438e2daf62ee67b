#pragma once

#include <accelerate/training.hpp>
#include <memory>
#include <utility>

namespace accelerate {

/// A model that an accelerator prepared; used like the module itself: `model(x)`, `model->member`, `*model`. A cheap handle.
template <class Module, class Training>
class Prepared {
public:
    using module_type = Module;
    using model_type = typename Training::model_type;

    Prepared(std::shared_ptr<Module> module, std::shared_ptr<model_type> state, std::shared_ptr<Training> training)
        : module_(std::move(module)), state_(std::move(state)), training_(std::move(training)) {}

    /// The module's forward, in the precision of the accelerator.
    template <class... In>
    decltype(auto) operator()(In&&... in) const {
        training_->before_forward(*state_);
        if (training_->in_window() || !Training::autocasts) return module_->forward(std::forward<In>(in)...);
        typename Training::Lingering scope(*training_);
        auto out = module_->forward(std::forward<In>(in)...);
        scope.keep();
        return out;
    }

    Module* operator->() const { return module_.get(); }
    Module& operator*() const { return *module_; }
    std::shared_ptr<Module> const& module() const { return module_; }
    model_type& state() const { return *state_; }
    std::shared_ptr<model_type> const& shared_state() const { return state_; }

private:
    std::shared_ptr<Module> module_;
    std::shared_ptr<model_type> state_;
    std::shared_ptr<Training> training_;
};

template <class T>
inline constexpr bool is_prepared_model = false;
template <class Module, class Training>
inline constexpr bool is_prepared_model<Prepared<Module, Training>> = true;

}  // namespace accelerate
