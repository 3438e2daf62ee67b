#pragma once

#include <accelerate/comm/bridge.hpp>
#include <accelerate/comm/mpi_session.hpp>
#include <accelerate/comm/reduce.hpp>
#include <accelerate/comm/wait.hpp>

#if ACCELERATE_WITH_MPI

#include <ATen/ops/from_blob.h>

#include <deque>
#include <mutex>
#include <numeric>

namespace accelerate::comm {

/// An MPI communicator that is freed when nobody has it any more.
class MpiHandle {
public:
    MpiHandle() = default;
    explicit MpiHandle(MPI_Comm comm) : comm_(comm) {
        if (comm_ != MPI_COMM_NULL) MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    }
    MpiHandle(MpiHandle&& o) noexcept : comm_(std::exchange(o.comm_, MPI_COMM_NULL)) {}
    MpiHandle& operator=(MpiHandle&& o) noexcept {
        std::swap(comm_, o.comm_);
        return *this;
    }
    ~MpiHandle() {
        if (comm_ != MPI_COMM_NULL && mpi::running() && mpi::may_call()) MPI_Comm_free(&comm_);
    }
    MPI_Comm get() const { return comm_; }

    static MpiHandle copy_of(MPI_Comm comm) {
        MPI_Comm made = MPI_COMM_NULL;
        mpi::call(MPI_Comm_dup(comm, &made), "MPI_Comm_dup");
        return MpiHandle(made);
    }
    static MpiHandle split(MPI_Comm comm, int color, int key) {
        MPI_Comm made = MPI_COMM_NULL;
        mpi::call(MPI_Comm_split(comm, color, key, &made), "MPI_Comm_split");
        return MpiHandle(made);
    }

private:
    MPI_Comm comm_ = MPI_COMM_NULL;
};

/// The way between nodes over MPI: blocking calls, in chunks that fit MPI's int counts. They are made after `exchange` has shown
/// that all nodes have come, so that the deadline is kept there. dtypes that MPI lacks are summed in fp32.
class MpiBridge final : public Bridge {
public:
    /// `comm` spans the group's ranks in their order; `nodes` says who sees whose memory. Collective.
    MpiBridge(MpiHandle comm, std::vector<int64_t> nodes, int64_t rank, int64_t max_count)
        : all_(std::move(comm)), letters_(MpiHandle::copy_of(all_.get())), rank_(rank), size_(static_cast<int64_t>(nodes.size())), most_(max_count) {
        for (int64_t r = 0; r < size_; ++r) {
            auto const node = nodes[static_cast<size_t>(r)];
            if (std::find(nodes.begin(), nodes.begin() + r, node) == nodes.begin() + r) leaders_of_.push_back(r);
        }
        auto const leads = std::find(leaders_of_.begin(), leaders_of_.end(), rank) != leaders_of_.end();
        leaders_ = MpiHandle::split(all_.get(), leads ? 0 : MPI_UNDEFINED, static_cast<int>(rank));
    }

    std::string_view barred() const override {
        if (!mpi::running()) return "MPI has been finalised already";
        if (mpi::may_call()) return {};
        return "these ranks are on several nodes and MPI was not initialised with MPI_THREAD_MULTIPLE, so only the thread that initialised it may communicate; "
               "use MPI_Init_thread(.., MPI_THREAD_MULTIPLE, ..), or let accelerate initialise MPI";
    }

