#pragma once

#include <xxhash.h>

#include <accelerate/state/input_file.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace accelerate::state {

/// Hash of a file's bytes, as text: "xxh3-128:" and 32 hexadecimal digits (XXH3, seed 0; collision-free for accidents, not against
/// somebody who wants one). Reads the file once, in pieces.
inline std::string hash_of(InputFile const& file) {
    std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> const state(XXH3_createState(), &XXH3_freeState);
    check(state != nullptr && XXH3_128bits_reset(state.get()) == XXH_OK, code::internal, "cannot make the state of a hash");
    std::vector<char> piece(size_t{4} << 20);
    for (int64_t at = 0; at < file.size();) {
        auto const n = std::min<int64_t>(file.size() - at, static_cast<int64_t>(piece.size()));
        file.read_at(piece.data(), n, at);
        XXH3_128bits_update(state.get(), piece.data(), static_cast<size_t>(n));
        at += n;
    }
    auto const digest = XXH3_128bits_digest(state.get());
    char text[40];
    std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(digest.high64), static_cast<unsigned long long>(digest.low64));
    return std::string("xxh3-128:") + text;
}

}  // namespace accelerate::state
