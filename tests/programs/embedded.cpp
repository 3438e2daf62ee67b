// An application that brought MPI up itself, at the thread level that its argument names ("single", "funneled", "multiple"), and
// hands the library its own communicator. Whatever the library does, MPI stays the application's. Exit code 0: all is well.
#include <accelerate.hpp>
#include <cstdio>
#include <optional>
#include <string>
#include <thread>

namespace acc = accelerate;
using Run = acc::Accelerator<acc::device::Cpu, acc::precision::Fp32, acc::sharding::Ddp<acc::ddp{.overlap = acc::Overlap::On}>, acc::loader::Stateful<>>;

namespace {

int failures = 0;

void expect(bool holds, std::string const& what) {
    if (holds) return;
    ++failures;
    std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

/// What `f` throws is one sentence with these words in it.
template <class F>
void refuses(F&& f, std::initializer_list<char const*> words) {
    try {
        f();
        expect(false, "nothing was refused");
    } catch (acc::Error const& e) {
        std::string const text = e.what();
        for (auto const* word : words) expect(text.find(word) != std::string::npos, acc::concat("\"", word, "\" is not in: ", text));
        expect(text.find('\n') == std::string::npos, "one line: " + text);
    }
}

/// In another thread, as a worker of the application's would.
template <class F>
void elsewhere(F&& f) {
    std::thread thread(std::forward<F>(f));
    thread.join();
}

/// Trains on a communicator, with a communication thread, and checks that ranks agree.
void train(acc::comm::Mpi comm, int64_t rank, int64_t size) {
    Run accelerator({}, std::move(comm));
    expect(accelerator.process_index() == rank && accelerator.num_processes() == size, "the ranks are those of the communicator");
    auto [model, optimizer] = accelerator.prepare(torch::nn::Linear(4, 2), acc::optim::Sgd{.lr = 0.1});
    auto const first = model(torch::ones({1, 4})).pow(2).sum().item<double>();
    for (int64_t step = 0; step < 5; ++step) {
        auto window = accelerator.accumulate(model);
        accelerator.backward(model(torch::ones({2, 4}) * (1 + 0.1 * static_cast<double>(rank))).pow(2).mean());
        optimizer.step();
        optimizer.zero_grad();
    }
    expect(model(torch::ones({1, 4})).pow(2).sum().item<double>() < first, "it learns");
    for (auto const& p : model->parameters()) expect(torch::allclose(accelerator.reduce(p.detach(), "max"), p.detach()), "ranks have the same weights");
}

}  // namespace

int main(int argc, char** argv) {
    std::string const level = argc > 1 ? argv[1] : "multiple";
    int provided = 0;
    if (level == "single") MPI_Init(&argc, &argv);
    else MPI_Init_thread(&argc, &argv, level == "funneled" ? MPI_THREAD_FUNNELED : MPI_THREAD_MULTIPLE, &provided);
    MPI_Query_thread(&provided);
    int world_rank = 0, world_size = 1;
    MPI_Comm_rank(MPI_COMM_WORLD, &world_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &world_size);
    int64_t const rank = world_rank, size = world_size;

    // The application's own order of ranks. Its communicator may go as soon as ours is there.
    MPI_Comm mine = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, 0, -world_rank, &mine);
    std::optional<acc::comm::Mpi> comm(mine);
    MPI_Comm_free(&mine);
    expect(acc::Session::instance().rank() == rank && acc::Session::instance().size() == size, "messages name the rank of the process");
    int const status = acc::run([&] {
        train(*comm, size - 1 - rank, size);
        // Any thread may communicate over common memory: that needs nothing of MPI.
        elsewhere([&] { train(comm->duplicate(), size - 1 - rank, size); });
        train(acc::comm::Mpi::world(), rank, size);
    });
    expect(status == 0, "run");

    // Between nodes somebody must call MPI.
    std::optional<acc::comm::Mpi> nodes(std::in_place, MPI_COMM_WORLD, acc::comm::mpi_options{.ranks_per_node = 1});
    auto const sum = [&] {
        auto const t = torch::full({3}, rank + 1, torch::kLong);
        nodes->all_reduce(t, acc::comm::Reduction::Sum);
        return t[0].item<int64_t>();
    };
    expect(sum() == size * (size + 1) / 2, "a sum between nodes");
    if (provided == MPI_THREAD_MULTIPLE) {
        elsewhere([&] { expect(sum() == size * (size + 1) / 2, "a sum between nodes on another thread"); });
    } else {
        if (size > 1) elsewhere([&] { refuses(sum, {"E_CONFIG", "MPI_THREAD_MULTIPLE", "all_reduce"}); });
        elsewhere([&] { refuses([] { acc::comm::Mpi{MPI_COMM_WORLD}; }, {"E_CONFIG", "MPI_THREAD_FUNNELED", "on that thread"}); });
        expect(sum() == size * (size + 1) / 2, "the first thread goes on");
    }

    acc::Session::instance().finalise();
    int finalised = 1, come = 0, one = 1;
    MPI_Finalized(&finalised);
    expect(finalised == 0, "the library does not finalise what it did not initialise");
    MPI_Allreduce(&one, &come, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    expect(come == world_size, "MPI works on");
    // Communicators may outlive MPI; those that need it say so.
    MPI_Finalize();
    comm->barrier();
    if (size > 1) refuses([&] { nodes->barrier(); }, {"MPI has been finalised"});
    refuses([] { acc::comm::Mpi::world(); }, {"E_CALL_ORDER", "finalised"});
    refuses([] { acc::comm::Mpi{MPI_COMM_WORLD}; }, {"E_CALL_ORDER"});
    comm.reset(), nodes.reset();
    return failures == 0 ? 0 : 1;
}