    std::vector<std::string> exchange(std::string const& mine, Deadline deadline) override {
        begin();
        int me = 0;
        MPI_Comm_rank(leaders_.get(), &me);
        auto const n = leaders_of_.size(), length = mine.size();
        std::vector<std::string> all(n, std::string(length, '\0'));
        all[static_cast<size_t>(me)] = mine;
        std::vector<MPI_Request> receives(n, MPI_REQUEST_NULL), sends(n, MPI_REQUEST_NULL);
        for (size_t i = 0; i < n; ++i) {
            if (static_cast<int>(i) == me) continue;
            mpi::call(MPI_Irecv(all[i].data(), static_cast<int>(length), MPI_BYTE, static_cast<int>(i), 0, leaders_.get(), &receives[i]), "MPI_Irecv");
            mpi::call(MPI_Isend(mine.data(), static_cast<int>(length), MPI_BYTE, static_cast<int>(i), 0, leaders_.get(), &sends[i]), "MPI_Isend");
        }
        // Who has not answered; what was asked of them is taken back before the memory for it goes.
        auto const withdraw = [&] {
            std::vector<int64_t> leaders;
            for (size_t i = 0; i < n; ++i) {
                int come = 0;
                if (receives[i] == MPI_REQUEST_NULL || (MPI_Test(&receives[i], &come, MPI_STATUS_IGNORE), come != 0)) continue;
                leaders.push_back(leaders_of_[i]);
                MPI_Cancel(&receives[i]);
                MPI_Wait(&receives[i], MPI_STATUS_IGNORE);
            }
            for (auto& request : sends)
                if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
            return leaders;
        };
        auto const finished = [](std::vector<MPI_Request>& requests) {
            int done = 0;
            mpi::call(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
            return done != 0;
        };
        wait_until([&] { return finished(receives) && finished(sends); },
                   [&](Clock::duration elapsed) {
                       if (auto const why = heard()) {
                           withdraw();
                           throw Error(*why);
                       }
                       if (elapsed <= deadline) return;
                       std::string names;
                       for (auto const leader : withdraw()) names += concat(names.empty() ? "" : ", ", leader);
                       throw Error(code::deadline, concat("waited ", std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count(), " ms for the nodes led by ranks ", names,
                                                          "; not all of their ranks have arrived"));
                   });
        // Who gave up while this node was on its way had said before what it called: that alone proves nothing.
        if (auto const why = heard()) throw Error(*why);
        return all;
    }

    void farewell(std::string_view why) noexcept override {
        if (!barred().empty()) return;
        std::lock_guard lock(mutex_);
        auto const& text = farewells_.emplace_back(why.substr(0, 1000));
        int me = 0;
        MPI_Comm_rank(leaders_.get(), &me);
        for (int i = 0; i < static_cast<int>(leaders_of_.size()); ++i) {
            MPI_Request request = MPI_REQUEST_NULL;
            if (i != me && MPI_Isend(text.data(), static_cast<int>(text.size()), MPI_BYTE, i, farewell_tag, leaders_.get(), &request) == MPI_SUCCESS) MPI_Request_free(&request);
        }
    }

    void all_reduce(void* data, int64_t n, at::ScalarType dtype, Reduction reduction, Deadline) override {
        begin();
        std::tie(dtype, n) = real_view(dtype, n);
        auto const unit = static_cast<int64_t>(c10::elementSize(dtype));
        auto const type = mpi_type(dtype);
        auto const chunk = type == MPI_DATATYPE_NULL ? std::min<int64_t>(most_, 1 << 20) : most_;
        for (int64_t at = 0; at < n; at += chunk) {
            auto const count = std::min(chunk, n - at);
            auto* const part = static_cast<std::byte*>(data) + at * unit;
            if (type != MPI_DATATYPE_NULL) {
                mpi::call(MPI_Allreduce(MPI_IN_PLACE, part, static_cast<int>(count), type, operation(dtype, reduction), leaders_.get()), "MPI_Allreduce");
                continue;
            }
            auto const narrow = at::from_blob(part, {count}, at::TensorOptions(dtype));
            auto const wide = narrow.to(at::kFloat);
            mpi::call(MPI_Allreduce(MPI_IN_PLACE, wide.data_ptr(), static_cast<int>(count), MPI_FLOAT, operation(at::kFloat, reduction), leaders_.get()), "MPI_Allreduce");
            narrow.copy_(wide);
        }
    }

    void broadcast(void* data, int64_t bytes, int64_t root, Deadline) override {
        begin();
        chunked(bytes, [&](int64_t at, int n) { mpi::call(MPI_Bcast(static_cast<std::byte*>(data) + at, n, MPI_BYTE, static_cast<int>(root), all_.get()), "MPI_Bcast"); });
    }

    void all_gather(void const* mine, void* out, std::span<int64_t const> bytes, Deadline deadline) override {
        begin();
        auto* const to = static_cast<std::byte*>(out);
        if (auto const [counts, at] = plan(bytes); !counts.empty()) {
            mpi::call(MPI_Allgatherv(mine, counts[static_cast<size_t>(rank_)], MPI_BYTE, to, counts.data(), at.data(), MPI_BYTE, all_.get()), "MPI_Allgatherv");
            return;
        }
        int64_t at = 0;
        for (int64_t r = 0; r < size_; at += bytes[static_cast<size_t>(r++)]) {
            auto const n = bytes[static_cast<size_t>(r)];
            if (r == rank_ && n > 0) std::memcpy(to + at, mine, static_cast<size_t>(n));
            broadcast(to + at, n, r, deadline);
        }
    }

    void gather(void const* mine, void* out, std::span<int64_t const> bytes, int64_t root, Deadline) override {
        begin();
        auto* to = static_cast<std::byte*>(out);
        auto const me = static_cast<size_t>(rank_);
        if (auto const [counts, at] = plan(bytes); !counts.empty()) {
            mpi::call(MPI_Gatherv(mine, counts[me], MPI_BYTE, to, counts.data(), at.data(), MPI_BYTE, static_cast<int>(root), all_.get()), "MPI_Gatherv");
            return;
        }
        if (rank_ != root) return put(mine, bytes[me], root);
        for (int64_t r = 0; r < size_; to += bytes[static_cast<size_t>(r++)]) {
            auto const n = bytes[static_cast<size_t>(r)];
            if (r != rank_) get(to, n, r);
            else if (n > 0) std::memcpy(to, mine, static_cast<size_t>(n));
        }
    }

    void scatter(void const* in, void* out, int64_t bytes, int64_t root, Deadline) override {
        begin();
        if (bytes * size_ <= most_) {
            auto const n = static_cast<int>(bytes);
            mpi::call(MPI_Scatter(in, n, MPI_BYTE, out, n, MPI_BYTE, static_cast<int>(root), all_.get()), "MPI_Scatter");
            return;
        }
        if (rank_ != root) return get(out, bytes, root);
        for (int64_t r = 0; r < size_; ++r) {
            auto const* const piece = static_cast<std::byte const*>(in) + r * bytes;
            if (r != rank_) put(piece, bytes, r);
            else std::memcpy(out, piece, static_cast<size_t>(bytes));
        }
    }

    void all_to_all(void const* in, void* out, int64_t bytes, Deadline) override {
        begin();
        if (bytes * size_ <= most_) {
            auto const n = static_cast<int>(bytes);
            mpi::call(MPI_Alltoall(in, n, MPI_BYTE, out, n, MPI_BYTE, all_.get()), "MPI_Alltoall");
            return;
        }
        for (int64_t step = 0; step < size_; ++step) {
            auto const to = (rank_ + step) % size_, from = (rank_ + size_ - step) % size_;
            chunked(bytes, [&](int64_t at, int n) {
                mpi::call(MPI_Sendrecv(static_cast<std::byte const*>(in) + to * bytes + at, n, MPI_BYTE, static_cast<int>(to), data_tag,
                                       static_cast<std::byte*>(out) + from * bytes + at, n, MPI_BYTE, static_cast<int>(from), data_tag, all_.get(), MPI_STATUS_IGNORE),
                          "MPI_Sendrecv");
            });
        }
    }

    void send(int64_t to, Envelope const& envelope, void const* data, std::function<void()> const& meanwhile, Deadline deadline) override {
        begin();
        auto const peer = static_cast<int>(to);
        std::vector<MPI_Request> requests(1);
        mpi::call(MPI_Isend(&envelope, sizeof envelope, MPI_BYTE, peer, envelope_tag, letters_.get(), &requests[0]), "MPI_Isend");
        chunked(envelope.bytes, [&](int64_t at, int n) {
            requests.emplace_back();
            mpi::call(MPI_Isend(static_cast<std::byte const*>(data) + at, n, MPI_BYTE, peer, data_tag, letters_.get(), &requests.back()), "MPI_Isend");
        });
        wait_until(
            [&] {
                int done = 0;
                mpi::call(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE), "MPI_Testall");
                if (!done) meanwhile();
                return done != 0;
            },
            [&](Clock::duration elapsed) {
                check(elapsed <= deadline, code::deadline, "send from rank ", rank_, " to rank ", to, ", tag ", envelope.tag, ": not received after ",
                      std::chrono::duration_cast<std::chrono::milliseconds>(deadline).count(), " ms");
            });
    }

