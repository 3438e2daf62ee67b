#pragma once

#include <ATen/autocast_mode.h>

#include <accelerate/core/error.hpp>
#include <accelerate/module/intercept.hpp>
#include <accelerate/precision/autocast.hpp>
#include <accelerate/precision/autocast_ops.hpp>
#include <algorithm>
#include <string>
#include <unordered_map>

namespace accelerate::module {

/// The user's lists of operations, as an interceptor: inside automatic mixed precision it casts the arguments of those that are listed
/// and calls them without LibTorch's own casts. LibTorch's lists belong to the process and cannot be changed for one run. Costs every
/// operation of a scope the way through the dispatcher's boxed calls, about a microsecond.
class OpPrecision : public Interceptor {
public:
    /// Error E_CONFIG for what is no operation, or is on both lists.
    OpPrecision(autocast_ops const& ops, at::DeviceType device) : Interceptor(&handle_call), device_(device) {
        add(ops.lower_precision, false);
        add(ops.fp32, true);
    }

private:
    void add(std::vector<std::string> const& names, bool fp32) {
        auto const known = c10::Dispatcher::singleton().getAllOpNames();
        for (auto const& name : names) {
            check(std::any_of(known.begin(), known.end(), [&](c10::OperatorName const& op) { return op.name == name; }), code::config, "Accelerator: autocast_ops names \"", name,
                  "\", which is no operation of LibTorch; write it as in \"aten::softmax\"");
            check(fp32_.emplace(name, fp32).second, code::config, "Accelerator: autocast_ops names \"", name, "\" twice");
        }
    }

    static void handle_call(Interceptor& self, c10::OperatorHandle const& op, c10::DispatchKeySet keys, torch::jit::Stack& stack) {
        auto const& ours = static_cast<OpPrecision&>(self);
        auto after = keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, intercept_key);
        if (!at::autocast::is_autocast_enabled(ours.device_)) return op.redispatchBoxed(after, &stack);
        auto const found = ours.fp32_.find(op.schema().name());
        if (found == ours.fp32_.end()) return op.redispatchBoxed(after, &stack);
        auto const lower = at::autocast::get_autocast_dtype(ours.device_);
        precision::AutocastPause const pause(ours.device_);
        auto const arguments = static_cast<std::ptrdiff_t>(op.schema().arguments().size());
        for (auto argument = stack.end() - arguments; argument != stack.end(); ++argument) cast(*argument, found->second ? at::kFloat : lower);
        op.redispatchBoxed(after.remove(at::autocast::get_autocast_dispatch_key_from_device_type(ours.device_)), &stack);
    }

    static at::Tensor cast(at::Tensor const& t, at::ScalarType to) {
        bool const other = t.defined() && (to == at::kFloat ? t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16 : t.scalar_type() == at::kFloat);
        return other ? t.to(to) : t;
    }
    static void cast(c10::IValue& argument, at::ScalarType to) {
        if (argument.isTensor()) argument = cast(argument.toTensor(), to);
        else if (argument.isTensorList()) {
            c10::List<at::Tensor> all;
            for (at::Tensor const& t : argument.toTensorVector()) all.push_back(cast(t, to));
            argument = all;
        }
    }

    at::DeviceType device_;
    std::unordered_map<std::string, bool> fp32_;
};

/// A precision's scope, with the user's lists in force where there are some.
template <class Scope>
class ListedScope {
public:
    explicit ListedScope(OpPrecision* lists, bool enabled = true) : scope_(enabled) {
        if (lists != nullptr && enabled) interception_.emplace(*lists);
    }

private:
    Scope scope_;
    std::optional<Interception> interception_;
};
template <class Scope>
    requires std::is_empty_v<Scope>
class ListedScope<Scope> : Scope {
public:
    explicit ListedScope(OpPrecision* /*lists*/, bool enabled = true) : Scope(enabled) {}
};

}  // namespace accelerate::module
