#pragma once
// libFuzzer targets for what reads untrusted text. Any input must be read or be an Error of bad data (exit code 65): nothing else may be thrown,
// and the sanitizers must have nothing to say. Run by `tools/test --full`; inputs that reach new code are kept in build/fuzz.

#include <accelerate/core/error.hpp>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

template <class Parse>
int fuzz(uint8_t const* data, size_t size, Parse const& parse) {
    try {
        parse(std::string_view(reinterpret_cast<char const*>(data), size));
    } catch (accelerate::Error const& e) {
        if (e.exit_code() != accelerate::code::data.exit) std::abort();
    }
    return 0;
}
