// The communicator over MPI, in every way in which its ranks can see each other. Run under mpirun -n 1, 2, 4, or alone.
#include "support/conformance.hpp"
#include "support/stderr.hpp"

#include <sys/mount.h>
#include <sys/stat.h>

#include <accelerate/comm/mpi.hpp>

namespace acc = accelerate;
namespace comm = accelerate::comm;

namespace {

using conformance::lacks;

int64_t world_size() {
    static int64_t const n = comm::Mpi::world().size();
    return n;
}
int64_t world_rank() {
    static int64_t const r = comm::Mpi::world().rank();
    return r;
}

struct OnMpi {
    comm::mpi_options given = {};

    int64_t size() const { return world_size(); }
    bool together(int64_t a, int64_t b) const {
        if (given.memory == comm::SharedMemory::None) return a == b;
        return given.ranks_per_node == 0 || a / given.ranks_per_node == b / given.ranks_per_node;
    }
    comm::transport_options options() const { return given.transport.fitted(world_size()); }
    template <class F>
    void operator()(F&& f) const {
        auto const c = comm::Mpi::world(given);
        f(c);
        // What is still on its way to a communicator that failed must come before it is gone.
        if (comm::mpi::running()) MPI_Barrier(MPI_COMM_WORLD);
    }
};

int64_t count_of(std::string const& text, std::string const& word) {
    int64_t n = 0;
    for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
    return n;
}

/// Small pieces, so that even short cases go in several.
constexpr comm::transport_options small{.stage_bytes = 4096, .pipe_bytes = 512, .small_bytes = 256};

}  // namespace

// ---- what every communicator promises ------------------------------------------------------------------------------------------

TEST_CASE("Mpi conforms", "[mpi][communicator][process_memory]") { conformance::conform(OnMpi{}); }

TEST_CASE("Mpi conforms with a file as common memory", "[mpi][process_memory]") { conformance::conform(OnMpi{{.memory = comm::SharedMemory::File, .transport = small}}); }

TEST_CASE("Mpi conforms without common memory", "[mpi][mpi_bridge]") {
    if (world_size() > 1) conformance::conform(OnMpi{{.memory = comm::SharedMemory::None, .transport = small}});
}

TEST_CASE("Mpi conforms over several nodes", "[mpi][mpi_bridge][bridge]") {
    // Of two ranks each; of different sizes. Where MPI takes only little at once, data goes the way of more than 2^31 elements.
    auto const [ranks_per_node, max_count] = GENERATE(table<int64_t, int64_t>({{2, int64_t{1} << 30}, {3, 100}, {1, 100}}));
    CAPTURE(ranks_per_node, max_count);
    if (world_size() == 4 ? ranks_per_node > 1 : world_size() > 1 && ranks_per_node == 1)
        conformance::conform(OnMpi{{.ranks_per_node = ranks_per_node, .transport = small, .max_count = max_count}});
}

// ---- memory --------------------------------------------------------------------------------------------------------------------

namespace {

/// A folder that all ranks see; rank 0 makes it, and removes it.
class Folder {
public:
    Folder() : everyone_(comm::Mpi::world()) {
        std::string name;
        if (everyone_.rank() == 0) name = (std::filesystem::temp_directory_path() / acc::concat("accelerate-comm-", getpid())).string();
        everyone_.broadcast_bytes(name, 0);
        path = name;
        if (everyone_.rank() == 0) std::filesystem::create_directories(path);
        everyone_.barrier();
    }
    ~Folder() {
        everyone_.barrier();
        if (everyone_.rank() != 0) return;
        if (mounted_) umount2(path.c_str(), MNT_DETACH);
        std::filesystem::remove_all(path);
    }
    Folder(Folder const&) = delete;
    Folder& operator=(Folder const&) = delete;

    /// A file system of its own of so many bytes; false where this user may not mount one.
    bool shrink(int64_t bytes) {
        std::string answer(1, 'n');
        if (everyone_.rank() == 0) mounted_ = mount("none", path.c_str(), "tmpfs", 0, acc::concat("size=", bytes).c_str()) == 0, answer[0] = mounted_ ? 'y' : 'n';
        everyone_.broadcast_bytes(answer, 0);
        return answer == "y";
    }

    bool empty() const { return std::filesystem::is_empty(path); }

