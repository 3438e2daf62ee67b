#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace accelerate::sharding {

/// One trainable parameter and its place in a flat buffer. Tied parameters have one slot, under their first name.
struct Slot {
    std::string name;
    at::Tensor parameter;
    int64_t begin = 0;
    int64_t numel = 0;
    int64_t registration = 0;  ///< its number in the module's own order, which layouts for speed do not keep

    int64_t end() const { return begin + numel; }
    /// The part [from, to) of it that lies between two places of the buffer; from >= to where none does.
    std::pair<int64_t, int64_t> within(int64_t first, int64_t last) const { return {std::max(begin, first), std::min(end(), last)}; }
    /// Whether there is such a part; what is empty lies at its place, were it either of the two.
    bool lies_within(int64_t first, int64_t last) const {
        auto const [from, to] = within(first, last);
        return from < to || (from == to && numel == 0);
    }
};

/// Parameters of one dtype side by side, and their gradients likewise: every `parameter` of a slot and its `.grad()` are views
/// of these two 1-D tensors. Between slots there is padding to 64 bytes, which is zero and stays zero.
struct Flat {
    at::Tensor parameters;
    at::Tensor gradients;
    std::vector<Slot> slots;  ///< in ascending order of `begin`
};

/// A stretch [begin, end) of `flats()[flat]` that this rank updates. `gradients` (1-D, end - begin elements) is where the reduced
/// gradient of the stretch is read: a view of the flat's own gradients, or of another rank's memory where it was reduced.
struct Piece {
    int64_t flat = 0;
    int64_t begin = 0;
    int64_t end = 0;
    at::Tensor gradients;
};

/// What an optimizer needs of a prepared model: parameters in flat buffers, and the moments at which it may touch them.
template <class M>
concept flat_model = requires(M& m, M const& c) {
    { c.flats() } -> std::convertible_to<std::span<Flat const>>;
    { c.pieces() } -> std::convertible_to<std::span<Piece const>>;   // what an optimizer steps on: reads gradients, never writes them
    { c.owned() } -> std::convertible_to<std::span<Piece const>>;    // what this rank may write: clipping, scaling; then settle()
    m.settle();                                                      // after writing gradients: every rank sees what all have written
    c.parameters();                                                  // name and tensor of each that is trained, by `Slot::registration`
    { c.layout() } -> std::convertible_to<int64_t>;                  // grows whenever slots have moved: bindings by position are stale
    { c.window_closed() } -> std::convertible_to<bool>;              // false inside an accumulation window: step and zero_grad do nothing
    { c.gradient_scale() } -> std::convertible_to<double>;           // gradients are these times what is in memory, where the step can multiply
    { c.clears_in_step() } -> std::convertible_to<bool>;             // whether the step may leave zeros where it has read gradients; then:
    m.gradients_cleared();                                           // it has, and zero_grad has nothing to do
    { m.before_step() } -> std::convertible_to<bool>;                // whether the step may be made; throws when the gradients are not complete
    m.after_step();                                                  // everything has been read and written, or the step was refused
    m.zero_grad();
};

/// A model that tells which slots have no gradient, because no loss has reached them since the last step. A step leaves these out.
template <class M>
concept tells_unreached = requires(M& m, M const& c, std::set<std::string> const& names) {
    { c.unreached() } -> std::same_as<std::vector<Slot const*>>;
    { c.idle() } -> std::convertible_to<bool>;                       // all slots are such, and no backward has ended a window
    m.restore_unreached(names);                                      // to what a checkpoint says
};

/// The models that a step is for, of pointers to some: of several only those that a loss has reached since the last one; where there is none,
/// all, and each says so.
template <class Models>
auto stepping(Models const& models) {
    using Model = std::remove_reference_t<decltype(*models.front())>;
    std::vector<Model*> all, reached;
    for (auto const& model : models) all.push_back(std::to_address(model));
    if constexpr (tells_unreached<Model>) {
        if (all.size() < 2) return all;
        std::ranges::copy_if(all, std::back_inserter(reached), [](Model const* model) { return !model->idle(); });
    }
    return reached.empty() ? all : reached;
}

/// Which parameters of a model an optimizer has, by `Slot::registration`.
using Share = std::vector<bool>;
/// Those of an optimizer that has not every parameter of its models; else empty.
template <class Model>
using Shares = std::map<Model const*, Share>;

template <class Model>
bool has(Shares<Model> const& shares, Model const& model, size_t parameter) {
    return shares.empty() || shares.at(&model)[parameter];
}
/// Whether these are parts of one model that have nothing in common.
inline bool apart(Share const& a, Share const& b) {
    if (a.empty() || b.empty()) return false;
    for (size_t i = 0; i < a.size(); ++i)
        if (a[i] && b[i]) return false;
    return true;
}

/// The parameters to whose name and tensor `has` says yes.
template <class Models, class Has>
auto shares_of(Models const& models, Has&& has) {
    Shares<std::remove_reference_t<decltype(*models.front())>> shares;
    bool all = true;
    for (auto const& model : models)
        for (auto& share = shares[std::to_address(model)]; auto const& [name, parameter] : model->parameters()) {
            share.push_back(has(name, parameter));
            all = all && share.back();
        }
    if (all) shares.clear();
    return shares;
}

/// Asks every model, and says whether all agree to the step of an optimizer with these shares of them.
template <class Models, class Model>
bool before_step(Models const& models, Shares<Model> const& shares) {
    bool may = true;
    for (auto const& model : models) {
        auto const share = shares.find(model);
        if constexpr (requires { model->before_step(share->second); }) may = (share == shares.end() ? model->before_step() : model->before_step(share->second)) && may;
        else may = model->before_step() && may;
    }
    return may;
}

}  // namespace accelerate::sharding
