// Prints which samples each rank of a loader is handed, for a Python script to compare with: each line of the input is
//   kind samples batch_size ranks split even drop_last seed epochs
// with kind "shard" (order::Torch, indexed), "stream" or "dispatch", and gives a line for each rank: its batches of all epochs as
// "0,1;2,3|4,..." with "|" after each epoch.
#include <torch/torch.h>

#include <accelerate.hpp>
#include <iostream>
#include <sstream>

namespace acc = accelerate;
namespace data = acc::data;

namespace {

using Threads = acc::comm::Threads;

struct Indexed {
    int64_t n = 0;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
};
struct Stream {
    int64_t n = 0, at = 0;
    std::optional<int64_t> next() { return at < n ? std::optional(at++) : std::nullopt; }
    void start(int64_t) { at = 0; }
};

template <class Policy, class Loader>
std::string epochs_of(Loader loader, int64_t epochs) {
    acc::Accelerator<acc::device::BasicCpu<Threads>, acc::precision::Fp32, acc::sharding::None, Policy> accelerator;
    auto prepared = accelerator.prepare(std::move(loader));
    std::ostringstream out;
    while (prepared.epoch() < epochs) {
        auto separator = "";
        for (auto& batch : prepared) {
            out << std::exchange(separator, ";");
            for (int64_t j = 0; j < batch.numel(); ++j) out << (j ? "," : "") << batch.template const_data_ptr<int64_t>()[j];
        }
        out << "|";
    }
    return out.str();
}

}  // namespace

int main() {
    return acc::run([] {
        std::string line, kind;
        while (std::getline(std::cin, line)) {
            int64_t samples = 0, batch_size = 0, ranks = 0, split = 0, even = 0, drop = 0, seed = 0, epochs = 0;
            std::istringstream(line) >> kind >> samples >> batch_size >> ranks >> split >> even >> drop >> seed >> epochs;
            std::vector<std::string> out(static_cast<size_t>(ranks));
            Threads::run(ranks, [&](Threads const& comm) {
                data::options const o{.batch_size = batch_size, .drop_last = drop != 0, .even_batches = even != 0, .split_batches = split != 0};
                auto& mine = out[static_cast<size_t>(comm.rank())];
                if (kind == "shard") mine = epochs_of<acc::loader::Stateful<>>(data::Loader{Indexed{samples}, o, data::order::Torch{.seed = seed}}, epochs);
                else if (kind == "stream") mine = epochs_of<acc::loader::Stateful<>>(data::Loader{Stream{samples}, o}, epochs);
                else mine = epochs_of<acc::loader::Dispatched<>>(data::Loader{Indexed{samples}, o}, epochs);
            });
            for (auto const& text : out) std::cout << text << '\n';
        }
    });
}
