#pragma once

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <string>
#include <vector>

namespace accelerate {

/// What `load_model` found different.
struct LoadReport {
    std::vector<std::string> missing;     ///< in the model, not in the file (and not covered by a tie)
    std::vector<std::string> unexpected;  ///< in the file, not in the model
    std::vector<std::string> mismatched;  ///< in both, but not of one shape and kind; each with both

    bool complete() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }

    /// All of it in words, the first 20 names of each list.
    std::string describe() const {
        std::string text;
        auto const list = [&](char const* what, std::vector<std::string> const& names) {
            if (names.empty()) return;
            text += concat("\n  ", names.size(), " ", what, ": ");
            for (size_t i = 0; i < std::min<size_t>(names.size(), 20); ++i) text += concat(i == 0 ? "" : ", ", names[i]);
            if (names.size() > 20) text += ", ...";
        };
        list("missing", missing);
        list("unexpected", unexpected);
        list("mismatched", mismatched);
        return text;
    }
};

}  // namespace accelerate
