#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

/// Of what was measured several times; of an even number the upper of the two in the middle.
inline double median(std::vector<double> values) {
    auto const middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}