    std::optional<std::pair<int64_t, Message>> poll() override {
        begin();
        int come = 0;
        MPI_Message handle{};
        MPI_Status status{};
        mpi::call(MPI_Improbe(MPI_ANY_SOURCE, envelope_tag, letters_.get(), &come, &handle, &status), "MPI_Improbe");
        if (!come) return {};
        Message message;
        mpi::call(MPI_Mrecv(&message.envelope, sizeof(Envelope), MPI_BYTE, &handle, MPI_STATUS_IGNORE), "MPI_Mrecv");
        message.payload.resize(static_cast<size_t>(message.envelope.bytes));
        chunked(message.envelope.bytes, [&](int64_t at, int n) {
            mpi::call(MPI_Recv(message.payload.data() + at, n, MPI_BYTE, status.MPI_SOURCE, data_tag, letters_.get(), MPI_STATUS_IGNORE), "MPI_Recv");
        });
        return std::pair(static_cast<int64_t>(status.MPI_SOURCE), std::move(message));
    }

    std::unique_ptr<Bridge> split(int64_t color, std::vector<int64_t> const& nodes, int64_t rank) override {
        begin();
        auto part = MpiHandle::split(all_.get(), static_cast<int>(color), static_cast<int>(rank));
        if (std::all_of(nodes.begin(), nodes.end(), [&](int64_t node) { return node == nodes.front(); })) return nullptr;
        return std::make_unique<MpiBridge>(std::move(part), nodes, rank, most_);
    }

private:
    static constexpr int envelope_tag = 1, data_tag = 2, farewell_tag = 3;

