#pragma once

#include <concepts>

namespace torch::nn {
class Module;
}

namespace accelerate {
namespace place {

/// The block itself, whole and always there. Nothing can be faster: the type that a unit holds *is* the user's.
struct Resident {
    template <class Block>
    using impl = Block;
};

}  // namespace place

/// A placement: how a unit of a model is held. `impl<Block>` is the module in the block's place; other than `Resident` it
///   derives from the block, so that names, `as<Block>()` and members stay;
///   takes the block's constructor arguments, and is plain until something is bound to it: construction is recorded on shapes;
///   shadows `forward` with one that brings the parameters, calls `Block::forward` and sends them away; `for_each_tensor` tells
///   which tensors the output holds, for what must happen before their backward;
///   overrides `clone`, which would slice it, or refuses.
/// `static void materialize(root, tape, communicator, values)`, optional: computes what this rank keeps of a model that `make` has recorded,
///   or takes it from `values` (see `module::NoValues`), in place of `module::materialize`, which does so with all of it.
/// `static void cast(root, dtype)`, needed by precisions that keep parameters in less than fp32: casts what this rank keeps of a model that
///   `make` has cut; what is whole is cast by the precision.
template <class P>
concept placement = requires { typename P::template impl<torch::nn::Module>; };

}  // namespace accelerate
