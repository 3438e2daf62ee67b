#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/TensorImpl.h>

#include <accelerate/core/error.hpp>
#include <accelerate/module/boxed.hpp>
#include <cstdint>
#include <unordered_set>
#include <vector>

namespace accelerate {

namespace code {
/// A constructor used the memory of a tensor that has none yet, because the model is being recorded.
inline constexpr Code construct{"E_CONSTRUCT", 78};
}  // namespace code

namespace module {

/// What constructors did: the operations, recorded while tensors existed as shapes only (meta device). Enough to compute any of
/// the tensors later, alone.
struct Tape {
    struct Operation {
        c10::OperatorHandle op;
        std::vector<c10::IValue> in;      ///< as called; meta tensors by an alias of ours
        std::vector<c10::IValue> out{};   ///< aliases
        int64_t draw = -1;                ///< its number among the random operations; -1: not random
    };
    struct Borrowed {
        at::Tensor tensor;  ///< a real tensor that an operation read
        int64_t version;    ///< as it was then
    };

    explicit Tape(int64_t s) : seed(s) {}

    /// Another tensor over the same storage. The tape keeps no hold of the tensors themselves: LibTorch copies a tensor that has
    /// a second owner in places where it would otherwise hand it on, and what nobody holds need not be computed.
    static at::Tensor alias(at::Tensor const& t) { return at::Tensor(t.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), true)); }

    void add(Operation operation, std::vector<c10::IValue> const& results) {
        for (auto& value : operation.in)
            value = map_tensors(value, [&](at::Tensor const& t) {
                if (t.is_meta()) return alias(t);
                borrowed.push_back({t, version_of(t)});
                return t;
            });
        for (auto const& result : results) {
            each_tensor(result, [&](at::Tensor const& t) { made.emplace_back(t.getIntrusivePtr()); });
            operation.out.push_back(map_tensors(result, alias));
        }
        operations.push_back(std::move(operation));
    }

    /// The recorded tensors that somebody still holds and that are shapes only, each once.
    std::vector<at::Tensor> held() const {
        std::vector<at::Tensor> found;
        std::unordered_set<c10::TensorImpl*> seen;
        for (auto const& weak : made)
            if (auto impl = weak.lock(); impl && impl->is_meta() && seen.insert(impl.get()).second) found.emplace_back(std::move(impl));
        return found;
    }

    static int64_t version_of(at::Tensor const& t) { return t.is_inference() ? 0 : static_cast<int64_t>(t._version()); }

    int64_t seed;
    int64_t draws = 0;
    std::vector<Operation> operations;
    std::vector<Borrowed> borrowed;
    std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> made;
};

}  // namespace module
}  // namespace accelerate
