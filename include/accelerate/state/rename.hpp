#pragma once

#include <functional>
#include <string>
#include <utility>

namespace accelerate {

/// What a tensor's name in a file is called in the model. Any function from name to name is one; `accelerate/state/rename_regex.hpp` has
/// regular expressions.
using Rename = std::function<std::string(std::string const&)>;

/// Names that begin with `from` begin with `to`: `rename_prefix("module.", "")`.
inline Rename rename_prefix(std::string from, std::string to) {
    return [from = std::move(from), to = std::move(to)](std::string const& name) { return name.starts_with(from) ? to + name.substr(from.size()) : name; };
}

}  // namespace accelerate
