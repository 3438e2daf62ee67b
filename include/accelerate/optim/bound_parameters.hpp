#pragma once

#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>

#include <accelerate/core/state_dict.hpp>
#include <accelerate/optim/batches.hpp>
#include <accelerate/optim/groups.hpp>
#include <accelerate/optim/saved_progress.hpp>
#include <algorithm>
#include <concepts>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::optim {

/// Error E_CONFIG for models with which an optimizer of that kind can do nothing.
inline void check_flats(char const* kind, std::vector<std::span<sharding::Flat const>> const& models) {
    check(!models.empty(), code::config, "optim::", kind, ": there is no model to optimise");
    bool any = false;
    for (auto const& flats : models)
        for (auto const& flat : flats) {
            any = true;
            check(!flat.parameters.is_complex(), code::config, "optim::", kind, ": parameter ", flat.slots.front().name,
                  " is complex, and recipes update real numbers; keep its parts as a real parameter (torch::view_as_complex in forward), or take an optimizer of torch::optim");
        }
    check(any, code::config, "optim::", kind, ": no parameter of the model requires gradients, so there is nothing to optimise");
}

/// Whether one pass over memory can update them.
inline bool sweepable_flats(std::span<sharding::Flat const> flats) {
    for (auto const& flat : flats)
        if (auto const& p = flat.parameters; !p.is_cpu() || (p.scalar_type() != at::kFloat && p.scalar_type() != at::kBFloat16)) return false;
    return true;
}

/// A model as an optimizer sees it.
struct ModelView {
    std::span<sharding::Flat const> flats;
    std::span<sharding::Piece const> pieces;
    sharding::Share const* share = nullptr;  ///< what of it the optimizer has; null: all

    bool has(sharding::Slot const& slot) const { return share == nullptr || (*share)[static_cast<size_t>(slot.registration)]; }

    /// Of a share of the model those stretches that it fills, so that nothing is kept of the rest.
    std::vector<sharding::Piece> own_pieces() const {
        if (share == nullptr) return {pieces.begin(), pieces.end()};
        std::vector<sharding::Piece> within;
        for (auto const& piece : pieces) {
            bool goes_on = false;
            for (auto const& slot : flats[static_cast<size_t>(piece.flat)].slots) {
                if (!slot.lies_within(piece.begin, piece.end)) continue;
                auto const [from, to] = slot.within(piece.begin, piece.end);
                bool const ours = has(slot);
                if (ours && !goes_on) within.push_back({piece.flat, from, to, {}});
                else if (ours) within.back().end = to;
                if (ours) within.back().gradients = piece.gradients.narrow(0, within.back().begin - piece.begin, to - within.back().begin);
                goes_on = ours;
            }
        }
        return within;
    }
};

/// The parameters of an optimizer with what it keeps of them, cut into the calls of its rule that make a step; whatever the recipe, and
/// whatever the models.
struct BoundParameters {
    BoundParameters(char const* of_kind, Operations by, bool several_models, Grouping groups, Moments empty)
        : kind(of_kind), operations(by), numbered(several_models), grouping(std::move(groups)), moments(std::move(empty)) {}

    /// Looks at every parameter: at the first step, and again only when slots have moved.
    void bind(std::span<ModelView const> models) {
        std::vector<Stretch> stretches;
        std::vector<Part> parts;
        std::set<std::string> keys;
        int64_t first_of_model = 0;
        for (size_t m = 0; m < models.size(); ++m) {
            auto const& model = models[m];
            auto const pieces = model.own_pieces();
            int64_t slots = 0;
            auto const first_stretch = stretches.size();
            for (auto const& piece : pieces)
                stretches.push_back({model.flats[static_cast<size_t>(piece.flat)].parameters.narrow(0, piece.begin, piece.end - piece.begin), piece.gradients, {}, {}, {}, {}, m});
            for (size_t f = 0; f < model.flats.size(); ++f)
                for (auto const& slot : model.flats[f].slots) {
                    ++slots;
                    if (!model.has(slot)) continue;
                    auto const set = grouping.set_of(slot);
                    auto const key = key_of(m, slot);
                    keys.insert(key);
                    for (size_t p = 0; p < pieces.size(); ++p) {
                        if (pieces[p].flat != static_cast<int64_t>(f) || !slot.lies_within(pieces[p].begin, pieces[p].end)) continue;
                        auto const [from, to] = slot.within(pieces[p].begin, pieces[p].end);
                        parts.push_back({key, slot.parameter.sizes().vec(), slot.parameter.strides().vec(), slot.numel,
                                         from - slot.begin, to - slot.begin, first_stretch + p, from - pieces[p].begin, first_of_model + slot.registration, set});
                    }
                }
            first_of_model += slots;
        }
        if (!bound) grouping.warn_about_unused();
        moments.arrange(std::move(stretches), std::move(parts), std::move(keys));
        group();
        bound = true;
    }