    void begin() const {
        if (auto const why = barred(); !why.empty()) throw Error(code::config, std::string(why));
    }

    /// The farewell of another node, if one has come.
    std::optional<Error> heard() {
        int come = 0;
        MPI_Message handle{};
        MPI_Status status{};
        mpi::call(MPI_Improbe(MPI_ANY_SOURCE, farewell_tag, leaders_.get(), &come, &handle, &status), "MPI_Improbe");
        if (!come) return {};
        int length = 0;
        MPI_Get_count(&status, MPI_BYTE, &length);
        std::string text(static_cast<size_t>(length), '\0');
        mpi::call(MPI_Mrecv(text.data(), length, MPI_BYTE, &handle, MPI_STATUS_IGNORE), "MPI_Mrecv");
        return error_from(text);
    }

    template <class Each>
    void chunked(int64_t bytes, Each&& each) const {
        for (int64_t at = 0; at < bytes; at += most_) each(at, static_cast<int>(std::min(most_, bytes - at)));
    }

    /// Counts and displacements where they fit an int; else empty.
    std::pair<std::vector<int>, std::vector<int>> plan(std::span<int64_t const> bytes) const {
        if (std::accumulate(bytes.begin(), bytes.end(), int64_t{0}) > most_) return {};
        std::vector<int> counts, at;
        int sum = 0;
        for (auto n : bytes) counts.push_back(static_cast<int>(n)), at.push_back(sum), sum += static_cast<int>(n);
        return {counts, at};
    }

