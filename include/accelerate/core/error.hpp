#pragma once

#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

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
}  // namespace code

/// Base of everything that this library throws. The message says call, rank (where known), expected, found, and what to do.
class Error : public std::runtime_error {
public:
    Error(Code code, std::string const& message) : std::runtime_error(std::string(code.name) + ": " + message), code_(code) {}

    Code const& code() const noexcept { return code_; }
    int exit_code() const noexcept { return code_.exit; }

private:
    Code code_;
};

/// Builds a message from anything streamable: `concat("rank ", r, " found ", n)`.
template <class... Parts>
std::string concat(Parts const&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

/// Throws `Error` with the concatenated parts unless `condition` holds. The parts are only formatted on failure.
template <class... Parts>
void check(bool condition, Code const& code, Parts const&... parts) {
    if (!condition) [[unlikely]]
        throw Error(code, concat(parts...));
}

}  // namespace accelerate
