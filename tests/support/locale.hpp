#pragma once

#include <locale>
#include <string>

/// While it lives, the program's locale writes 12345.5 as 12.345,5, as that of many users does.
class ForeignLocale {
public:
    ForeignLocale() = default;
    ~ForeignLocale() { std::locale::global(before_); }
    ForeignLocale(ForeignLocale const&) = delete;
    ForeignLocale& operator=(ForeignLocale const&) = delete;

private:
    struct Numbers : std::numpunct<char> {
        char do_thousands_sep() const override { return '.'; }
        char do_decimal_point() const override { return ','; }
        std::string do_grouping() const override { return "\3"; }
    };
    std::locale before_ = std::locale::global(std::locale(std::locale(), new Numbers));
};
