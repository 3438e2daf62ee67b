#pragma once

#include <ATen/SequenceNumber.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <accelerate/core/error.hpp>
#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/module/forward_state.hpp>
#include <concepts>
#include <functional>
#include <memory>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>

namespace accelerate {
namespace module {

/// How a graph holds its nodes: LibTorch 2.11 shares them by std::shared_ptr, 2.15 by c10::intrusive_ptr.
using NodePtr = decltype(torch::autograd::Edge::function);

template <class Node, class... Arguments>
auto make_node(Arguments&&... arguments) {
    if constexpr (std::derived_from<Node, c10::intrusive_ptr_target>) return c10::make_intrusive<Node>(std::forward<Arguments>(arguments)...);
    else return std::shared_ptr<Node>(new Node(std::forward<Arguments>(arguments)...), [](auto* node) { deleteNode(node); });  // torch::autograd's: long chains without recursion
}

/// LibTorch gives the nodes of leaves the largest sequence number.
inline bool is_leaf(torch::autograd::Node const& node) { return node.sequence_nr() == UINT64_MAX; }

/// The edges from the graph of a call to the leaves (parameters) that it has used, each once. `inside` says whether a node was made by
/// the call; `seen` are the nodes of its own arguments. Error E_CALL_ORDER for an intermediate tensor from outside: what lies behind it
/// would be gone through twice.
template <class Inside>
torch::autograd::edge_list edges_to_leaves(torch::autograd::edge_list open, std::unordered_set<torch::autograd::Node*> seen, Inside const& inside) {
    torch::autograd::edge_list found;
    while (!open.empty()) {
        auto const edge = std::move(open.back());
        open.pop_back();
        auto* node = edge.function.get();
        if (node == nullptr || !seen.insert(node).second) continue;
        if (is_leaf(*node)) found.push_back(edge);
        else {
            check(inside(*node), code::call_order, "checkpointed: the function uses a tensor from outside that has a gradient and is no parameter (made by ", node->name(), "); give it as an argument");
            for (auto const& next : node->next_edges()) open.push_back(next);
        }
    }
    return found;
}

/// While alive, tensor hooks of these leaves are not called: they are called when the gradients reach the leaves themselves.
class WithoutHooks {
public:
    explicit WithoutHooks(torch::autograd::edge_list const& leaves) {
        for (auto const& edge : leaves) kept_.emplace_back(edge.function, std::exchange(edge.function->tensor_pre_hooks(), {}));
    }
    ~WithoutHooks() {
        for (auto& [node, hooks] : kept_) node->tensor_pre_hooks() = std::move(hooks);
    }
    WithoutHooks(WithoutHooks const&) = delete;
    WithoutHooks& operator=(WithoutHooks const&) = delete;

private:
    std::vector<std::pair<NodePtr, std::vector<std::unique_ptr<torch::autograd::FunctionPreHook>>>> kept_;
};

/// The backward of a call that kept nothing but its arguments: calls again and goes backward through that.
template <class F, class Arguments>
class Recompute final : public torch::autograd::Node {
public:
    /// `arguments` are detached; `tracked` says of each tensor in them, in order, whether its gradient is wanted.
    Recompute(F f, Arguments arguments, std::vector<bool> tracked, ForwardState state) : f_(std::move(f)), arguments_(std::move(arguments)), tracked_(std::move(tracked)), state_(std::move(state)) {
        for_each_known_tensor(arguments_, [&](at::Tensor& t) { versions_.push_back(static_cast<uint32_t>(t._version())); });
    }

    std::string name() const override { return "accelerate::checkpointed"; }

    /// What a call gives, and the edges to its arguments.
    struct Call {
        std::decay_t<decltype(std::apply(std::declval<F&>(), std::declval<Arguments>()))> result;
        torch::autograd::edge_list arguments;
    };
    Call call() {
        auto arguments = arguments_;
        torch::autograd::edge_list edges;
        size_t i = 0;
        for_each_known_tensor(arguments, [&](at::Tensor& t) {
            t = t.detach();
            if (tracked_[i++]) edges.push_back(torch::autograd::impl::gradient_edge(t.requires_grad_()));
        });
        return {std::apply(f_, std::move(arguments)), std::move(edges)};
    }

    torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
        check(!released_, code::call_order, "checkpointed: a second backward through it; the first must keep the graph (retain_graph)");
        size_t i = 0;
        for_each_known_tensor(arguments_, [&](at::Tensor& t) {
            check(versions_[i++] == static_cast<uint32_t>(t._version()), code::call_order, "checkpointed: an argument was changed in place between forward and backward; give a clone of it");
        });
        torch::autograd::edge_list roots, ends;
        torch::autograd::variable_list given;
        {
            ForwardState::Restored const restored(state_);
            at::AutoGradMode const grad_mode(true);
            auto again = call();
            size_t output = 0;
            for_each_known_tensor(again.result, [&](at::Tensor& t) {
                if (!t.requires_grad()) return;
                auto const n = output++;
                if (n >= gradients.size() || !gradients[n].defined()) return;
                roots.push_back(torch::autograd::impl::gradient_edge(t));
                given.push_back(gradients[n]);
            });
            check(output == gradients.size(), code::internal, "checkpointed: called again, the function gave ", output, " tensors with a gradient, in forward ", gradients.size(), "; it must do the same each time");
            ends = std::move(again.arguments);
        }
        torch::autograd::edge_list const leaves(next_edges().begin() + static_cast<std::ptrdiff_t>(ends.size()), next_edges().end());
        ends.insert(ends.end(), leaves.begin(), leaves.end());
        if (roots.empty()) return torch::autograd::variable_list(ends.size());
        WithoutHooks const without_hooks(leaves);
        return torch::autograd::Engine::get_default_engine().execute(roots, given, false, false, false, ends);
    }

    void release_variables() override {
        released_ = true;
        for_each_known_tensor(arguments_, [](at::Tensor& t) { t = at::Tensor(); });
    }

private:
    F f_;
    Arguments arguments_;
    std::vector<bool> tracked_;
    ForwardState state_;
    std::vector<uint32_t> versions_;
    bool released_ = false;
};

}  // namespace module

/// Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; torch.utils.checkpoint): gives
/// `f(arguments...)` and keeps nothing of it but the arguments; backward calls `f` again, under the same autocast and with the same
/// random numbers. Costs a second forward; saves what `f` would have saved. `f` is copied into the graph (a holder such as `Unit`
/// is a cheap copy), and may use parameters; they and the arguments get their gradients, once each, as without. Any number of tensors
/// may go in and come out, inside tuples, structs, and so on; calls nest. Without grad mode it is just the call. Errors (E_CALL_ORDER):
/// an argument that is changed in place before backward; a tensor from outside that has a gradient and is neither argument nor
/// parameter; a second backward. There is no backward through backward (create_graph).
template <class F, class... In>
auto checkpointed(F f, In&&... in) {
    using Arguments = std::tuple<std::decay_t<In>...>;
    using Node = module::Recompute<F, Arguments>;
    if (!at::GradMode::is_enabled()) return std::decay_t<std::invoke_result_t<F&, std::decay_t<In>...>>(std::invoke(f, std::forward<In>(in)...));
    Arguments arguments(std::forward<In>(in)...);
    torch::autograd::edge_list edges;
    std::vector<bool> tracked;
    auto device = at::kCPU;
    for_each_known_tensor(arguments, [&](at::Tensor& t) {
        tracked.push_back(t.requires_grad());
        if (t.requires_grad()) edges.push_back(torch::autograd::impl::gradient_edge(t));
        if (!t.is_cpu()) device = t.device().type();
        t = t.detach();
    });
    auto const node = module::make_node<Node>(std::move(f), std::move(arguments), std::move(tracked), module::ForwardState(device));
    auto const first = at::sequence_number::peek();
    auto const inside = [first, thread = at::RecordFunction::currentThreadId()](torch::autograd::Node const& n) {
        return n.sequence_nr() >= first && n.thread_id() == thread;  // numbers are each thread's own
    };
    auto result = [&] {
        module::WithoutCastCache const no_cache;  // a cast from outside would be taken for a tensor from outside
        return node->call();
    }();
    std::unordered_set<torch::autograd::Node*> own;
    for (auto const& edge : result.arguments) own.insert(edge.function.get());
    torch::autograd::edge_list roots;
    for_each_known_tensor(result.result, [&](at::Tensor& t) {
        if (t.requires_grad()) roots.push_back(torch::autograd::impl::gradient_edge(t));
    });
    for (auto& edge : module::edges_to_leaves(std::move(roots), std::move(own), inside)) edges.push_back(std::move(edge));
    node->set_next_edges(std::move(edges));
    for_each_known_tensor(result.result, [&](at::Tensor& t) {
        if (!t.requires_grad()) return;
        t = t.detach();
        torch::autograd::set_history(t, node);
    });
    return std::move(result.result);
}

}  // namespace accelerate