    void put(void const* data, int64_t bytes, int64_t to) const {
        chunked(bytes, [&](int64_t at, int n) {
            mpi::call(MPI_Send(static_cast<std::byte const*>(data) + at, n, MPI_BYTE, static_cast<int>(to), data_tag, all_.get()), "MPI_Send");
        });
    }
    void get(void* data, int64_t bytes, int64_t from) const {
        chunked(bytes, [&](int64_t at, int n) {
            mpi::call(MPI_Recv(static_cast<std::byte*>(data) + at, n, MPI_BYTE, static_cast<int>(from), data_tag, all_.get(), MPI_STATUS_IGNORE), "MPI_Recv");
        });
    }

    static MPI_Datatype mpi_type(at::ScalarType dtype) {
        switch (dtype) {
            case at::kFloat: return MPI_FLOAT;
            case at::kDouble: return MPI_DOUBLE;
            case at::kBool: return MPI_C_BOOL;
            case at::kByte: return MPI_UINT8_T;
            case at::kChar: return MPI_INT8_T;
            case at::kShort: return MPI_INT16_T;
            case at::kInt: return MPI_INT32_T;
            case at::kLong: return MPI_INT64_T;
            case at::kUInt16: return MPI_UINT16_T;
            case at::kUInt32: return MPI_UINT32_T;
            case at::kUInt64: return MPI_UINT64_T;
            default: return MPI_DATATYPE_NULL;
        }
    }
    static MPI_Op operation(at::ScalarType dtype, Reduction reduction) {
        auto const logical = dtype == at::kBool;
        // MPI_MAX and MPI_MIN lose a NaN or not, as the order has it; Open MPI 4.1 sums 8 and 16 bits with saturation on some processors.
        if (reduction == Reduction::Max || reduction == Reduction::Min) {
            auto const larger = reduction == Reduction::Max;
            if (dtype == at::kFloat) return larger ? own<float, detail::extreme<true, float>>() : own<float, detail::extreme<false, float>>();
            if (dtype == at::kDouble) return larger ? own<double, detail::extreme<true, double>>() : own<double, detail::extreme<false, double>>();
        } else if (dtype == at::kByte || dtype == at::kChar) {
            return own<uint8_t, wrapping<uint8_t>>();
        } else if (dtype == at::kShort || dtype == at::kUInt16) {
            return own<uint16_t, wrapping<uint16_t>>();
        }
        if (reduction == Reduction::Min) return logical ? MPI_LAND : MPI_MIN;
        if (reduction == Reduction::Max) return logical ? MPI_LOR : MPI_MAX;
        return logical ? MPI_LOR : MPI_SUM;
    }

    template <class T>
    static T wrapping(T a, T b) {
        return static_cast<T>(a + b);
    }
    /// An operation of MPI that does with two elements what it does on one node.
    template <class T, auto Combine>
    static MPI_Op own() {
        static MPI_Op const op = [] {
            MPI_Op made = MPI_OP_NULL;
            mpi::call(MPI_Op_create(
                          [](void* in, void* inout, int* n, MPI_Datatype*) {
                              for (int i = 0; i < *n; ++i) static_cast<T*>(inout)[i] = Combine(static_cast<T*>(inout)[i], static_cast<T const*>(in)[i]);
                          },
                          1, &made),
                      "MPI_Op_create");
            return made;
        }();
        return op;
    }

    MpiHandle all_, letters_, leaders_;
    std::vector<int64_t> leaders_of_;  // by node, in the order of the leaders' communicator
    int64_t rank_, size_, most_;
    std::mutex mutex_;                    // a farewell may come from another thread
    std::deque<std::string> farewells_;   // MPI may still read them
};

}  // namespace accelerate::comm

#endif