    std::filesystem::path path;

private:
    comm::Mpi everyone_;
    bool mounted_ = false;
};

/// A few operations of each kind, also in further communicators.
void exercise(comm::Mpi const& c) {
    auto const n = c.size();
    for (auto const& part : {c, c.duplicate(), c.split(0, -c.rank())}) {
        auto const t = at::full({100000}, c.rank(), at::kInt);
        part.all_reduce(t, comm::Reduction::Sum);
        CHECK(t.eq(n * (n - 1) / 2).all().item<bool>());
        CHECK(part.all_gather(at::full({}, part.rank())).equal(at::arange(n)));
        auto const b = part.allocate(300000, at::kFloat);
        b.tensor().fill_(1);
        part.all_reduce(b, 0, 300000, comm::Reduction::Sum);
        CHECK(b.tensor().eq(n).all().item<bool>());
        part.all_reduce(b, 0, 200000, comm::Reduction::Mean, false);
        auto const [lo, hi] = comm::Buffer::slice(0, 200000, n - 1, n);
        CHECK(b.reduced(n - 1).slice(0, lo, hi).eq(n).all().item<bool>());
        part.release(b);
    }
}

}  // namespace

TEST_CASE("no file is left while it is used", "[process_memory]") {
    Folder const folder;
    auto const c = comm::Mpi::world({.memory = comm::SharedMemory::File, .directory = folder.path});
    auto const again = c.duplicate();
    auto const b = again.allocate(100000, at::kFloat);
    CHECK(b.parts() == c.size());
    c.barrier();
    CHECK(folder.empty());
    exercise(again);
}

TEST_CASE("a folder that does not exist: as if every rank had a node of its own, said once", "[process_memory][mpi]") {
    auto const folder = std::filesystem::temp_directory_path() / "accelerate-no-such-folder";
    auto const text = stderr_of([&] { exercise(comm::Mpi::world({.memory = comm::SharedMemory::File, .directory = folder})); });
    CAPTURE(text);
    CHECK(count_of(text, "cannot share") == (world_rank() == 0 && world_size() > 1 ? 1 : 0));
    if (world_rank() == 0 && world_size() > 1) CHECK(count_of(text, folder.string()) == 1);
}

TEST_CASE("a folder that is too small: data goes in slices through what there is, said once", "[process_memory][split]") {
    Folder folder;
    if (!folder.shrink(1 << 20)) return;
    auto const text = stderr_of([&] {
        auto const c = comm::Mpi::world({.memory = comm::SharedMemory::File, .directory = folder.path});
        exercise(c);
        if (c.size() == 1) return;
        CHECK(c.allocate(1000, at::kFloat).parts() == c.size());
        CHECK(c.allocate(1 << 20, at::kFloat).parts() == 1);
    });
    CAPTURE(text);
    CHECK(count_of(text, "cannot share") == (world_rank() == 0 && world_size() > 1 ? 1 : 0));
    CHECK(folder.empty());
}

// ---- whose MPI it is -----------------------------------------------------------------------------------------------------------

TEST_CASE("the session knows who this process is", "[mpi_session]") {
    namespace mpi = comm::mpi;
    auto const c = comm::Mpi::world();
    if (!mpi::running()) {
        CHECK_FALSE(mpi::launched());
        CHECK(c.size() == 1);
        return;
    }
    CHECK((mpi::initialised() && !mpi::finalised() && mpi::enter() && mpi::may_call()));
    bool other = false;
    std::thread([&] { other = mpi::may_call(); }).join();
    CHECK(other);  // we asked for MPI_THREAD_MULTIPLE
    CHECK(acc::Session::instance().rank() == c.rank());
    CHECK(acc::Session::instance().size() == c.size());
    CHECK_NOTHROW(mpi::call(MPI_SUCCESS, "MPI_Nothing"));
    try {
        mpi::call(MPI_ERR_COUNT, "MPI_Something");
        FAIL("an error of MPI was not noticed");
    } catch (acc::Error const& e) {
        CHECK(e.code() == acc::code::internal);
        CHECK(count_of(e.what(), "MPI_Something") == 1);
    }
}

TEST_CASE("a launcher is known by its environment", "[mpi_session]") {
    std::vector<std::pair<std::string, std::string>> before;
    for (auto const* name : {"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK", "PMI_FD", "MPI_LOCALRANKID", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_PROCID",
                             "SLURM_STEP_NUM_TASKS"})
        if (auto const* value = std::getenv(name)) before.emplace_back(name, value), unsetenv(name);
    CHECK_FALSE(comm::mpi::launched());
    setenv("PMI_RANK", "0", 1);
    CHECK(comm::mpi::launched());
    unsetenv("PMI_RANK");
    setenv("SLURM_STEP_ID", "0", 1), setenv("SLURM_PROCID", "0", 1), setenv("SLURM_STEP_NUM_TASKS", "1", 1);
    CHECK_FALSE(comm::mpi::launched());  // the shell of an allocation, not srun of several
    setenv("SLURM_STEP_NUM_TASKS", "2", 1);
    CHECK(comm::mpi::launched());
    for (auto const* name : {"SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"}) unsetenv(name);
    for (auto const& [name, value] : before) setenv(name.c_str(), value.c_str(), 1);
}

