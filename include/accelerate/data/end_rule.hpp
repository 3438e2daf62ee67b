#pragma once

#include <concepts>
#include <cstdint>

namespace accelerate::data {

/// What becomes of an epoch's last round where the samples do not fill a batch on every rank.
enum class EndRule : uint8_t {
    Ragged,  ///< it stays as it is: the last batch may be smaller, and some ranks may have one batch less
    Pad,     ///< with several ranks: filled up with the epoch's first samples, as Python Accelerate does
    Drop,    ///< left out
    Mask     ///< filled up on every rank, also on one, so that all batches have one size; `mask()` says which samples are real
};
inline constexpr auto Ragged = EndRule::Ragged;
inline constexpr auto Pad = EndRule::Pad;
inline constexpr auto Drop = EndRule::Drop;
inline constexpr auto Mask = EndRule::Mask;

/// The option `even_batches`: a rule, or Python's true (`Pad`) and false (`Ragged`).
struct EvenBatches {
    constexpr EvenBatches(EndRule r) : rule(r) {}
    template <class Bool>
        requires(std::convertible_to<Bool, bool> && !std::same_as<Bool, EndRule>)
    constexpr EvenBatches(Bool const& even) : rule(static_cast<bool>(even) ? EndRule::Pad : EndRule::Ragged) {}
    friend constexpr bool operator==(EvenBatches, EvenBatches) = default;

    EndRule rule;
};

}  // namespace accelerate::data
