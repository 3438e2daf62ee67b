#pragma once

#include <mpi.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// The least that two ranks of one machine need for an all-reduce (mean) of fp32 through memory that both see: one sequence number
/// each, arithmetic by the widest vectors there are, no checks, no record, no way out when the peer is gone. Several algorithms,
/// since none is best at every size; what counts as the floor is the best of them.
class Floor {
public:
    static constexpr int64_t most_staged = int64_t{1} << 20;  ///< bytes

    /// Collective. `most`: bytes of the largest payload.
    explicit Floor(int64_t most) {
        MPI_Comm_rank(MPI_COMM_WORLD, &me_);
        void* base = nullptr;
        MPI_Win_allocate_shared(page + 2 * most_staged + most + page, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &base, &window_);
        for (int r = 0; r < 2; ++r) {
            MPI_Aint bytes = 0;
            int unit = 0;
            void* start = nullptr;
            MPI_Win_shared_query(window_, r, &bytes, &unit, &start);
            part_[r] = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(start) + page - 1) / page * page);
        }
        std::memset(part_[me_], 0, static_cast<size_t>(page + 2 * most_staged + most));
        MPI_Barrier(MPI_COMM_WORLD);
    }
    ~Floor() { MPI_Win_free(&window_); }
    Floor(Floor const&) = delete;
    Floor& operator=(Floor const&) = delete;

    float* data() { return data(me_); }

    /// Both ranks have come this far.
    void arrive() {
        auto const target = ++phase_;
        sequence(me_).store(target, std::memory_order_release);
        auto const& theirs = sequence(1 - me_);
        for (int i = 0; theirs.load(std::memory_order_acquire) < target; ++i) {
            if (i >= 200) sched_yield();
#if defined(__x86_64__)
            else _mm_pause();
#endif
        }
    }

    // With the gather pass: both ranks have all sums. `n` elements.

    /// Each rank adds its half and writes it to both, in cache. Two arrivals.
    void halves(int64_t n) {
        arrive();
        auto const [from, count] = half(n);
        sum(data(0) + from, data(1) + from, data(0) + from, data(1) + from, count);
        arrive();
    }
    /// The same with stores that pass the caches by.
    void halves_streamed(int64_t n) {
        arrive();
        auto const [from, count] = half(n);
        sum_streamed(data(0) + from, data(1) + from, data(0) + from, data(1) + from, count);
        arrive();
    }
    /// Both ranks copy what they have and add everything. One arrival: there are two areas for copies, used in turn.
    void copies(int64_t n) {
        auto* const mine = stage(me_, phase_ + 1);
        copy(mine, data(), n);
        arrive();
        add_staged(n);
    }
    /// The same with stores that pass the caches by: writing a cache line that the peer has read costs this processor dearly.
    void copies_streamed(int64_t n) {
        auto* const mine = stage(me_, phase_ + 1);
        copy_streamed(mine, data(), n);
        arrive();
        add_staged(n);
    }

    // Without: each half stays where it was added. The third arrival says that the peer has read what it needs.

    void sliced(int64_t n) {
        arrive();
        auto const [from, count] = half(n);
        sum(data(0) + from, data(1) + from, data() + from, nullptr, count);
        arrive();
        arrive();
    }
    void sliced_streamed(int64_t n) {
        arrive();
        auto const [from, count] = half(n);
        sum_streamed(data(0) + from, data(1) + from, data() + from, nullptr, count);
        arrive();
        arrive();
    }

private:
    static constexpr int64_t page = 4096;
    struct Range {
        int64_t from, count;
    };

    std::atomic<uint64_t>& sequence(int r) { return *reinterpret_cast<std::atomic<uint64_t>*>(part_[r]); }
    float* stage(int r, uint64_t phase) { return reinterpret_cast<float*>(part_[r] + page + static_cast<int64_t>(phase & 1) * most_staged); }
    float* data(int r) { return reinterpret_cast<float*>(part_[r] + page + 2 * most_staged); }
    Range half(int64_t n) const {
        auto const cut = n / 2 / 16 * 16;
        return me_ == 0 ? Range{0, cut} : Range{cut, n - cut};
    }
    void add_staged(int64_t n) { sum(stage(0, phase_), stage(1, phase_), data(), nullptr, n); }

    // n is a multiple of 16. `second` may be null.
