// An epoch that one job breaks off and another takes up from a file, perhaps on another number of ranks:
//   exactly_once PHASE FOLDER FIRST COUNT BEFORE AFTER [kill]
// runs PHASE 0 or 1 of the configurations FIRST .. FIRST+COUNT-1 of support/exactly_once.hpp on this job's ranks; with `kill` the process
// is killed at the end, without a destructor. PHASE 2 says what all ranks of both jobs were handed.
#include <torch/torch.h>

#include "support/exactly_once.hpp"

#include <csignal>
#include <filesystem>

namespace acc = accelerate;
namespace data = acc::data;
using exactly_once::Case, exactly_once::Seen;

namespace {

std::filesystem::path file(std::filesystem::path const& folder, Case const& c, std::string const& what) { return folder / acc::concat(c.seed, ".", what); }

void write(std::filesystem::path const& path, Seen const& seen) {
    std::ofstream out(path);
    out << seen.batches << ' ' << seen.repeated << ' ' << seen.wrong << ' ' << seen.real.size();
    for (auto s : seen.real) out << ' ' << s;
}
Seen read(std::filesystem::path const& path) {
    Seen seen;
    std::ifstream in(path);
    size_t n = 0;
    in >> seen.batches >> seen.repeated >> seen.wrong >> n;
    seen.real.resize(n);
    for (auto& s : seen.real) in >> s;
    acc::check(static_cast<bool>(in), acc::code::io, "cannot read ", path);
    return seen;
}

}  // namespace

int main(int argc, char** argv) {
    return acc::run([&] {
        acc::check(argc >= 7, acc::code::config, "usage: exactly_once PHASE FOLDER FIRST COUNT BEFORE AFTER [kill]");
        auto const number = [&](int i) { return static_cast<int64_t>(std::stoll(argv[i])); };
        auto const phase = number(1), first = number(3), count = number(4);
        std::filesystem::path const folder = argv[2];
        acc::PartialState const state;
        int64_t wrong = 0, elsewhere = 0;
        for (auto seed = first; seed < first + count; ++seed) {
            auto const c = exactly_once::draw(seed, number(5), number(6));
            if (phase == 2) {
                std::array<std::vector<Seen>, 2> seen;
                for (size_t p = 0; p < 2; ++p)
                    for (int64_t r = 0; r < c.world[p]; ++r) seen[p].push_back(read(file(folder, c, acc::concat(p, ".", r))));
                auto const verdict = exactly_once::verdict(c, seen[0], seen[1]);
                if (!verdict.empty()) std::cout << verdict << '\n';
                wrong += !verdict.empty(), elsewhere += c.world[0] != c.world[1];
                continue;
            }
            acc::check(c.world[static_cast<size_t>(phase)] == state.num_processes(), acc::code::config, "configuration ", seed, " wants ", c.world[static_cast<size_t>(phase)], " ranks");
            acc::StateDict before;
            if (phase == 1) std::ifstream(file(folder, c, "state")) >> before.values;
            Seen seen;
            auto const end = exactly_once::run_phase<acc::device::Cpu>(c, phase, before, seen);
            write(file(folder, c, acc::concat(phase, ".", state.process_index())), seen);
            if (phase == 0 && state.is_last_process()) std::ofstream(file(folder, c, "state")) << end.values;
        }
        if (phase == 2) std::cout << count << " configurations, " << elsewhere << " of them taken up on another number of ranks: " << count - wrong << " right, " << wrong << " wrong\n";
        acc::check(wrong == 0, acc::code::data, wrong, " configurations are wrong");
        if (argc > 7) std::raise(SIGKILL);
    });
}
