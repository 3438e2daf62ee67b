#pragma once

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/full.h>

#include <accelerate/core/same_memory.hpp>
#include <accelerate/core/state_dict.hpp>
#include <accelerate/optim/rounding.hpp>
#include <accelerate/optim/storage.hpp>
#include <accelerate/sharding/flat.hpp>
#include <map>
#include <set>

namespace accelerate::optim {

/// A stretch of a flat buffer that this rank updates, with its optimizer state: 1-D tensors of equal length.
struct Stretch {
    at::Tensor parameters;
    at::Tensor gradients;
    std::vector<at::Tensor> states = {};
    std::vector<at::Tensor> exponents = {};  ///< of each state's blocks (see block_scaled.hpp), int8; undefined for states without
    at::Tensor master = {};   ///< the parameters in fp32, where they are kept in less and the optimizer updates fp32; else undefined
    at::Tensor average = {};  ///< of the parameters over the steps, in fp32, where it is asked for; else undefined
    size_t model = 0;
};

/// The part [from, to) of one parameter, counted in memory order, that lies in a stretch at `offset`.
struct Part {
    std::string key;                ///< the parameter's name; numbered when several models are bound
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
    int64_t numel = 0;
    int64_t from = 0;
    int64_t to = 0;
    size_t stretch = 0;
    int64_t offset = 0;
    int64_t order = 0;              ///< position in Python's order: model by model, parameters as registered
    size_t set = 0;                 ///< of hyper-parameters

    int64_t length() const { return to - from; }
};

/// Optimizer state, stored as the flat buffers are and addressed by parameter name: it follows its parameters when buckets are
/// arranged anew, and goes into a `StateDict` as "<state>.<parameter>" in the parameter's shape, which any sharding can load. Copies of
/// the parameters, "master" and "ema", are kept with the rule's own states.
class Moments {
public:
    /// `masters`: parameters in bf16 or fp16 have one. `averages`: all have one.
    Moments(std::vector<std::string> names, double initial, optimizer_storage const& storage = {}, bool masters = false, bool averages = false)
        : names_(std::move(names)), initial_(initial), storage_(storage), masters_(masters), averages_(averages) {}

    std::vector<Stretch> const& stretches() const { return stretches_; }
    std::vector<Part> const& parts() const { return parts_; }

    /// Takes over a new arrangement; state moves along by name. Parameters not seen before start with the initial value. `keys`
    /// are those of all parameters, also of those that other ranks update.
    void arrange(std::vector<Stretch> stretches, std::vector<Part> parts, std::set<std::string> keys) {
        for (auto& s : stretches) {
            auto const dtype = s.parameters.scalar_type();
            bool const master = masters_ && is_low(dtype);
            for (size_t i = 0; i < names_.size(); ++i) {
                auto const asked = is_low(dtype) || dtype == at::kFloat ? storage_.state(i) : std::nullopt;
                bool const blocks = asked == at::kHalf || asked == at::kFloat8_e4m3fn;
                s.states.push_back(at::empty(s.parameters.sizes(), s.parameters.options().dtype(asked.value_or(master ? at::kFloat : dtype))));
                s.exponents.push_back(blocks ? detail::exponents_for(s.parameters) : at::Tensor());
                start(s, i);
            }
            if (master) s.master = s.parameters.to(at::kFloat);
            if (averages_) s.average = s.parameters.to(wide(dtype), false, true);
        }
        auto const before = index();
        auto const target_of = kept_of(stretches), origin_of = kept_of(stretches_);
        for (auto const& part : parts) {
            auto old = before.find(part.key);
            if (old == before.end()) continue;
            int64_t found = 0;
            for (auto i : old->second) {
                auto const& source = parts_[i];
                auto const from = std::max(part.from, source.from), to = std::min(part.to, source.to);
                if (from >= to) continue;
                found += to - from;
                auto const &target = target_of[part.stretch], &origin = origin_of[source.stretch];
                for (size_t n = 0; n < target.size(); ++n)
                    target[n].second.narrow(0, part.offset + from - part.from, to - from).copy_(origin[n].second.narrow(0, source.offset + from - source.from, to - from));
            }
            check(found == part.length(), code::internal, "optimizer.step: the buckets were arranged anew after the first step, and ", part.length() - found,
                  " elements of the state of \"", part.key, "\" are on another rank; arrange buckets before the first step");
        }
        put_back(stretches, target_of);
        stretches_ = std::move(stretches);
        parts_ = std::move(parts);
        keys_ = std::move(keys);
    }

