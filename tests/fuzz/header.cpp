// The header of a safetensors file: the first two bytes say how much data follows it, the rest is its text.
#include "fuzz.hpp"

#include <accelerate/state/safetensors_header.hpp>

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    return fuzz(data, size, [](std::string_view text) {
        if (text.size() < 2) return;
        auto const bytes = static_cast<int64_t>(static_cast<unsigned char>(text[0])) + 256 * static_cast<int64_t>(static_cast<unsigned char>(text[1]));
        auto const header = accelerate::state::parse_safetensors_header(text.substr(2), bytes, "fuzz");
        int64_t end = 0;
        for (auto const& t : header.tensors) {
            if (t.begin != end || t.end < t.begin) std::abort();  // what was accepted has no hole and no overlap
            end = t.end;
        }
        if (end != bytes) std::abort();
    });
}
