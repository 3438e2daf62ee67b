#pragma once

#include <accelerate/state/codes.hpp>
#include <accelerate/state/quote.hpp>
#include <accelerate/state/utf8.hpp>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

/// What a `StateDict` holds beside tensors, as JSON text can hold it: JSON has no infinity and no NaN, which a "best loss so far" begins with.
/// They are written as {"__float__": "inf"}, "-inf" and "nan", and come back as what they were.
namespace accelerate::state {

inline constexpr char const* float_key = "__float__";

/// `values` as they are written. Error E_CONFIG naming `who` and the key for what would come back as something else: binary values, text that
/// is not UTF-8, an object that looks like such a number; and for a state whose values are no object.
inline nlohmann::json to_json_text(std::string const& who, nlohmann::json values, std::string_view key = "", bool inside = false) {
    auto const refuse = [&](auto const&... why) { throw Error(code::config, concat("save_state: ", quote(who), inside ? concat(", value ", quote(key)) : "", ": ", why...)); };
    auto const check_text = [&](std::string const& text) {
        if (utf8_end(text) != text.size()) refuse("the text ", quote(text), " is not UTF-8");
    };
    if (!inside && !values.is_object()) refuse("the values of a StateDict are an object of names; found ", values.type_name());
    if (values.is_binary()) refuse("JSON text has no binary values; use a tensor");
    if (values.is_string()) check_text(values.get_ref<std::string const&>());
    if (values.is_number_float() && !std::isfinite(values.get<double>())) {
        auto const x = values.get<double>();
        return {{float_key, std::isnan(x) ? "nan" : x > 0 ? "inf" : "-inf"}};
    }
    if (values.is_object() && values.contains(float_key)) refuse("the name ", quote(float_key), " is taken");
    if (values.is_object())
        for (auto const& [name, value] : values.items()) {
            check_text(name);
            value = to_json_text(who, std::move(value), name, true);
        }
    if (values.is_array())
        for (auto& value : values) value = to_json_text(who, std::move(value), key, true);
    return values;
}

/// Whether two JSON values are written alike. In place of ==, for which a compiler tries every type that JSON converts to, in every file that
/// includes this.
inline bool same_text(nlohmann::json const& a, nlohmann::json const& b) { return a.dump() == b.dump(); }

/// The reverse of `to_json_text`.
inline nlohmann::json from_json_text(nlohmann::json values) {
    if (values.is_object() && values.size() == 1 && values.contains(float_key) && values.front().is_string()) {
        using limits = std::numeric_limits<double>;
        auto const& text = values.front().get_ref<std::string const&>();
        if (text == "nan") return limits::quiet_NaN();
        if (text == "inf" || text == "-inf") return text == "inf" ? limits::infinity() : -limits::infinity();
    }
    if (values.is_structured())
        for (auto& value : values) value = from_json_text(std::move(value));
    return values;
}

}  // namespace accelerate::state
