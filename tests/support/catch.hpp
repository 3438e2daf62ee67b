#pragma once
// One spelling for Catch2 2.13 (the distribution's) and 3.x.
#include <string>
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;
/// Matches a text that has `part` in it.
inline auto contains(std::string const& part) { return Catch::Matchers::ContainsSubstring(part); }
#else
#include <catch2/catch.hpp>
inline auto contains(std::string const& part) { return Catch::Matchers::Contains(part); }
#endif
