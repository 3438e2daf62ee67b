#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/sharding/layout.hpp>
#include <string>

namespace accelerate {
namespace code {
inline constexpr Code replica_mismatch{"E_REPLICA_MISMATCH", 76};    ///< ranks prepared models that differ
inline constexpr Code unused_parameters{"E_UNUSED_PARAMETERS", 70};  ///< a backward did not reach every trainable parameter
}  // namespace code

namespace sharding {

/// Error E_REPLICA_MISMATCH on every rank, naming the first difference, unless all ranks hold the same list of parameters and
/// buffers: names, shapes, dtypes. One exchange of a few kilobytes, once.
template <comm::communicator Comm>
void check_replicas(NamedParameters const& parameters, NamedParameters const& buffers, Comm& communicator) {
    auto describe = [&](NamedParameters const& list, char const* kind) {
        std::string text;
        for (auto const& [name, t] : list) text += concat(kind, " ", name, " ", t.sizes(), " ", t.scalar_type(), "\n");
        return text;
    };
    auto const all = communicator.all_gather_bytes(describe(parameters, "parameter") + describe(buffers, "buffer"));
    for (size_t r = 1; r < all.size(); ++r) {
        if (all[r] == all[0]) continue;
        auto line = [](std::string const& text, size_t at) {
            auto const begin = text.rfind('\n', at == 0 ? 0 : at - 1);
            auto const from = begin == std::string::npos || at == 0 ? 0 : begin + 1;
            return from >= text.size() ? std::string("nothing more") : text.substr(from, text.find('\n', from) - from);
        };
        size_t at = 0;
        while (at < all[0].size() && at < all[r].size() && all[0][at] == all[r][at]) ++at;
        throw Error(code::replica_mismatch, concat("prepare on rank ", communicator.rank(), ": ranks hold different models; rank 0 has [", line(all[0], at), "], rank ", r,
                                                   " has [", line(all[r], at), "]; build the model the same way on every rank"));
    }
}

}  // namespace sharding
}  // namespace accelerate
