#pragma once

#include <accelerate/state/utf8.hpp>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace accelerate::state {

/// Whether a valid UTF-8 sequence could disturb a terminal or hide text: controls, direction marks, zero-width and line breaks.
inline bool unprintable(std::string_view sequence) {
    auto const byte = [&](size_t k) { return static_cast<unsigned char>(sequence[k]); };
    if (sequence.size() == 1) return byte(0) < 0x20 || byte(0) == 0x7F;
    if (sequence.size() == 2) return byte(0) == 0xC2 && byte(1) < 0xA0;  // C1 controls
    if (sequence.size() != 3) return false;
    bool const punctuation = byte(0) == 0xE2 && ((byte(1) == 0x80 && (byte(2) <= 0x8F || byte(2) >= 0xA8)) || (byte(1) == 0x81 && byte(2) >= 0xA0));
    return punctuation || (byte(0) == 0xEF && byte(1) == 0xBB && byte(2) == 0xBF);  // U+2000-200F, 2028-203F, 2060-206F, FEFF
}

/// A name from a file as it may appear on a terminal: in quotes, at most about `longest` bytes, what is unprintable as \xNN.
inline std::string quote(std::string_view name, size_t longest = 100) {
    constexpr char const* digits = "0123456789abcdef";
    std::string out = "\"";
    auto rest = name.substr(0, longest);
    while (!rest.empty()) {
        auto const length = utf8_sequence(rest);
        auto const sequence = rest.substr(0, length == 0 ? 1 : length);
        if (length == 0 || unprintable(sequence)) {
            for (char const c : sequence) {
                auto const value = static_cast<unsigned char>(c);
                out += {'\\', 'x', digits[value >> 4], digits[value & 15]};
            }
        } else {
            if (sequence == "\"" || sequence == "\\") out += '\\';
            out += sequence;
        }
        rest.remove_prefix(sequence.size());
    }
    return out + (name.size() > longest ? "...\"" : "\"");
}

/// The same of a path, whole: what tells it from others is its end.
inline std::string quote_path(std::filesystem::path const& path) { return quote(path.native(), std::string::npos); }

}  // namespace accelerate::state