    /// The next update leaves these out: no loss has reached them.
    void pass_over(std::vector<std::string> keys) {
        if (keys != unreached) [[unlikely]] {
            unreached = std::move(keys);
            group();
        }
        for (auto const& key : unreached) ++missed[key];
    }

    std::string key_of(size_t model, sharding::Slot const& slot) const { return numbered ? concat(model, ".", slot.name) : slot.name; }

    void count(int64_t n) {
        steps = n;
        for (auto& [counter, behind] : counters) {
            if (counter.is_cpu()) *counter.mutable_data_ptr<float>() = static_cast<float>(n - behind);
            else counter.fill_(n - behind);
        }
    }

    template <std::same_as<StateDict> State>  // a template, as those of `Moments` are
    State state_dict(bool live) const {
        State state;
        state.values = {{"kind", kind}, {"lr", grouping.lr()}, {"steps", steps}, {"parameter_groups", grouping.rules()}, {"groups", nlohmann::json::array()}};
        for (auto const& [key, n] : missed) state.values["parameter_steps"][key] = steps - n;
        for (auto const& set : grouping.sets()) state.values["groups"].push_back({{"lr", set.lr}, {"weight_decay", set.weight_decay}});
        if (bound) moments.save(state, live);
        return state;
    }

    /// Error E_DATA for a state of another kind of optimizer, or of other groups.
    template <std::same_as<StateDict> State>
    SavedProgress progress_in(State const& state) const {
        auto const who = concat("optim::", kind);
        auto const saved = saved_progress(state, who, kind);
        auto const here = grouping.rules();
        auto const groups = state.values.contains("parameter_groups") ? state.template value<int64_t>("parameter_groups", who) : here;
        check(groups == here, code::data, who, ".load_state_dict: the state has ", groups, " parameter groups, this recipe ", here);
        return saved;
    }
    /// Once bound. Error E_DATA for a state that does not fit; nothing has been changed then.
    template <std::same_as<StateDict> State>
    void load_state_dict(State const& state, SavedProgress const& saved) {
        at::NoGradGuard const no_grad;
        if (saved.steps == 0 && state.tensors.empty()) moments.reset();
        else moments.load(state);
        grouping.set_lr(saved.lr);
        missed.clear();
        for (auto const& [key, made] : saved.parameter_steps)
            if (made != saved.steps) missed[key] = saved.steps - made;
        unreached.clear();
        group();
        count(saved.steps);
    }

    char const* kind;  // of the rule
    Operations operations;
    bool numbered;     // parameters are called by their model's number, too
    Grouping grouping;
    Moments moments;
    std::vector<Batch> batches;
    std::vector<std::pair<at::Tensor, int64_t>> counters;  // of a device and a number of missed updates; the same tensor in every entry of the lists
    std::map<std::string, int64_t> missed;                 // updates that have left a parameter out
    std::vector<std::string> unreached;                    // what the last update has left out
    int64_t steps = 0;
    bool bound = false;

private:
    void group() {
        std::vector<std::optional<int64_t>> behind;
        for (auto const& part : moments.parts()) {
            auto& its = behind.emplace_back(std::nullopt);
            if (std::find(unreached.begin(), unreached.end(), part.key) != unreached.end()) continue;
            auto const found = missed.find(part.key);
            its = found != missed.end() ? found->second : 0;
        }
        batches = make_batches(moments, operations, behind);
        counters.clear();
        for (auto& batch : batches) {
            auto const device = batch.columns.parameters.front().device();
            auto counter = std::find_if(counters.begin(), counters.end(), [&](auto const& c) { return c.first.device() == device && c.second == batch.missed; });
            if (counter == counters.end()) counter = counters.insert(counter, {at::full({}, steps - batch.missed, at::TensorOptions().dtype(at::kFloat).device(device)), batch.missed});
            batch.columns.steps.assign(batch.columns.parameters.size(), counter->first);
        }
    }
};

}  // namespace accelerate::optim
