#pragma once

#include <accelerate/core/state_dict.hpp>
#include <accelerate/state/codes.hpp>
#include <functional>
#include <string>

namespace accelerate::state {

/// Whose a component's state is.
enum class Whose {
    All,          ///< one state, which every rank has: rank 0 writes it
    Parts,        ///< one state, of which every rank holds and writes some; parts of tensors are listed under "slices" and "shapes"
    Each,         ///< every rank's own; a rank that the checkpoint did not have keeps what it has
    EachOrFirst,  ///< every rank's own; a rank that the checkpoint did not have takes rank 0's
};

constexpr bool is_own(Whose whose) { return whose == Whose::Each || whose == Whose::EachOrFirst; }

/// What the names of a component's tensors are.
enum class Names {
    Other,      ///< its own affair
    Parameter,  ///< "layer.weight": of parameters or buffers
    State,      ///< "exp_avg.layer.weight": of a state of a parameter
};

/// One thing whose state goes into a checkpoint.
struct Component {
    std::string name;
    Whose whose = Whose::All;
    std::function<StateDict()> save;
    std::function<void(StateDict const&)> load;  ///< a state that `fits` has been shown, where there is one
    /// Throws where a state does not fit, and changes nothing. Empty: only `load` can tell, which then comes before all others'.
    std::function<void(StateDict const&)> fits = {};
    std::function<bool()> gone = {};         ///< that there is nothing to save any more; empty: never
    std::function<StateDict()> holds = {};  ///< of `Parts`: a state as this rank would save it now, whose tensors are to be read; empty: `save`
    /// The tensors that hold the state now, under the names of `save`: one that fits entirely is read right into them, and `load` finds it there.
    /// Empty: states are read into memory of their own.
    std::function<TensorMap()> into = {};
    Code unfit = code::ck_keys;             ///< the error of a state that it cannot take
    Names names = Names::Other;
};

}  // namespace accelerate::state
