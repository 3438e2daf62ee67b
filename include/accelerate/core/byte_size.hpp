#pragma once

#include <accelerate/core/error.hpp>
#include <accelerate/core/units.hpp>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

namespace accelerate {

/// A number of bytes as people write it: a number, or text with a unit: "10GB", "1.5 GiB", "200KB" (Python's `max_shard_size`, `max_memory`).
/// KB, MB, GB, TB are powers of 1000, KiB and so on of 1024. Error E_CONFIG for other text, also for bits ("Gb").
struct ByteSize {
    constexpr ByteSize(int64_t n) : value(n) {}
    constexpr ByteSize(int n) : value(n) {}
    constexpr ByteSize(Bytes n) : value(n.value) {}
    ByteSize(std::string_view text) : value(parse(text)) {}
    ByteSize(char const* text) : ByteSize(std::string_view(text)) {}
    ByteSize(std::string const& text) : ByteSize(std::string_view(text)) {}

    int64_t value = 0;

private:
    static int64_t parse(std::string_view text) {
        double number = 0;
        auto const* const end = text.data() + text.size();
        auto const [rest, error] = std::from_chars(text.data(), end, number);
        std::string_view unit(rest, static_cast<size_t>(end - rest));
        while (unit.starts_with(' ')) unit.remove_prefix(1);
        constexpr std::string_view prefixes = "KMGT";
        double factor = 1;
        bool valid = error == std::errc() && number >= 0 && unit.ends_with('B');
        if (valid && unit.size() > 1) {
            bool const binary = unit.size() == 3 && unit[1] == 'i';
            auto const power = prefixes.find(unit[0] >= 'a' ? static_cast<char>(unit[0] - 32) : unit[0]);
            valid = power != std::string_view::npos && (binary || unit.size() == 2);
            for (size_t i = 0; valid && i <= power; ++i) factor *= binary ? 1024 : 1000;
        }
        check(valid && number * factor < 9e18, code::config, "\"", text, "\" is no size; write it as \"10GB\" or \"512MiB\", or as a number of bytes");
        return static_cast<int64_t>(number * factor);
    }
};

}  // namespace accelerate
