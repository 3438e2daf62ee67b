// Uses what a consumer's target must have brought along: our headers, LibTorch's, and the libraries to link.
#include <ATen/core/Tensor.h>
#include <ATen/ops/ones.h>
#include <xxhash.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/version.hpp>
#include <nlohmann/json.hpp>

int main() {
    accelerate::check(at::ones({3}).numel() == 3, accelerate::code::internal, "LibTorch cannot count");
    accelerate::check(XXH3_64bits("a", 1) != 0, accelerate::code::internal, "xxHash is not linked");
    return static_cast<int>(accelerate::version.major) + static_cast<int>(nlohmann::json::array().size());
}
