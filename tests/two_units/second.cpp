#include <accelerate.hpp>

accelerate::Version const* version_of_the_other_unit();
accelerate::Version const* version_of_the_other_unit() { return &accelerate::version; }
