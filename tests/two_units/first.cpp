// Two translation units include everything and meet in one program: what a header defines twice does not link.
#include "support/catch.hpp"

#include <accelerate.hpp>

accelerate::Version const* version_of_the_other_unit();

TEST_CASE("two translation units share one library", "[version]") { CHECK(version_of_the_other_unit() == &accelerate::version); }
