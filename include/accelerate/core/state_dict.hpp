#pragma once

#include <accelerate/core/tensor_map.hpp>
#include <concepts>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

namespace accelerate {

/// What every stateful thing gives and takes: tensors by name, and everything else as JSON values. Never code, never pickle.
struct StateDict {
    TensorMap tensors;
    nlohmann::json values = nlohmann::json::object();

    /// `values[key]` as T. Error E_DATA naming `who` and the key when it is missing, of another type, or a number that T does not have.
    template <class T>
    T value(std::string const& key, std::string_view who) const {
        auto it = values.find(key);
        check(it != values.end(), code::data, who, ".load_state_dict: the state has no value \"", key, "\"; was it saved by another kind of object?");
        auto const range = [&](bool fits) { check(fits, code::data, who, ".load_state_dict: the value \"", key, "\" has the wrong type or range: ", it->is_primitive() ? it->dump() : it->type_name()); };
        if constexpr (std::same_as<T, bool>) range(it->is_boolean());
        else if constexpr (std::integral<T>) range(it->is_number_unsigned() ? std::in_range<T>(it->template get<uint64_t>()) : it->is_number_integer() && std::in_range<T>(it->template get<int64_t>()));
        else if constexpr (std::floating_point<T>) range(it->is_number());
        try {
            return it->template get<T>();
        } catch (nlohmann::json::exception const& e) {
            throw Error(code::data, concat(who, ".load_state_dict: the value \"", key, "\" has the wrong type: ", e.what()));
        }
    }
};

/// A thing that can be saved and restored.
template <class T>
concept stateful = requires(T& t, T const& c, StateDict const& s) {
    { c.state_dict() } -> std::convertible_to<StateDict>;
    t.load_state_dict(s);
};

}  // namespace accelerate
