// Reads a model's files and writes them again, for a Python script to compare with:
//   model_files IN OUT [MAX_SHARD_SIZE] < NAMES      IN: a safetensors file, an index or a folder; OUT: a folder
// NAMES, one a line, are the order in which tensors are spread over files; without any it is that of the files read.
#include <torch/torch.h>

#include <accelerate/core/run.hpp>
#include <accelerate/state/load_file.hpp>
#include <accelerate/state/save_model.hpp>
#include <iostream>
#include <string>

namespace acc = accelerate;

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc == 3 || argc == 4, acc::code::config, "model_files IN OUT [MAX_SHARD_SIZE] < NAMES");
        // Twice, by both ways of reading: what is written comes from the mapped file.
        auto const read = acc::load_file(argv[1]), mapped = acc::load_file(argv[1], {.mapped = true});
        for (auto const& [name, t] : read)
            acc::check(t.nbytes() == 0 || std::memcmp(t.const_data_ptr(), mapped.at(name).const_data_ptr(), t.nbytes()) == 0, acc::code::internal, "tensor ", name, " is another one when it is mapped");
        acc::save_model_options options;
        if (argc == 4) options.max_shard_size = argv[3];
        acc::TensorMap ordered;
        for (std::string name; std::getline(std::cin, name);) ordered.insert(name, mapped.at(name));
        acc::state::save_shards({ordered.empty() ? mapped : ordered, {}}, argv[2], options);
    });
}
