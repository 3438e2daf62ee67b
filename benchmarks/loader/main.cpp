// Samples a second of loaders, and how long a resume takes. Prints a JSON object a line.
//   loader images|tokens [SECONDS]   one process: gather-memcpy of the same rows, ours without and with a worker; interleaved
//   loader ranks images|tokens       on all ranks of the job: Stateful, Dispatched, and the gather-memcpy on each rank
//   loader workers                   a transform of 200 us a sample, by one and two workers
//   loader resume                    load_state_dict and the first batch behind it, at positions 10^3 to 10^8 batches
#include <malloc.h>

#include <accelerate.hpp>
#include <iostream>

namespace acc = accelerate;
namespace data = acc::data;
using Clock = std::chrono::steady_clock;

namespace {

constexpr int64_t batch_size = 64;
constexpr int64_t gigabyte = int64_t{1} << 30;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

/// At least 1 GB of rows and their labels, all pages touched.
struct Source {
    explicit Source(std::string const& kind)
        : rows(kind == "images" ? torch::full({gigabyte / 12288, 3, 32, 32}, 0.5) : torch::full({gigabyte / 2048, 1024}, 7, torch::kInt).to(at::kUInt16)), labels(torch::arange(rows.size(0))) {}
    data::Tensors<2> dataset() const { return data::Tensors(rows, labels); }
    torch::Tensor rows, labels;
};

/// Reads `samples` of the epoch's order and copies their rows and labels into one buffer: what no loader can do without. Samples a second.
double copy(Source const& source, data::order::Shuffled order, int64_t samples) {
    auto const view = order.epoch(0, source.rows.size(0));
    std::vector<int64_t> indices;
    for (int64_t p = 0; p < samples; ++p) indices.push_back(view[p]);
    auto const bytes = source.rows.nbytes() / static_cast<size_t>(source.rows.size(0));
    std::vector<char> buffer(static_cast<size_t>(batch_size) * bytes);
    std::vector<int64_t> labels(static_cast<size_t>(batch_size));
    auto const* from = static_cast<char const*>(source.rows.const_data_ptr());
    auto const* label = source.labels.const_data_ptr<int64_t>();
    auto const begin = Clock::now();
    for (size_t p = 0; p < indices.size(); ++p) {
        auto const slot = p % static_cast<size_t>(batch_size);
        std::memcpy(buffer.data() + slot * bytes, from + static_cast<size_t>(indices[p]) * bytes, bytes);
        labels[slot] = label[indices[p]];
    }
    auto const time = seconds_since(begin);
    asm volatile("" : : "r"(buffer.data()), "r"(labels.data()) : "memory");
    return static_cast<double>(samples) / time;
}

/// Samples a second of a prepared loader over about `samples` of them, all ranks together.
template <class Loader>
double consume(Loader& loader, int64_t samples) {
    auto begin = Clock::now();
    int64_t seen = 0, warm = samples / 8;
    int64_t checksum = 0;
    for (auto& [rows, labels] : loader) {
        checksum += labels.template const_data_ptr<int64_t>()[0];
        seen = loader.consumed();
        if (warm > 0 && seen >= warm) begin = Clock::now(), samples += seen, warm = -seen;
        if (seen >= samples) break;
    }
    asm volatile("" : : "r"(checksum));
    return static_cast<double>(seen + warm) / seconds_since(begin);
}

void say(nlohmann::json const& row) { std::cout << row << std::endl; }

void throughput(std::string const& kind) {
    Source const source(kind);
    auto const samples = std::min<int64_t>(source.rows.size(0) / 2, kind == "images" ? 30000 : 200000);
    auto const ours = [&](int64_t workers, int64_t seed) {
        data::Prepared loader{data::Loader{source.dataset(), {.batch_size = batch_size, .shuffle = true, .seed = seed, .num_workers = workers}}};
        return consume(loader, samples);
    };
    std::map<std::string, double> best;
    for (int64_t round = 0; round < 7; ++round) {
        auto const keep = [&](std::string const& arm, double rate) { best[arm] = std::max(best[arm], rate); };
        keep("copy", copy(source, {round}, samples));
        keep("ours", ours(0, round));
        keep("ours, 1 worker", ours(1, round));
    }
    say({{"kind", kind}, {"ranks", 1}, {"rates", best}});
}

void on_ranks(std::string const& kind) {
    acc::PartialState const state;
    Source const source(kind);
    auto const samples = kind == "images" ? 30000 : 200000;
    auto const ours = [&]<class Policy>(std::type_identity<Policy>, int64_t seed) {
        acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::None, Policy> accelerator;
        auto loader = accelerator.prepare(data::Loader{source.dataset(), {.batch_size = batch_size, .shuffle = true, .seed = seed}});
        accelerator.wait_for_everyone();
        auto const rate = consume(loader, samples);
        return accelerator.reduce(torch::tensor({rate}, torch::kDouble), "min").template item<double>();
    };
    std::map<std::string, double> best;
    acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::None, acc::loader::Stateful<>> all;
    for (int64_t round = 0; round < 5; ++round) {
        auto const keep = [&](std::string const& arm, double rate) { best[arm] = std::max(best[arm], rate); };
        all.wait_for_everyone();
        auto const copied = copy(source, {round}, samples / state.num_processes());
        keep("copy", all.reduce(torch::tensor({copied}, torch::kDouble), "sum").item<double>());
        keep("ours", ours(std::type_identity<acc::loader::Stateful<>>(), round));
        keep("ours, dispatched", ours(std::type_identity<acc::loader::Dispatched<>>(), round));
    }
    if (state.is_main_process()) say({{"kind", kind}, {"ranks", state.num_processes()}, {"rates", best}});
}

void workers() {
    struct Busy {
        size_t size() const { return 4000; }
        int64_t operator[](size_t i) const {
            for (auto const begin = Clock::now(); Clock::now() - begin < std::chrono::microseconds(200);) {}
            return static_cast<int64_t>(i);
        }
    };
    std::map<std::string, double> best;
    for (int round = 0; round < 3; ++round)
        for (int64_t n : {0, 1, 2}) {
            data::Prepared loader{data::Loader{Busy(), {.batch_size = 32, .num_workers = n}}};
            auto const begin = Clock::now();
            int64_t seen = 0;
            for (auto& batch : loader) seen += batch.numel();
            auto& b = best[std::to_string(n)];
            b = std::max(b, static_cast<double>(seen) / seconds_since(begin));
        }
    say({{"workers", best}});
}

/// Sample i is the number i; ten times 10^9 of them take no memory.
struct Numbers {
    int64_t n;
    size_t size() const { return static_cast<size_t>(n); }
    int64_t operator[](size_t i) const { return static_cast<int64_t>(i); }
};

void resume() {
    int64_t const n = int64_t{64} * 200000000;
    data::options const o{.batch_size = batch_size, .shuffle = true, .seed = 42};
    auto const order = data::order::Shuffled{42}.epoch(0, n);
    for (int64_t position = 1000; position <= 100000000; position *= 10) {
        data::Prepared before{data::Loader{Numbers{n}, o}};
        for ([[maybe_unused]] auto& batch : before.skip_first_batches(position - 1)) break;
        auto const state = before.state_dict();
        double best = 1e9;
        bool equal = true;
        for (int round = 0; round < 20; ++round) {
            data::Prepared after{data::Loader{Numbers{n}, o}};
            auto const begin = Clock::now();
            after.load_state_dict(state);
            auto it = after.begin();
            best = std::min(best, seconds_since(begin));
            for (int64_t j = 0; j < batch_size; ++j) equal = equal && it->const_data_ptr<int64_t>()[j] == order[position * batch_size + j];
        }
        say({{"resume", position}, {"us", best * 1e6}, {"equal", equal}, {"state_bytes", state.values.dump().size()}});
    }
    auto const heap = [] { return static_cast<int64_t>(mallinfo2().uordblks + mallinfo2().hblkhd); };
    data::Prepared loader{data::Loader{Numbers{1000000000}, o}};
    auto const before = heap();
    int64_t most = 0, batches = 0;
    for ([[maybe_unused]] auto& batch : loader) {
        most = std::max(most, heap() - before);
        if (++batches == 10000) break;
    }
    say({{"heap_of_1e9", most}});
    for (int64_t samples : {1000000, 10000000}) {
        auto const begin = Clock::now();
        auto const table = data::order::Torch{.seed = 1}.epoch(0, samples);
        say({{"table", samples}, {"ms", seconds_since(begin) * 1e3}, {"first", table[0]}});
    }
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        torch::set_num_threads(1);
        std::string const what = argc > 1 ? argv[1] : "";
        if (what == "images" || what == "tokens") throughput(what);
        else if (what == "ranks" && argc > 2) on_ranks(argv[2]);
        else if (what == "workers") workers();
        else if (what == "resume") resume();
        else throw acc::Error(acc::code::config, "usage: loader images|tokens|ranks images|ranks tokens|workers|resume");
    });
}
