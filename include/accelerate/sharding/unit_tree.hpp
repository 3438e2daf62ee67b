#pragma once

#include <torch/nn/module.h>

#include <accelerate/sharding/layout.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace accelerate::sharding {

/// A unit of a model and the parameters that are its own.
template <class Holder>
struct UnitNode {
    Holder* holder = nullptr;  ///< null: the model itself, where it is no unit
    std::string name = {};
    NamedParameters parameters = {};
    bool leaf = true;      ///< holds no other unit
};

/// The units below `root` in the order of registration, the root first. Every parameter, trainable or not, belongs to the innermost
/// unit above it; one that several units name (tied weights) to the root, which is there whenever any of them runs. `Holder` is a
/// base class of the modules that are units.
template <class Holder>
std::vector<UnitNode<Holder>> unit_tree(torch::nn::Module& root) {
    std::vector<UnitNode<Holder>> nodes(1);
    nodes[0].holder = dynamic_cast<Holder*>(&root);
    struct Owner {
        size_t node;
        std::string name;
        at::Tensor parameter;
    };
    std::vector<Owner> owners;
    std::unordered_map<at::TensorImpl*, size_t> known;
    auto const walk = [&](auto const& self, torch::nn::Module& module, size_t node, std::string const& prefix) -> void {
        for (auto const& p : module.named_parameters(false)) {
            if (!p.value().defined()) continue;
            auto const [it, fresh] = known.try_emplace(p.value().unsafeGetTensorImpl(), owners.size());
            if (fresh) owners.push_back({node, prefix + p.key(), p.value()});
            else if (owners[it->second].node != node) owners[it->second].node = 0;
        }
        for (auto const& child : module.named_children()) {
            auto inside = node;
            if (auto* const holder = dynamic_cast<Holder*>(child.value().get())) {
                nodes[node].leaf = false;
                inside = nodes.size();
                nodes.push_back({holder, prefix + child.key()});
            }
            self(self, *child.value(), inside, prefix + child.key() + ".");
        }
    };
    walk(walk, root, 0, "");
    for (auto& owner : owners) nodes[owner.node].parameters.emplace_back(std::move(owner.name), owner.parameter);
    return nodes;
}

}  // namespace accelerate::sharding
