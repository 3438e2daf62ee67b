#pragma once

#include <ATen/ops/empty_strided.h>
#include <c10/util/Exception.h>

#include <accelerate/module/replay.hpp>

namespace accelerate::module {

/// While alive, this thread builds tensors on the meta device: shapes, no memory, no numbers. With a tape, what it does is
/// recorded; an operation that needs numbers (`item()`, `randperm`, `nonzero`) is then given them by replaying what it depends on.
class [[nodiscard]] Recording {
public:
    explicit Recording(Tape* tape) : recorder_(tape), intercepted_(recorder_) {}

private:
    struct Recorder : Interceptor {
        explicit Recorder(Tape* t) : Interceptor(&handle_one), tape(t) {}
        Tape* tape;
    };

    static void handle_one(Interceptor& self, c10::OperatorHandle const& op, c10::DispatchKeySet, torch::jit::Stack& stack) {
        auto* const tape = static_cast<Recorder&>(self).tape;
        auto const first = stack.end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size());
        Tape::Operation operation{op, {first, stack.end()}};
        stack.erase(first, stack.end());
        auto const& arguments = op.schema().arguments();
        for (size_t i = 0; i < arguments.size(); ++i)  // the options of a recorded tensor name the device that it only seems to be on
            if (arguments[i].name() == "device" && operation.in[i].isDevice() && operation.in[i].toDevice().is_meta()) operation.in[i] = at::Device(at::kCPU);
        if (op.hasTag(at::Tag::nondeterministic_seeded) && tape != nullptr) operation.draw = tape->draws;
        auto const results = run(operation, tape);
        stack.insert(stack.end(), results.begin(), results.end());
        if (tape == nullptr || !makes_meta(operation, results)) return;
        if (operation.draw >= 0) ++tape->draws;
        tape->add(std::move(operation), results);
    }

    /// The operation on shapes.
    static std::vector<c10::IValue> run(Tape::Operation const& operation, Tape const* tape) {
        auto stack = operation.in;
        bool takes_tensor = false, takes_meta = false;
        for (auto const& argument : stack)
            each_tensor(argument, [&](at::Tensor const& t) { takes_tensor = true, takes_meta |= t.is_meta(); });
        auto const& arguments = operation.op.schema().arguments();
        for (size_t i = 0; i < arguments.size(); ++i) {
            if (arguments[i].name() != "device") continue;
            bool const redirect = takes_tensor ? takes_meta && stack[i].isDevice() && stack[i].toDevice().is_cpu() : stack[i].isNone() || stack[i].toDevice().is_cpu();
            if (redirect) stack[i] = at::Device(at::kMeta), takes_meta = true;
        }
        try {
            c10::impl::ExcludeDispatchKeyGuard const below(intercept_key);
            operation.op.callBoxed(stack);
            return stack;
        } catch (c10::NotImplementedError const&) {  // what LibTorch throws for an operation that has no kernel for shapes alone
            if (!takes_meta || tape == nullptr) throw;
        }
        return run_on_values(operation, *tape);
    }

    /// The operation on numbers; of what it gives, tensors become shapes again.
    static std::vector<c10::IValue> run_on_values(Tape::Operation const& operation, Tape const& tape) {
        std::vector<at::Tensor> inputs;
        for (auto const& argument : operation.in)
            each_tensor(argument, [&](at::Tensor const& t) {
                if (t.is_meta()) inputs.push_back(t);
            });
        Replay replay(tape);
        replay.run(inputs);
        std::vector<c10::IValue> results;
        {
            at::NoGradGuard const no_grad;
            Replay::Draws draws;
            Interception const intercepted(draws);
            results = replay.call(operation, draws);
        }
        c10::impl::ExcludeDispatchKeyGuard const below(intercept_key);
        auto const& returns = operation.op.schema().returns();
        for (size_t r = 0; r < results.size(); ++r) {
            if (auto const* written = written_argument(operation, returns[r])) {
                written->toTensor().resize_(results[r].toTensor().sizes());
                results[r] = *written;
            } else {
                results[r] = map_tensors(results[r], [](at::Tensor const& t) { return at::empty_strided(t.sizes(), t.strides(), t.options().device(at::kMeta)); });
            }
        }
        return results;
    }

    /// The meta argument that an in-place operation returns.
    static c10::IValue const* written_argument(Tape::Operation const& operation, c10::Argument const& returned) {
        if (returned.alias_info() == nullptr) return nullptr;
        auto const& arguments = operation.op.schema().arguments();
        for (size_t i = 0; i < arguments.size(); ++i)
            if (auto const* alias = arguments[i].alias_info(); alias && *alias == *returned.alias_info() && operation.in[i].isTensor()) return &operation.in[i];
        return nullptr;
    }

    static bool makes_meta(Tape::Operation const& operation, std::vector<c10::IValue> const& results) {
        bool found = false;
        auto const look = [&](at::Tensor const& t) { found |= t.is_meta(); };
        for (auto const& result : results) each_tensor(result, look);
        auto const& arguments = operation.op.schema().arguments();
        for (size_t i = 0; i < arguments.size(); ++i)
            if (auto const* alias = arguments[i].alias_info(); alias && alias->isWrite()) each_tensor(operation.in[i], look);
        return found;
    }

    Recorder recorder_;
    Interception intercepted_;
};

}  // namespace accelerate::module
