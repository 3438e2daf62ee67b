#pragma once

#include <accelerate/optim/moments.hpp>
#include <accelerate/optim/rules.hpp>
#include <algorithm>
#include <numeric>
#include <optional>

namespace accelerate::optim {

/// One call of a rule: everything of equal hyper-parameters, dtype and device, and updated as often.
struct Batch {
    size_t set = 0;
    int64_t missed = 0;          ///< updates of the optimizer that left these parameters out
    Columns columns;
    std::vector<size_t> models;  ///< to which model each entry belongs
};

/// Whether LibTorch's kernels do the same to it: everything in one dtype, rounded to the nearest.
inline bool is_plain(Batch const& batch, optimizer_storage const& storage) {
    auto const dtype = batch.columns.parameters[0].scalar_type();
    if (batch.columns.masters[0].defined() || storage.master == at::kHalf || (is_low(dtype) && storage.stochastic_states())) return false;
    for (auto const& list : batch.columns.states)
        if (list[0].scalar_type() != dtype) return false;
    return true;
}

/// Cuts what is to be updated into as few calls, of as few list entries, as its hyper-parameters allow. Neighbours of one set
/// become one entry together with the padding between them (zeros, which every rule keeps zero). With `Operations::Torch` each
/// parameter is an entry of its own, in the order of registration. `missed` says of each part how many updates have left it out; nothing
/// where the next one does.
inline std::vector<Batch> make_batches(Moments const& moments, Operations operations, std::vector<std::optional<int64_t>> const& missed) {
    auto const& stretches = moments.stretches();
    auto const& parts = moments.parts();
    std::vector<Batch> batches;

    auto add = [&](size_t part, int64_t begin, int64_t end) {
        auto const set = parts[part].set;
        if (begin == end || !missed[part]) return;
        auto const& s = stretches[parts[part].stretch];
        auto batch = std::find_if(batches.begin(), batches.end(), [&](Batch const& b) {
            auto const& other = b.columns.parameters.front();
            return b.set == set && b.missed == *missed[part] && other.scalar_type() == s.parameters.scalar_type() && other.device() == s.parameters.device();
        });
        if (batch == batches.end()) {
            batch = batches.insert(batch, Batch{set, *missed[part], {}, {}});
            batch->columns.states.resize(s.states.size());
            batch->columns.exponents.resize(s.states.size());
        }
        batch->models.push_back(s.model);
        auto& c = batch->columns;
        c.parameters.push_back(s.parameters.narrow(0, begin, end - begin));
        c.gradients.push_back(s.gradients.narrow(0, begin, end - begin));
        for (size_t i = 0; i < s.states.size(); ++i) {
            c.states[i].push_back(s.states[i].narrow(0, begin, end - begin));
            c.exponents[i].push_back(s.exponents[i].defined() ? detail::exponents_between(s.exponents[i], begin, end) : at::Tensor());
        }
        c.masters.push_back(s.master.defined() ? s.master.narrow(0, begin, end - begin) : at::Tensor());
    };

    std::vector<size_t> order(parts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (operations == Operations::Torch) {
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return std::pair(parts[a].order, parts[a].from) < std::pair(parts[b].order, parts[b].from); });
        for (auto i : order) add(i, parts[i].offset, parts[i].offset + parts[i].length());
        return batches;
    }
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return std::pair(parts[a].stretch, parts[a].offset) < std::pair(parts[b].stretch, parts[b].offset); });
    int64_t begin = 0;
    for (size_t k = 0; k < order.size(); ++k) {
        auto const& part = parts[order[k]];
        auto const* next = k + 1 < order.size() && parts[order[k + 1]].stretch == part.stretch ? &parts[order[k + 1]] : nullptr;
        if (next && next->set == part.set && missed[order[k + 1]] == missed[order[k]]) continue;
        auto const end = next ? next->offset : stretches[part.stretch].parameters.numel();
        add(order[k], begin, end);
        begin = next ? end : 0;
    }
    return batches;
}

}  // namespace accelerate::optim
