#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/comm/mpi_bridge.hpp>
#include <accelerate/comm/operations.hpp>
#include <accelerate/comm/process_memory.hpp>
#include <accelerate/comm/self.hpp>
#include <accelerate/comm/solo.hpp>
#include <accelerate/core/run.hpp>
#include <functional>
#include <limits>
#include <map>
#include <mutex>

#if ACCELERATE_WITH_MPI

namespace accelerate::comm {

/// Options of `comm::Mpi`; the defaults are right outside of tests.
struct mpi_options {
    int64_t ranks_per_node = 0;                          ///< pretend that a node has so many ranks; 0: ask MPI
    SharedMemory memory = SharedMemory::Automatic;       ///< how ranks of a node see each other's memory
    std::filesystem::path directory = "/dev/shm";        ///< for `SharedMemory::File`
    transport_options transport = {};
    int64_t max_count = int64_t{1} << 30;                ///< elements (or bytes) in one MPI call, whose counts are ints
};

/// Ranks are processes started by mpirun or srun. Those of one node pass data through memory that they share and call MPI only to
/// find each other, so any thread may communicate whatever level MPI was initialised with; between nodes one rank of each calls MPI.
/// A program that no launcher started is one rank, and calls nothing of MPI.
class Mpi : public Operations<Mpi> {
public:
    /// The ranks of `comm` (which stays the caller's, and is not used after the call), in their order there. MPI must have been
    /// initialised, by whomever and at any thread level; it stays theirs to finalise. Collective over `comm`.
    explicit Mpi(MPI_Comm comm, mpi_options const& options = {}) : Operations(connect(comm, options)) {
        introduce(false, [&] { return local_size(); });
    }

    /// All processes of the job. Initialises MPI if nobody has, and then also finalises it when the program ends. Collective.
    static Mpi world(mpi_options const& options = {}) {
        auto const before = mpi::running();
        if (!mpi::enter()) return Mpi(solo());
        introduce(!before, [] { return ranks_here(MPI_COMM_WORLD); });
        return Mpi(MPI_COMM_WORLD, options);
    }

private:
    friend class Operations<Mpi>;
    explicit Mpi(std::shared_ptr<Group> group) : Operations(std::move(group)) {}

    /// Tells the session who this process is, how to end the others, and whether it must finalise MPI.
    static void introduce(bool ours, std::function<int64_t()> const& local) {
        static std::once_flag once;
        std::call_once(once, [&] {
            int rank = 0, size = 1;
            MPI_Comm_rank(MPI_COMM_WORLD, &rank);
            MPI_Comm_size(MPI_COMM_WORLD, &size);
            Session::instance().connect(
                rank, size, local(),
                [](int exit_code) {
                    if (mpi::running()) MPI_Abort(MPI_COMM_WORLD, exit_code);
                },
                [ours] {
                    if (ours && mpi::running()) MPI_Finalize();
                });
            warn_if_oversubscribed();
        });
    }

