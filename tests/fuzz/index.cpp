// The index of a model in several files.
#include "fuzz.hpp"

#include <accelerate/state/safetensors_index.hpp>

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    return fuzz(data, size, [](std::string_view text) {
        auto const index = accelerate::state::parse_safetensors_index(text, "fuzz");
        for (auto const& file : index.files)
            if (file.find('/') != std::string::npos || file == "..") std::abort();
        for (auto const& [tensor, file] : index.tensors)
            if (file >= index.files.size()) std::abort();
    });
}
