#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <optional>
#include <vector>

namespace accelerate::module {

/// Calls `f(tensor)` for each defined tensor in an argument or a result of an operation.
template <class F>
void each_tensor(c10::IValue const& value, F&& f) {
    if (value.isTensor()) {
        if (value.toTensor().defined()) f(value.toTensor());
    } else if (value.isTensorList() || value.isOptionalTensorList()) {
        for (auto const& element : value.toListRef()) each_tensor(element, f);
    }
}

/// The same value with `f(tensor)` in the place of each defined tensor.
template <class F>
c10::IValue map_tensors(c10::IValue const& value, F&& f) {
    auto const mapped = [&](at::Tensor const& t) { return t.defined() ? at::Tensor(f(t)) : t; };
    if (value.isTensor()) return mapped(value.toTensor());
    if (value.isTensorList()) {
        c10::List<at::Tensor> list;
        for (auto const& element : value.toListRef()) list.push_back(mapped(element.toTensor()));
        return list;
    }
    if (value.isOptionalTensorList()) {
        c10::List<std::optional<at::Tensor>> list;
        for (auto const& element : value.toListRef()) list.push_back(element.isTensor() ? std::optional(mapped(element.toTensor())) : std::nullopt);
        return list;
    }
    return value;
}

}  // namespace accelerate::module