    /// All state that this rank holds: as copies, or, where it lies in one piece and in fp32 or wider, as it lies in memory (`live`). A parameter
    /// of which it holds only a part gives that part as a 1-D tensor, its place under "slices" and the whole one's shape under "shapes".
    template <std::same_as<StateDict> State>  // a template, as `load` is: who saves nothing does not compile JSON
    void save(State& state, bool live) const {
        auto const kept = kept_of(stretches_);
        for (auto const& [key, indices] : index()) {
            auto const& first = parts_[indices.front()];
            auto const& last = parts_[indices.back()];
            int64_t held = 0;
            for (auto i : indices) held += parts_[i].length();
            check(held == last.to - first.from, code::internal, "optimizer.state_dict: the parts of \"", key, "\" on this rank have gaps");
            auto const& states = kept[first.stretch];
            for (size_t n = 0; n < states.size(); ++n) {
                auto const name = states[n].first + "." + key;
                at::Tensor flat;
                if (live && indices.size() == 1) {
                    flat = slice(first, states[n].second);
                } else {
                    flat = at::empty({held}, states[n].second.options());
                    for (auto i : indices) flat.narrow(0, parts_[i].from - first.from, parts_[i].length()).copy_(slice(parts_[i], kept[parts_[i].stretch][n].second));
                }
                if (held == first.numel) state.tensors.insert(name, flat.as_strided(first.sizes, first.strides, flat.storage_offset()).contiguous());
                else {
                    state.tensors.insert(name, flat);
                    state.values["slices"][name] = {first.from, last.to};
                    state.values["shapes"][name] = {{"shape", first.sizes}, {"strides", first.strides}};
                }
            }
        }
    }

    /// The reverse of `save`, from whole parameters or from the same slices. Copies that the state does not have are made from the
    /// parameters. Error E_DATA for a missing, superfluous or misshapen tensor; nothing has been changed then.
    template <std::same_as<StateDict> State>
    void load(State const& state) {
        auto const kept = kept_of(stretches_);
        for (auto& [target, source] : copies_for(state, kept))
            if (!same_memory(target, source)) target.copy_(source);
        put_back(stretches_, kept);
    }
    /// Throws what `load` would.
    template <std::same_as<StateDict> State>
    void check_fits(State const& state) const {
        static_cast<void>(copies_for(state, kept_of(stretches_)));
    }

    /// Back to the value before the first update.
    void reset() {
        for (auto& s : stretches_) {
            for (size_t i = 0; i < s.states.size(); ++i) start(s, i);
            for (auto* copy : {&s.master, &s.average})
                if (copy->defined()) copy->copy_(s.parameters);
        }
    }

private:
    using Kept = std::vector<std::pair<std::string, at::Tensor>>;

    /// From where in a state each part of what is kept comes.
    template <std::same_as<StateDict> State>
    std::vector<std::pair<at::Tensor, at::Tensor>> copies_for(State const& state, std::vector<Kept> const& kept) const {
        std::vector<std::pair<at::Tensor, at::Tensor>> copies;
        for (auto const& part : parts_)
            for (auto const& [name, tensor] : kept[part.stretch]) {
                auto const key = name + "." + part.key;
                bool const copy = std::find(names_.begin(), names_.end(), name) == names_.end();
                if (copy && !state.tensors.contains(key)) copies.emplace_back(slice(part, tensor), slice(part, stretches_[part.stretch].parameters));
                else copies.emplace_back(slice(part, tensor), stored(state, key, part));
            }
        for (auto const& [name, tensor] : state.tensors)
            check(known(name), code::data, "optimizer.load_state_dict: the state has \"", name, "\", which belongs to no parameter of this optimizer");
        return copies;
    }

