// Text that is streamed from files: each rank reads its own part of the bytes, never a whole file. Lines become token sequences of
// different length, which are padded batch by batch; a model learns which byte follows which.
//   ./streaming_text FILE...        mpirun -n 2 ./streaming_text FILE...
#include <accelerate.hpp>

namespace acc = accelerate;

int main(int argc, char** argv) {
    return acc::run([&] {
        std::vector<std::filesystem::path> const files(argv + 1, argv + argc);
        acc::check(!files.empty(), acc::code::config, "streaming_text: name one or several text files");
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<>, acc::loader::Stateful<>> accelerator;

        auto const to_bytes = [](std::string const& line) {
            auto const n = std::min<size_t>(line.size(), 128);
            auto const bytes = torch::empty({static_cast<int64_t>(n)}, torch::kLong);
            std::transform(line.begin(), line.begin() + static_cast<std::ptrdiff_t>(n), bytes.mutable_data_ptr<int64_t>(), [](char c) { return static_cast<unsigned char>(c); });
            return acc::data::PaddedSequence{bytes};
        };
        auto const more_than_one = [](std::string const& line) { return line.size() > 1; };
        auto lines = acc::data::map(acc::data::filter(acc::data::Lines(files), more_than_one), to_bytes);

        torch::manual_seed(1);
        torch::nn::Embedding table(256, 256);  // of byte a: the scores of the byte behind it
        auto [model, optimizer, train] = accelerator.prepare(table, acc::optim::AdamW{.lr = 5e-2}, acc::data::Loader{std::move(lines), {.batch_size = 32, .num_workers = 1}});
        while (train.epoch() < 2) {
            auto const epoch = train.epoch();
            acc::metrics::Perplexity perplexity;
            for (auto& batch : train) {
                auto const input = batch.values.slice(1, 0, -1), target = batch.values.slice(1, 1);
                auto const real = batch.mask.slice(1, 1).logical_and(train.mask().unsqueeze(1));  // neither padding nor a repeated line
                auto window = accelerator.accumulate(model);
                auto const losses = torch::nn::functional::cross_entropy(model(input).transpose(1, 2), target, torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone));
                perplexity.update(losses, real);
                accelerator.backward(acc::weighted((losses * real).sum(), real.sum().item<double>()));  // ranks and batches differ in tokens
                optimizer.step();
                optimizer.zero_grad();
            }
            accelerator.print("epoch", epoch, "perplexity", perplexity.compute(accelerator.comm()));
        }
    });
}
