#pragma once

#include <accelerate/module/placement.hpp>
#include <accelerate/sharding/flat.hpp>
#include <accelerate/sharding/layout.hpp>
#include <accelerate/sharding/window.hpp>

namespace accelerate {
namespace sharding {

/// A prepared model as the loop needs it: besides what an optimizer needs, it is told about each forward and backward.
template <class M, class Communicator>
concept trained_model = flat_model<M> && std::constructible_from<M, ModelParts, Communicator const&> && requires(M& m, M const& c, at::Tensor const& loss, double value, std::vector<at::Tensor> const& tensors, void (*visit)(size_t)) {
    { m.parameters() } -> std::convertible_to<NamedParameters const&>;
    { m.window() } -> std::same_as<Window&>;
    { c.stage() } -> std::same_as<Stage>;
    m.advance("call", Stage::Reduced, {Stage::Reduced});               // to a stage, from one of those in braces; else E_CALL_ORDER
    m.restore_stage(Stage::Reduced);                                   // to what a checkpoint says
    m.expect_backward();                                               // E_CALL_ORDER when gradients can take no more
    m.before_forward();                                                // also without grad mode
    m.before_backward(loss);                                           // undefined: of other models, in the micro-batch that ends this one's window
    m.after_backward();                                                // returns when the gradients are complete, if the window is closed
    m.for_each_whole(tensors, visit);                                  // visit(i) for each of the model's, in order, when its values are on this rank
    { M::owns_everything } -> std::convertible_to<bool>;               // every rank updates all parameters: norms need no folding over ranks
    { c.sum_over_ranks(value) } -> std::convertible_to<double>;
    { c.replicas() } -> std::convertible_to<int64_t>;                  // how many ranks' losses the gradients are the mean of
};

}  // namespace sharding

/// A sharding policy: how parameters, gradients and optimizer state are cut over the ranks.
///   `name`                is printed
///   `placement<Device>`   how units of a model are held: `place::Resident` unless the model is cut
///   `model<Device>`       what a prepared model becomes (`sharding::trained_model`); deriving from `sharding::FlatModel` brings most
/// `sharding::None` is the shortest model of how to write one.
template <class S, class Device>
concept sharding_policy = requires {
    { S::name } -> std::convertible_to<char const*>;
    requires placement<typename S::template placement<Device>>;
    requires sharding::trained_model<typename S::template model<Device>, typename Device::communicator>;
};

}  // namespace accelerate