    /// Parts by parameter, in ascending order within each.
    std::map<std::string, std::vector<size_t>> index() const {
        std::map<std::string, std::vector<size_t>> by_key;
        for (size_t i = 0; i < parts_.size(); ++i) by_key[parts_[i].key].push_back(i);
        for (auto& [key, indices] : by_key) std::sort(indices.begin(), indices.end(), [&](size_t a, size_t b) { return parts_[a].from < parts_[b].from; });
        return by_key;
    }

    /// What is kept of each stretch, by name; of stretches of one dtype the same. States in blocks are copies in fp32, which `put_back`
    /// takes.
    std::vector<Kept> kept_of(std::vector<Stretch> const& stretches) const {
        std::vector<Kept> all;
        for (auto const& s : stretches) {
            auto& kept = all.emplace_back();
            for (size_t n = 0; n < names_.size(); ++n) kept.emplace_back(names_[n], s.exponents[n].defined() ? detail::decoded(s.states[n], s.exponents[n]) : s.states[n]);
            if (s.master.defined()) kept.emplace_back("master", s.master);
            if (s.average.defined()) kept.emplace_back("ema", s.average);
        }
        return all;
    }
    void put_back(std::vector<Stretch> const& stretches, std::vector<Kept> const& kept) const {
        for (size_t i = 0; i < stretches.size(); ++i)
            for (size_t n = 0; n < names_.size(); ++n)
                if (auto const& s = stretches[i]; s.exponents[n].defined()) detail::encode_into(s.states[n], s.exponents[n], kept[i][n].second, nullptr);
    }
    /// A state as it is before the first update.
    void start(Stretch const& s, size_t n) const {
        if (s.exponents[n].defined()) detail::encode_into(s.states[n], s.exponents[n], at::full(s.parameters.sizes(), initial_, s.parameters.options().dtype(at::kFloat)), nullptr);
        else s.states[n].fill_(initial_);
    }

    static at::ScalarType wide(at::ScalarType dtype) { return is_low(dtype) ? at::kFloat : dtype; }
    static at::Tensor slice(Part const& part, at::Tensor const& of_its_stretch) { return of_its_stretch.narrow(0, part.offset, part.length()); }

    bool known(std::string const& name) const {
        auto const dot = name.find('.');  // names of states have none
        if (dot == std::string::npos || !keys_.contains(name.substr(dot + 1))) return false;
        auto const state = name.substr(0, dot);
        return std::find(names_.begin(), names_.end(), state) != names_.end() || (masters_ && state == "master") || (averages_ && state == "ema");
    }

    template <std::same_as<StateDict> State>
    static at::Tensor stored(State const& state, std::string const& name, Part const& part) {
        auto found = state.tensors.find(name);
        check(found != state.tensors.end(), code::data, "optimizer.load_state_dict: the state has no tensor \"", name, "\"; was it saved for another model?");
        auto const& tensor = found->second;
        if (state.values.contains("slices") && state.values["slices"].contains(name)) {
            auto const range = state.values["slices"][name].template get<std::pair<int64_t, int64_t>>();
            check(range.first <= part.from && part.to <= range.second && tensor.dim() == 1 && tensor.numel() == range.second - range.first, code::data,
                  "optimizer.load_state_dict: \"", name, "\" holds elements ", range.first, " to ", range.second, ", this rank needs ", part.from, " to ", part.to,
                  "; join the ranks' states first");
            return tensor.narrow(0, part.from - range.first, part.length());
        }
        check(tensor.sizes() == at::IntArrayRef(part.sizes), code::data, "optimizer.load_state_dict: \"", name, "\" has shape ", tensor.sizes(), ", the parameter ",
              at::IntArrayRef(part.sizes));
        auto in_memory_order = tensor;
        if (tensor.strides() != at::IntArrayRef(part.strides)) in_memory_order = at::empty_strided(part.sizes, part.strides, tensor.options()).copy_(tensor);
        return in_memory_order.as_strided({part.numel}, {1}).narrow(0, part.from, part.length());
    }

    std::vector<std::string> names_;
    double initial_;
    optimizer_storage storage_;
    bool masters_, averages_;
    std::vector<Stretch> stretches_;
    std::vector<Part> parts_;
    std::set<std::string> keys_;
};

}  // namespace accelerate::optim