    static int64_t ranks_here(MPI_Comm comm) {
        MPI_Comm node = MPI_COMM_NULL;
        mpi::call(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
        int n = 1;
        MPI_Comm_size(node, &n);
        MPI_Comm_free(&node);
        return n;
    }

    static void check_given(MPI_Comm comm) {
        check(mpi::running(), code::call_order, "comm::Mpi: MPI is not initialised; call MPI_Init_thread before, or use Mpi::world()");
        check(mpi::may_call(), code::config, "comm::Mpi: MPI was initialised for one thread (MPI_THREAD_FUNNELED or less), and this is another one; construct the communicator on that thread");
        check(comm != MPI_COMM_NULL, code::config, "comm::Mpi: the communicator is MPI_COMM_NULL; ranks that MPI_Comm_split left out must not construct one");
        int between = 0;
        MPI_Comm_test_inter(comm, &between);
        check(between == 0, code::config, "comm::Mpi: an intercommunicator has two groups of ranks; merge them with MPI_Intercomm_merge");
    }

    static std::shared_ptr<Group> connect(MPI_Comm given, mpi_options const& options) {
        check_given(given);
        check(options.max_count >= 1 && options.max_count <= std::numeric_limits<int>::max() && options.ranks_per_node >= 0, code::config, "comm::Mpi: max_count ", options.max_count,
              " must be at least 1 and fit an int, ranks_per_node ", options.ranks_per_node, " must not be negative");
        auto comm = MpiHandle::copy_of(given);
        int rank = 0, size = 1;
        MPI_Comm_rank(comm.get(), &rank);
        MPI_Comm_size(comm.get(), &size);
        Exchange const exchange = [&](std::string_view mine) { return exchange_over(comm.get(), size, mine); };

        auto const hosts = hosts_of(comm.get(), rank, exchange);
        auto source = std::make_shared<ProcessMemory>(options.memory, options.directory);
        Group::Parts parts;
        parts.source = source;
        parts.options = options.transport;
        auto const presence = [&] { return (Family::bytes(static_cast<int64_t>(parts.who.ranks.size())) + 4095) / 4096 * 4096; };
        Region memory;
        auto const nodes = options.ranks_per_node > 0 ? pretended(hosts, options.ranks_per_node) : hosts;
        auto const& machines = options.ranks_per_node > 0 ? nodes : hosts;
        parts.who = membership(rank, nodes, machines);
        parts.options = options.transport.fitted(largest(nodes));
        if (options.memory != SharedMemory::None && largest(nodes) > 1) memory = meeting_place(*source, parts.options, presence(), exchange, parts.who.ranks, rank, size);
        if (!memory) {
            // Nobody sees anybody's memory: as if every rank had a node of its own.
            std::vector<int64_t> alone(static_cast<size_t>(size));
            std::iota(alone.begin(), alone.end(), 0);
            parts.who = membership(rank, alone, machines);
            parts.options = options.transport.fitted(1);
            parts.source = std::make_shared<ThreadMemory>();
            memory = Region::heap(presence() + Group::bytes(1, parts.options));
        }
        parts.memory = memory.part(presence(), memory.bytes - presence());
        parts.family = std::make_shared<Family>(memory.part(0, presence()), parts.who.me, rank, size);
        if (source->sees_processes()) parts.family->set_pid(getpid());
        parts.members.resize(parts.who.ranks.size());
        std::iota(parts.members.begin(), parts.members.end(), 0);
        if (parts.who.ranks.size() < static_cast<size_t>(size)) parts.bridge = std::make_unique<MpiBridge>(std::move(comm), parts.who.nodes, rank, options.max_count);
        auto const family = parts.family;
        auto group = std::make_shared<Group>(std::move(parts));
        // Other communicators of the family may outlive this one, which alone can tell other nodes.
        Session::instance().at_exit(family, [here = family.get(), world = std::weak_ptr(group)] {
            constexpr auto why = "its process has called exit";
            if (auto const all = world.lock()) all->leave(why);
            else here->leave(why);
        });
        return group;
    }

    static std::vector<std::string> exchange_over(MPI_Comm comm, int size, std::string_view mine) {
        auto const n = static_cast<size_t>(size);
        int const length = static_cast<int>(mine.size());
        std::vector<int> lengths(n), at(n);
        mpi::call(MPI_Allgather(&length, 1, MPI_INT, lengths.data(), 1, MPI_INT, comm), "MPI_Allgather");
        std::exclusive_scan(lengths.begin(), lengths.end(), at.begin(), 0);
        std::string all(static_cast<size_t>(at.back() + lengths.back()), '\0');
        mpi::call(MPI_Allgatherv(mine.data(), length, MPI_BYTE, all.data(), lengths.data(), at.data(), MPI_BYTE, comm), "MPI_Allgatherv");
        std::vector<std::string> parts;
        for (size_t r = 0; r < n; ++r) parts.push_back(all.substr(static_cast<size_t>(at[r]), static_cast<size_t>(lengths[r])));
        return parts;
    }

    /// By rank: the lowest rank on the same machine.
    static std::vector<int64_t> hosts_of(MPI_Comm comm, int rank, Exchange const& exchange) {
        MPI_Comm node = MPI_COMM_NULL;
        mpi::call(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node), "MPI_Comm_split_type");
        int first = rank;
        mpi::call(MPI_Bcast(&first, 1, MPI_INT, 0, node), "MPI_Bcast");
        MPI_Comm_free(&node);
        std::vector<int64_t> hosts;
        for (auto const& text : exchange(detail::bytes_of(first))) hosts.push_back(detail::from_bytes<int>(text));
        return hosts;
    }

    /// By rank: the lowest rank of its pretended node.
    static std::vector<int64_t> pretended(std::vector<int64_t> const& hosts, int64_t ranks_per_node) {
        std::vector<int64_t> nodes;
        std::map<int64_t, std::pair<int64_t, int64_t>> last;  // by host: its newest node, and how many are there
        for (size_t r = 0; r < hosts.size(); ++r) {
            auto& [node, n] = last[hosts[r]];
            if (n++ % ranks_per_node == 0) node = static_cast<int64_t>(r);
            nodes.push_back(node);
        }
        return nodes;
    }

    /// How many ranks the fullest node has: areas must be of the same size on all.
    static int64_t largest(std::vector<int64_t> const& nodes) {
        int64_t most = 1;
        for (auto const node : nodes) most = std::max<int64_t>(most, std::count(nodes.begin(), nodes.end(), node));
        return most;
    }

    static Membership membership(int64_t rank, std::vector<int64_t> const& nodes, std::vector<int64_t> const& machines) {
        Membership whole;
        whole.rank = rank, whole.size = static_cast<int64_t>(nodes.size()), whole.nodes = nodes, whole.hosts = machines;
        std::vector<int64_t> everybody(nodes.size());
        std::iota(everybody.begin(), everybody.end(), 0);
        return part_of(whole, everybody);
    }
};

static_assert(communicator<Mpi>);

}  // namespace accelerate::comm

#else

namespace accelerate::comm {

/// Stands where `comm::Mpi` would be in a build without MPI: making one is one error that names the option.
template <class Use = void>
class AbsentMpi : public Operations<AbsentMpi<Use>> {
public:
    static constexpr bool absent = true;

    template <class... Arguments>
    explicit AbsentMpi(Arguments const&...) : Operations<AbsentMpi>(solo()) { refuse(); }
    static AbsentMpi world() {
        refuse();
        return AbsentMpi(solo());
    }

private:
    friend class Operations<AbsentMpi>;
    explicit AbsentMpi(std::shared_ptr<Group> group) : Operations<AbsentMpi>(std::move(group)) {}
    static constexpr void refuse() { static_assert(!std::same_as<Use, void>, "comm::Mpi: this build is without MPI; set ACCELERATE_WITH_MPI=ON (CMake) or define ACCELERATE_WITH_MPI=1, or use comm::Self or comm::Threads"); }
};
using Mpi = AbsentMpi<>;

}  // namespace accelerate::comm

#endif
