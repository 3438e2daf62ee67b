#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <accelerate/core/seed.hpp>
#include <accelerate/module/intercept.hpp>
#include <accelerate/module/tape.hpp>
#include <unordered_map>

namespace accelerate::module {

/// Computes recorded tensors: only the operations that they depend on run. Each random operation draws from a generator seeded by
/// (seed of the tape, its number there), so a value does not depend on what else is computed, on which rank, or by how many; the
/// program's own generators are neither read nor moved. Intermediate results are freed after their last use.
class Replay {
public:
    /// Gives operations that draw without naming a generator one of their own, also those that call such operations.
    struct Draws : Interceptor {
        Draws() : Interceptor(&handle_one), generator(at::detail::createCPUGenerator()) {}
        at::Generator generator;

    private:
        static void handle_one(Interceptor& self, c10::OperatorHandle const& op, c10::DispatchKeySet keys, torch::jit::Stack& stack) {
            auto const& arguments = op.schema().arguments();
            auto const first = stack.size() - arguments.size();
            for (size_t i = 0; i < arguments.size(); ++i)
                if (arguments[i].name() == "generator" && stack[first + i].isNone()) stack[first + i] = static_cast<Draws&>(self).generator;
            op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, intercept_key), &stack);
        }
    };

    explicit Replay(Tape const& tape) : tape_(tape) {}

    /// Memory for a recorded tensor that is not computed, for the caller to fill through `value` before `run`. False: it is only a part of what
    /// lies in its memory, which is computed.
    bool give(at::Tensor const& recorded) {
        auto const bytes = static_cast<int64_t>(recorded.storage().nbytes());
        if (static_cast<int64_t>(recorded.nbytes()) != bytes || !recorded.is_non_overlapping_and_dense()) return false;
        return storages_.try_emplace(key(recorded), at::empty({bytes}, at::kByte).storage()).second;
    }

    /// Computes everything that is recorded about these tensors; `value` then gives each. Error E_CONSTRUCT when a real tensor
    /// that the constructors read has been changed since.
    void run(std::vector<at::Tensor> const& wanted) {
        for (auto const& b : tape_.borrowed)
            check(Tape::version_of(b.tensor) == b.version, code::construct, "make: a tensor of shape ", b.tensor.sizes(),
                  " was changed after a constructor had computed with it; build the model yourself and pass it to prepare");
        std::unordered_set<Key> needed;
        auto const need = [&](at::Tensor const& t) {
            if (!storages_.contains(key(t))) needed.insert(key(t));
        };
        for (auto const& t : wanted) need(t);
        auto used_later = needed;
        for (auto const& [given, storage] : storages_) used_later.insert(given);
        std::vector<Step> steps;
        for (size_t i = tape_.operations.size(); i-- > 0;) {
            auto const& operation = tape_.operations[i];
            if (!writes_one_of(operation, needed)) continue;
            auto& step = steps.emplace_back(Step{&operation, {}});
            auto const use = [&](at::Tensor const& t) {
                if (used_later.insert(key(t)).second) step.last_use_of.push_back(key(t));
            };
            for (auto const& argument : operation.in)
                each_tensor(argument, [&](at::Tensor const& t) {
                    need(t);
                    use(t);
                });
            for (auto const& result : operation.out) each_tensor(result, use);
        }
        at::NoGradGuard const no_grad;
        Draws draws;
        Interception const intercepted(draws);
        for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
            auto const& operation = *step->operation;
            auto const results = call(operation, draws);
            for (size_t r = 0; r < results.size(); ++r) keep(operation.out[r], results[r]);
            for (auto const k : step->last_use_of) storages_.erase(k);
        }
    }

    /// The computed value of a recorded tensor; undefined when no operation that ran made it.
    at::Tensor value(at::Tensor const& recorded) const {
        auto const it = storages_.find(key(recorded));
        if (it == storages_.end()) return {};
        auto value = at::empty({0}, recorded.options().device(it->second.device())).set_(it->second, recorded.storage_offset(), recorded.sizes(), recorded.strides());
        value._set_conj(recorded.is_conj());
        value._set_neg(recorded.is_neg());
        return value;
    }

    /// Runs one operation on computed values, while the caller has `draws` in force.
    std::vector<c10::IValue> call(Tape::Operation const& operation, Draws& draws) const {
        torch::jit::Stack stack;
        for (auto const& argument : operation.in)
            stack.push_back(map_tensors(argument, [&](at::Tensor const& t) {
                auto computed = value(t);
                return computed.defined() ? computed : t;
            }));
        if (operation.draw >= 0) draws.generator.set_current_seed(mix(static_cast<uint64_t>(tape_.seed), static_cast<uint64_t>(operation.draw)));
        operation.op.callBoxed(stack);
        return stack;
    }

private:
    // By storage, not by tensor: many tensors are views of one.
    using Key = void const*;
    struct Step {
        Tape::Operation const* operation;
        std::vector<Key> last_use_of;
    };

    static Key key(at::Tensor const& t) { return t.has_storage() ? t.storage().unsafeGetStorageImpl() : nullptr; }

    static bool writes_one_of(Tape::Operation const& operation, std::unordered_set<Key> const& storages) {
        bool found = false;
        auto const look = [&](at::Tensor const& t) { found |= storages.contains(key(t)); };
        for (auto const& value : operation.out) each_tensor(value, look);
        auto const& arguments = operation.op.schema().arguments();
        for (size_t i = 0; i < arguments.size(); ++i)
            if (auto const* alias = arguments[i].alias_info(); alias && alias->isWrite()) each_tensor(operation.in[i], look);
        return found;
    }

    void keep(c10::IValue const& recorded, c10::IValue const& computed) {
        std::vector<at::Tensor> values;
        each_tensor(computed, [&](at::Tensor const& t) { values.push_back(t); });
        size_t i = 0;
        each_tensor(recorded, [&](at::Tensor const& t) {
            if (t.is_meta()) storages_.try_emplace(key(t), values.at(i).storage());
            ++i;
        });
    }

    Tape const& tape_;
    std::unordered_map<Key, c10::Storage> storages_;
};

}  // namespace accelerate::module
