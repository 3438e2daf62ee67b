#pragma once

#include <string>
#include <vector>

namespace accelerate {

/// Operations by name ("aten::softmax", all its overloads) that a precision's scope is to treat otherwise than LibTorch's lists say.
/// A name means the operation that the program calls: functions that are made of others have names of their own. A prepared
/// `acc::Linear<S>` multiplies as its precision says, whatever the lists say.
struct autocast_ops {
    std::vector<std::string> lower_precision = {};  ///< their fp32 arguments are cast to the scope's dtype
    std::vector<std::string> fp32 = {};             ///< their arguments of less than fp32 are cast to it

    bool empty() const { return lower_precision.empty() && fp32.empty(); }
};

}  // namespace accelerate
