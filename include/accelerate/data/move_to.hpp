#pragma once

#include <accelerate/core/for_each_tensor.hpp>

namespace accelerate::data {

/// Brings every tensor of a value to `device`; those that are there already are not touched. A type of the user's with a member
/// `to(device)` is asked to do it; what is not known is left alone. With `non_blocking`, copies of pinned memory are only enqueued.
template <class Value>
void move_to(Value& value, at::Device device, bool non_blocking = false) {
    if constexpr (!std::same_as<Value, at::Tensor> && requires { value = value.to(device); }) value = value.to(device);
    else {
        for_each_known_tensor(value, [&](at::Tensor& t) {
            if (t.device() != device) t = t.to(device, t.scalar_type(), non_blocking);
        });
    }
}

/// Copies every tensor of a value into page-locked memory, from which devices read without the CPU.
template <class Value>
void pin(Value& value) {
    for_each_known_tensor(value, [](at::Tensor& t) {
        if (t.is_cpu()) t = t.pin_memory();
    });
}

}  // namespace accelerate::data
