// The manifest of a checkpoint.
#include "fuzz.hpp"

#include <accelerate/state/manifest.hpp>

extern "C" int LLVMFuzzerTestOneInput(uint8_t const* data, size_t size) {
    return fuzz(data, size, [](std::string_view text) {
        auto const manifest = accelerate::state::Manifest::parse(std::string(text), "fuzz");
        for (auto const& [name, t] : manifest.tensors)
            for (auto const& part : t.parts)
                if (part.file < 0 || part.file >= manifest.world || part.from > part.to || part.to > t.numel()) std::abort();
    });
}
