#pragma once

#include <accelerate/state/component.hpp>
#include <filesystem>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace accelerate {

/// What is called before a checkpoint is saved or loaded, on every rank, with the components that are and the checkpoint's folder. It may take
/// components out, or add some, the same on every rank.
using CheckpointHook = std::function<void(std::vector<state::Component>&, std::filesystem::path const&)>;

/// Removes a hook that was registered.
class RemovableHandle {
public:
    explicit RemovableHandle(std::shared_ptr<CheckpointHook> hook) : hook_(std::move(hook)) {}
    void remove() { *hook_ = nullptr; }

private:
    std::shared_ptr<CheckpointHook> hook_;
};

namespace state {

class CheckpointHooks {
public:
    RemovableHandle add(CheckpointHook hook) { return RemovableHandle(hooks_.emplace_back(std::make_shared<CheckpointHook>(std::move(hook)))); }
    void call(std::vector<Component>& components, std::filesystem::path const& dir) const {
        for (auto const& hook : hooks_)
            if (*hook) (*hook)(components, dir);
    }

private:
    std::vector<std::shared_ptr<CheckpointHook>> hooks_;
};

}  // namespace state
}  // namespace accelerate
