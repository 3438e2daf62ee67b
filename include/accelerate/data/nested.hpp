#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/data/aggregate.hpp>
#include <ranges>

namespace accelerate::data {

/// Calls `f(at::Tensor&)` for every tensor in a value: the value itself, or those in structs, tuples, pairs, arrays, vectors,
/// maps and optionals, in order. What holds no tensor is left alone. Costs nothing but the calls.
template <class Value, class F>
void visit_tensors(Value& value, F&& f) {
    if constexpr (std::is_same_v<std::remove_const_t<Value>, at::Tensor>) f(value);
    else if constexpr (requires { std::tuple_size<std::remove_const_t<Value>>::value; })
        std::apply([&](auto&... part) { (visit_tensors(part, f), ...); }, value);
    else if constexpr (requires { typename std::remove_const_t<Value>::mapped_type; })
        for (auto& [key, mapped] : value) visit_tensors(mapped, f);
    else if constexpr (requires { value.has_value(); *value; }) {
        if (value.has_value()) visit_tensors(*value, f);
    } else if constexpr (std::ranges::range<Value>) {
        using Part = std::ranges::range_reference_t<Value>;
        if constexpr (std::is_lvalue_reference_v<Part> && std::is_class_v<std::remove_reference_t<Part>>)
            for (auto& part : value) visit_tensors(part, f);
    } else if constexpr (decomposable<std::remove_const_t<Value>>)
        std::apply([&](auto&... part) { (visit_tensors(part, f), ...); }, fields(value));
}

/// Brings every tensor of a value to `device`; those that are there already are not touched. A type of the user's with a member
/// `to(device)` is asked to do it.
template <class Value>
void move_to(Value& value, at::Device device) {
    if constexpr (!std::is_same_v<Value, at::Tensor> && requires { value = value.to(device); }) value = value.to(device);
    else {
        visit_tensors(value, [&](at::Tensor& t) {
            if (t.defined() && t.device() != device) t = t.to(device);
        });
    }
}

}  // namespace accelerate::data
