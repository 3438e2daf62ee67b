#pragma once
// Not in accelerate.hpp: <regex> is slow to compile.

#include <accelerate/core/error.hpp>
#include <accelerate/state/rename.hpp>
#include <regex>
#include <string>
#include <utility>

namespace accelerate {

/// Every match of an ECMAScript expression becomes `to`, in which `$1` is its first group: `rename_regex("^h\\.(\\d+)\\.", "blocks.$1.")`.
/// Error E_CONFIG for what is no expression.
inline Rename rename_regex(std::string const& expression, std::string to) {
    try {
        return [compiled = std::regex(expression), to = std::move(to)](std::string const& name) { return std::regex_replace(name, compiled, to); };
    } catch (std::regex_error const& e) {
        throw Error(code::config, concat("rename_regex: \"", expression, "\" is no regular expression: ", e.what()));
    }
}

}  // namespace accelerate