TEST_CASE("a communicator of the caller's own", "[mpi]") {
    if (!comm::mpi::running()) return;
    auto const n = world_size(), me = world_rank();
    MPI_Comm reversed = MPI_COMM_NULL, half = MPI_COMM_NULL, some = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, 0, static_cast<int>(-me), &reversed);
    comm::Mpi const c(reversed);
    MPI_Comm_free(&reversed);  // it is not used after the call
    CHECK(c.rank() == n - 1 - me);
    exercise(c);
    CHECK(c.all_gather(at::full({}, me)).equal(at::arange(n).flip(0)));
    MPI_Comm_split(MPI_COMM_WORLD, static_cast<int>(me % 2), 0, &half);
    comm::Mpi const h(half);
    MPI_Comm_free(&half);
    CHECK(h.size() == (n + 1 - me % 2) / 2);
    exercise(h);
    CHECK(comm::Mpi(MPI_COMM_SELF).size() == 1);
    // Ranks that a split left out.
    MPI_Comm_split(MPI_COMM_WORLD, me == 0 ? 0 : MPI_UNDEFINED, 0, &some);
    if (me == 0) {
        CHECK(comm::Mpi(some).size() == 1);
        MPI_Comm_free(&some);
    } else {
        CHECK(lacks([&] { comm::Mpi{some}; }, {"E_CONFIG", "MPI_COMM_NULL"}) == "");
    }
    if (n == 1) return;
    MPI_Comm between = MPI_COMM_NULL, side = MPI_COMM_NULL;
    MPI_Comm_split(MPI_COMM_WORLD, me == 0 ? 0 : 1, 0, &side);
    MPI_Intercomm_create(side, 0, MPI_COMM_WORLD, me == 0 ? 1 : 0, 5, &between);
    CHECK(lacks([&] { comm::Mpi{between}; }, {"E_CONFIG", "intercommunicator"}) == "");
    MPI_Comm_free(&between);
    MPI_Comm_free(&side);
}

// ---- the bridge ----------------------------------------------------------------------------------------------------------------

TEST_CASE("the bridge says who is missing, and carries a farewell", "[mpi_bridge][bridge]") {
    if (world_size() == 1) return;
    auto const n = world_size(), me = world_rank();
    std::vector<int64_t> nodes(static_cast<size_t>(n));
    for (int64_t r = 0; r < n; ++r) nodes[static_cast<size_t>(r)] = r;
    auto const make = [&] { return std::make_unique<comm::MpiBridge>(comm::MpiHandle::copy_of(MPI_COMM_WORLD), nodes, me, int64_t{10}); };
    using std::chrono::milliseconds;
    {
        auto const bridge = make();
        CHECK(bridge->barred().empty());
        for (int64_t i = 0; i < 10; ++i) {
            auto const all = bridge->exchange(std::string(20, static_cast<char>('a' + me + i)), milliseconds(10000));
            for (int64_t r = 0; r < n; ++r) CHECK(all[static_cast<size_t>(r)] == std::string(20, static_cast<char>('a' + r + i)));
        }
        if (me != n - 1) CHECK(lacks([&] { bridge->exchange("x", milliseconds(200)); }, {"E_DEADLINE", acc::concat("led by ranks ", n - 1, ";")}) == "");
        MPI_Barrier(MPI_COMM_WORLD);
    }
    {
        // It came too late: what the others had said is there, and that they are gone.
        auto const bridge = make();
        if (me != n - 1) {
            CHECK(lacks([&] { bridge->exchange("x", milliseconds(100)); }, {"E_DEADLINE"}) == "");
            bridge->farewell("E_DEADLINE: waited long enough");
        }
        MPI_Barrier(MPI_COMM_WORLD);
        if (me == n - 1) CHECK(lacks([&] { bridge->exchange("x", milliseconds(60000)); }, {"E_DEADLINE: waited long enough"}) == "");
        MPI_Barrier(MPI_COMM_WORLD);
    }
    {
        // It is waited for, and says that it will not come.
        auto const bridge = make();
        if (me == n - 1) bridge->farewell("E_PEER_LOST: rank 7 is gone");
        else CHECK(lacks([&] { bridge->exchange("x", milliseconds(60000)); }, {"E_PEER_LOST: rank 7 is gone"}) == "");
        MPI_Barrier(MPI_COMM_WORLD);
    }
}
