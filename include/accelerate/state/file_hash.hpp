#pragma once

#include <xxhash.h>

#include <accelerate/state/input_file.hpp>
#include <accelerate/state/quote.hpp>
#include <accelerate/state/sha256.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace accelerate {

/// By which hash a checkpoint's files are told from others: XXH3-128 finds every accident at the speed of memory, SHA-256 also what somebody
/// has changed on purpose and made to look alike.
enum class Hash { Xxh3, Sha256 };

namespace state {

/// xxHash's own choice by the CPU's units, where the library was built with it: on x86 it is twice as fast as what is compiled for all CPUs.
extern "C" __attribute__((weak)) XXH_errorcode XXH3_128bits_update_dispatch(XXH3_state_t*, void const*, size_t);

/// XXH3, 128 bits, seed 0, fed piece by piece.
class Xxh3 {
public:
    Xxh3() : state_(XXH3_createState(), &XXH3_freeState) { check(state_ != nullptr && XXH3_128bits_reset(state_.get()) == XXH_OK, code::internal, "cannot make the state of a hash"); }

    void add(void const* data, int64_t bytes) {
        auto* const update = XXH3_128bits_update_dispatch != nullptr ? XXH3_128bits_update_dispatch : XXH3_128bits_update;
        update(state_.get(), data, static_cast<size_t>(bytes));
    }
    std::string digits() {
        auto const digest = XXH3_128bits_digest(state_.get());
        char text[40];
        std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(digest.high64), static_cast<unsigned long long>(digest.low64));
        return text;
    }

private:
    std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

/// The hash of what is added, as text that names its kind: "xxh3-128:" and 32 hexadecimal digits, or "sha256:" and 64.
class Hasher {
public:
    explicit Hasher(Hash kind) {
        if (kind == Hash::Sha256) hash_.emplace<Sha256>();
    }

    void add(void const* data, int64_t bytes) {
        std::visit([&](auto& hash) { hash.add(data, bytes); }, hash_);
    }
    std::string text() {
        return (std::holds_alternative<Sha256>(hash_) ? "sha256:" : "xxh3-128:") + std::visit([](auto& hash) { return hash.digits(); }, hash_);
    }

    /// The kind of hash of which `text` is one; E_CK_BAD_MANIFEST naming `where` for other texts.
    static Hash kind_of(std::string_view text, std::string const& where) {
        auto const is = [&](std::string_view prefix, size_t digits) {
            return text.size() == prefix.size() + digits && text.starts_with(prefix) && text.find_first_not_of("0123456789abcdef", prefix.size()) == std::string_view::npos;
        };
        bool const sha = is("sha256:", 64);
        check(sha || is("xxh3-128:", 32), code::ck_bad_manifest, where, " has the hash ", quote(text), "; expected xxh3-128: and 32 hexadecimal digits, or sha256: and 64");
        return sha ? Hash::Sha256 : Hash::Xxh3;
    }

private:
    std::variant<Xxh3, Sha256> hash_;
};

/// The hash of a file, which is read once, in pieces.
inline std::string hash_of(InputFile const& file, Hash kind) {
    Hasher hasher(kind);
    std::vector<char> piece(size_t{256} << 10);  // stays in the cache between the read and the hash
    for (int64_t at = 0; at < file.size();) {
        auto const n = std::min<int64_t>(file.size() - at, static_cast<int64_t>(piece.size()));
        file.read_at(piece.data(), n, at);
        hasher.add(piece.data(), n);
        at += n;
    }
    return hasher.text();
}

}  // namespace state
}  // namespace accelerate
