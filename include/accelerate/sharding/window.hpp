#pragma once

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <utility>

namespace accelerate {

/// What a short last accumulation window is divided by: the full number of steps, as Python does, or the micro-batches it had.
enum class ShortWindow { Divide, Rescale };

namespace sharding {

/// Where the gradients of a model are on their way from backward to the optimizer.
enum class Stage { Accumulating, Reduced, Unscaled, Clipped, Stepped };

constexpr char const* name(Stage stage) {
    switch (stage) {
        case Stage::Accumulating: return "Accumulating";
        case Stage::Reduced: return "Reduced";
        case Stage::Unscaled: return "Unscaled";
        case Stage::Clipped: return "Clipped";
        case Stage::Stepped: return "Stepped";
    }
    return "?";
}

/// Where they are complete and no step has used them.
inline constexpr std::initializer_list<Stage> waiting_for_step{Stage::Reduced, Stage::Unscaled, Stage::Clipped};
constexpr bool waits_for_step(Stage stage) { return std::find(waiting_for_step.begin(), waiting_for_step.end(), stage) != waiting_for_step.end(); }

/// Position of one model in its accumulation window. The rule is Python Accelerate's `accumulate`: the last batch of the loader
/// always closes a window and the next one starts a full window; otherwise every k-th micro-batch closes it.
class Window {
public:
    /// Enters the next micro-batch; says whether it closes the window.
    bool next(int64_t steps, bool last_of_loader) {
        if (closed_) micro_batches_ = 0;
        ++micro_batches_;
        position_ = last_of_loader ? 0 : position_ + 1;
        return closed_ = last_of_loader || position_ % steps == 0;
    }

    bool closed() const { return closed_ && !held_open_; }
    /// Whether it is, or would be but for a `no_sync`: what a checkpoint goes on from, which knows no scopes.
    bool ends() const { return closed_; }
    /// Micro-batches in the window so far, this one included.
    int64_t micro_batches() const { return micro_batches_; }

    /// Micro-batches since the last window that was closed by the loader's end or by its number.
    int64_t position() const { return position_; }
    /// The closed window's gradients have been used.
    void finish() { micro_batches_ = 0; }
    /// The next window, behind a closed one, is a whole one whatever the number of steps was.
    void restart() { position_ = 0; }
    /// Goes on where another one stood.
    void restore(int64_t position, int64_t micro_batches, bool closed) { position_ = position, micro_batches_ = micro_batches, closed_ = closed; }

    /// Whether something holds it open, for the length of a `no_sync` scope; gives back whether something did before.
    bool hold_open(bool held) { return std::exchange(held_open_, held); }
    /// The next backward is its last, whatever holds it open.
    void close() { closed_ = true, held_open_ = false; }

private:
    int64_t position_ = 0;
    int64_t micro_batches_ = 0;
    bool closed_ = true;
    bool held_open_ = false;
};

}  // namespace sharding
}  // namespace accelerate