#if defined(__x86_64__)
    static void sum(float const* a, float const* b, float* first, float* second, int64_t n) {
        return wide() ? sum512<false>(a, b, first, second, n) : sum256<false>(a, b, first, second, n);
    }
    static void sum_streamed(float const* a, float const* b, float* first, float* second, int64_t n) {
        return wide() ? sum512<true>(a, b, first, second, n) : sum256<true>(a, b, first, second, n);
    }
    static void copy(float* to, float const* from, int64_t n) { std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float)); }
    static void copy_streamed(float* to, float const* from, int64_t n) {
        for (int64_t i = 0; i < n; i += 4) _mm_stream_ps(to + i, _mm_loadu_ps(from + i));
        _mm_sfence();
    }

    static bool wide() {
        static bool const it = __builtin_cpu_supports("avx512f");
        return it;
    }
    template <bool streamed>
    __attribute__((target("avx512f"))) static void sum512(float const* a, float const* b, float* first, float* second, int64_t n) {
        auto const f = _mm512_set1_ps(0.5f);
        int64_t i = 0;
        for (; i + 64 <= n; i += 64) {
            __m512 s[4];
            for (int64_t j = 0; j < 4; ++j) s[j] = _mm512_mul_ps(_mm512_add_ps(_mm512_loadu_ps(a + i + 16 * j), _mm512_loadu_ps(b + i + 16 * j)), f);
            for (auto* out : {first, second})
                for (int64_t j = 0; out && j < 4; ++j) streamed ? _mm512_stream_ps(out + i + 16 * j, s[j]) : _mm512_storeu_ps(out + i + 16 * j, s[j]);
        }
        for (; i < n; i += 16) {
            auto const s = _mm512_mul_ps(_mm512_add_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i)), f);
            _mm512_storeu_ps(first + i, s);
            if (second) _mm512_storeu_ps(second + i, s);
        }
        if (streamed) _mm_sfence();
    }
    template <bool streamed>
    __attribute__((target("avx2"))) static void sum256(float const* a, float const* b, float* first, float* second, int64_t n) {
        auto const f = _mm256_set1_ps(0.5f);
        int64_t i = 0;
        for (; i + 32 <= n; i += 32) {
            __m256 s[4];
            for (int64_t j = 0; j < 4; ++j) s[j] = _mm256_mul_ps(_mm256_add_ps(_mm256_loadu_ps(a + i + 8 * j), _mm256_loadu_ps(b + i + 8 * j)), f);
            for (auto* out : {first, second})
                for (int64_t j = 0; out && j < 4; ++j) streamed ? _mm256_stream_ps(out + i + 8 * j, s[j]) : _mm256_storeu_ps(out + i + 8 * j, s[j]);
        }
        for (; i < n; i += 8) {
            auto const s = _mm256_mul_ps(_mm256_add_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)), f);
            _mm256_storeu_ps(first + i, s);
            if (second) _mm256_storeu_ps(second + i, s);
        }
        if (streamed) _mm_sfence();
    }
#else
    static void sum(float const* a, float const* b, float* first, float* second, int64_t n) {
        for (int64_t i = 0; i < n; ++i) {
            auto const s = (a[i] + b[i]) * 0.5f;
            first[i] = s;
            if (second) second[i] = s;
        }
    }
    static void sum_streamed(float const* a, float const* b, float* first, float* second, int64_t n) { sum(a, b, first, second, n); }
    static void copy(float* to, float const* from, int64_t n) { std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float)); }
    static void copy_streamed(float* to, float const* from, int64_t n) { copy(to, from, n); }
#endif

    MPI_Win window_ = MPI_WIN_NULL;
    int me_ = 0;
    char* part_[2] = {};
    uint64_t phase_ = 0;
};
