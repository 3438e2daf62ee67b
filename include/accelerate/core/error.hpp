#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <locale>
#include <memory>
#include <ostream>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace accelerate {

/// A stable name for one kind of failure and the process exit code that `accelerate::run` maps it to. Rooms define their own
/// constants beside the code that raises them; the name is part of the interface, the message text is not.
struct Code {
    std::string_view name;  ///< for example "E_COLLECTIVE_MISMATCH"
    int exit = 70;          ///< sysexits-like: 65 data, 70 internal, 71 peer, 74 I/O, 75 requeue, 76 collective, 77 non-finite, 78 config

    constexpr operator std::string_view() const { return name; }
    friend constexpr bool operator==(Code const& a, Code const& b) { return a.name == b.name; }
    friend constexpr bool operator==(Code const& a, std::string_view b) { return a.name == b; }
    friend std::ostream& operator<<(std::ostream& out, Code const& c) { return out << c.name; }
};

namespace code {
inline constexpr Code data{"E_DATA", 65};                                  ///< a file or data set that cannot be used
inline constexpr Code internal{"E_INTERNAL", 70};                          ///< a fault of ours or of a library below
inline constexpr Code call_order{"E_CALL_ORDER", 70};                      ///< a call in a state that does not allow it
inline constexpr Code peer_lost{"E_PEER_LOST", 71};                        ///< another rank left, died or threw
inline constexpr Code deadline{"E_DEADLINE", 71};                          ///< another rank did not arrive in time
inline constexpr Code io{"E_IO", 74};                                      ///< the operating system refused to read or write
inline constexpr Code collective_mismatch{"E_COLLECTIVE_MISMATCH", 76};    ///< ranks called different collectives
inline constexpr Code non_finite{"E_NONFINITE", 77};                       ///< a NaN or infinity where the policy forbids it
inline constexpr Code config{"E_CONFIG", 78};                              ///< options that cannot work

inline constexpr std::array general{data, internal, call_order, peer_lost, deadline, io, collective_mismatch, non_finite, config};  ///< all of the above

/// The code of that name among those `known`; `otherwise` where none has it. How codes come from another rank.
constexpr Code named(std::string_view name, Code otherwise = internal, std::span<Code const> known = general) {
    for (auto const& code : known)
        if (code.name == name) return code;
    return otherwise;
}
}  // namespace code

/// Base of everything that this library throws. The message says call, rank (where known), expected, found, and what to do.
class Error : public std::runtime_error {
public:
    Error(Code code, std::string const& message) : std::runtime_error(std::string(code.name) + ": " + message), code_(code) {}

    Code const& code() const noexcept { return code_; }
    std::string reason() const { return std::string(what()).substr(code_.name.size() + 2); }  ///< the message without the code's name
    int exit_code() const noexcept { return code_.exit; }

private:
    Code code_;
};

namespace detail {

/// A reference to anything streamable: messages of all kinds are then written by one function, where each combination of types (and
/// of literals' lengths) would make a function of its own.
class MessagePart {
public:
    template <class T>
        requires(!std::is_array_v<T>)
    explicit MessagePart(T const& value) : value_(std::addressof(value)), write_(write<T>) {}
    explicit MessagePart(char const* text) : value_(text), write_(write_text) {}

    static std::string join(std::initializer_list<MessagePart> parts) {
        std::ostringstream out;
        out.imbue(std::locale::classic());  // also names and files are made of this, and a program's locale may write 1024 as 1.024
        for (auto const& part : parts) part.write_(out, part.value_);
        return out.str();
    }

private:
    template <class T>
    static void write(std::ostream& out, void const* value) {
        out << *static_cast<T const*>(value);
    }
    static void write_text(std::ostream& out, void const* text) { out << static_cast<char const*>(text); }

    void const* value_;
    void (*write_)(std::ostream&, void const*);
};

}  // namespace detail

/// Builds a text from anything streamable, the same under every locale: `concat("rank ", r, " found ", n)`.
template <class... Parts>
std::string concat(Parts const&... parts) {
    return detail::MessagePart::join({detail::MessagePart(parts)...});
}

/// Throws `Error` with the concatenated parts unless `condition` holds. The parts are only formatted on failure.
template <class... Parts>
void check(bool condition, Code const& code, Parts const&... parts) {
    if (!condition) [[unlikely]]
        throw Error(code, concat(parts...));
}

}  // namespace accelerate
