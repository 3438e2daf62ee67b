#pragma once

#include <accelerate/accelerator_options.hpp>
#include <accelerate/components.hpp>
#include <accelerate/data/loops.hpp>
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace accelerate {

/// What of an accelerator's training depends on no policy, but on what its ranks talk through: compiled once for all accelerators of a
/// program.
template <class Communicator>
class TrainingBase {
public:
    using communicator = Communicator;

    TrainingBase(accelerator_options given, Communicator c) : options(std::move(given)), comm(std::move(c)), loops(std::make_shared<data::Loops>()) {
        check_accumulation_steps("Accelerator", options.gradient_accumulation_steps);
        check(options.total_limit >= 0, code::config, "Accelerator: total_limit is ", options.total_limit, "; it is a number of checkpoints, or 0 for all");
        check(options.timeout_s > 0, code::config, "Accelerator: timeout_s is ", options.timeout_s, "; it must be above 0");
        comm.set_deadline(deadline());
    }

    /// At most a year, so that it can be counted.
    std::chrono::milliseconds deadline() const { return std::chrono::milliseconds(static_cast<int64_t>(std::max(1.0, 1e3 * std::min(options.timeout_s, 365 * 24 * 3600.0)))); }

    /// The ranks that write one checkpoint: all, or, with `save_on_each_node`, those of this rank's node. Collective at first.
    communicator& writers() {
        if (!options.save_on_each_node) return comm;
        if (!of_node_) of_node_.emplace(comm.split(comm.node(), comm.rank()));
        return *of_node_;
    }
    /// Whether this rank looks after what they write: the main process, or that of its node.
    bool writes() { return writers().rank() == 0; }

    /// A name for the next thing of a kind: "model", "model_1", "model_2", as in Python's files.
    std::string next_name(std::string const& kind) {
        drop_gone(components);
        auto name = kind;
        for (int64_t n = 1; std::ranges::find(components, name, &state::Component::name) != components.end(); ++n) name = concat(kind, "_", n);
        return name;
    }

    /// Everything that goes into a checkpoint: what was prepared and registered, then the accelerator's own.
    std::vector<state::Component> all_components() const {
        auto all = components;
        drop_gone(all);
        all.insert(all.end(), own_components.begin(), own_components.end());
        return all;
    }

    accelerator_options options;
    communicator comm;
    std::shared_ptr<data::Loops> loops;
    std::vector<state::Component> components;      ///< of everything prepared and registered
    std::vector<state::Component> own_components;  ///< of what there always is
    int64_t registered = 0;                        ///< objects of the user's among the components
    bool sync_gradients = true;

protected:
    static void check_accumulation_steps(char const* call, int64_t steps) {
        check(steps >= 1, code::config, call, ": gradient_accumulation_steps is ", steps, "; it must be at least 1");
    }

private:
    static void drop_gone(std::vector<state::Component>& all) {
        std::erase_if(all, [](state::Component const& c) { return c.gone && c.gone(); });
    }

    std::optional<communicator> of_node_;
};

}  // namespace accelerate
