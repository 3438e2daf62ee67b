#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace accelerate::state {

/// Length of the valid UTF-8 sequence at the start of `rest`, or 0: overlong forms, surrogates and values above U+10FFFF are not.
inline size_t utf8_sequence(std::string_view rest) {
    auto const byte = [&](size_t k) { return k < rest.size() ? static_cast<unsigned char>(rest[k]) : 0u; };
    auto const tail = [&](size_t k) { return (byte(k) & 0xC0u) == 0x80u; };
    auto const lead = byte(0);
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return tail(1) ? 2 : 0;
    if (lead >= 0xE0 && lead <= 0xEF) {
        auto const low = lead == 0xE0 ? 0xA0u : 0x80u, high = lead == 0xED ? 0x9Fu : 0xBFu;
        return byte(1) >= low && byte(1) <= high && tail(2) ? 3 : 0;
    }
    if (lead >= 0xF0 && lead <= 0xF4) {
        auto const low = lead == 0xF0 ? 0x90u : 0x80u, high = lead == 0xF4 ? 0x8Fu : 0xBFu;
        return byte(1) >= low && byte(1) <= high && tail(2) && tail(3) ? 4 : 0;
    }
    return 0;
}

/// Where `text` stops being UTF-8; `text.size()` when it does not.
inline size_t utf8_end(std::string_view text) {
    size_t at = 0;
    while (at < text.size()) {
        if (text.size() - at >= 8) {  // ASCII, eight bytes at a time
            uint64_t word = 0;
            std::memcpy(&word, text.data() + at, 8);
            if ((word & 0x8080808080808080u) == 0) {
                at += 8;
                continue;
            }
        }
        auto const length = utf8_sequence(text.substr(at));
        if (length == 0) return at;
        at += length;
    }
    return at;
}

}  // namespace accelerate::state
