#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace accelerate::kernel {

/// Copies with stores that pass the caches by, where that is worth it: for memory that this core does not read next. To write a cache line that
/// another core has read costs up to 50 ns, one line after the other, where the two share no cache; and what is not in the cache is not
/// read before it is written. The C library does so for single copies of about a cache's size only. As there, several pages are copied side by
/// side: it keeps more of the memory's banks at work.
inline void streaming_copy(std::byte* to, std::byte const* from, size_t n) {
#if defined(__x86_64__)
    constexpr size_t worth = 16 << 10, line = 64, page = 4096, pages = 4;
    auto const stream = [&](size_t at) {
        auto const* const in = reinterpret_cast<__m128i const*>(from + at);
        auto* const out = reinterpret_cast<__m128i*>(to + at);
        auto const a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);
        _mm_stream_si128(out, a), _mm_stream_si128(out + 1, b), _mm_stream_si128(out + 2, c), _mm_stream_si128(out + 3, d);
    };
    if (n >= worth && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
        size_t done = 0;
        for (; done + pages * page <= n; done += pages * page)
            for (size_t offset = 0; offset < page; offset += line)
                for (size_t p = 0; p < pages; ++p) {
                    auto const at = done + p * page + offset;
                    _mm_prefetch(reinterpret_cast<char const*>(from + at + pages * page), _MM_HINT_T0);  // past the end it does nothing
                    stream(at);
                }
        for (; done + line <= n; done += line) stream(done);
        _mm_sfence();
        to += done, from += done, n -= done;
    }
#endif
    if (n > 0) std::memcpy(to, from, n);
}

}  // namespace accelerate::kernel
