#pragma once

#include <ATen/ops/full.h>

#include <accelerate/comm/nested.hpp>

namespace accelerate::comm {

/// Each tensor of a nested value padded with `pad_index` along `dim` (negative: from behind) to the longest one of all ranks, at
/// its end or, with `pad_first`, at its beginning (Python's `pad_across_processes`). A tensor without that dimension stays as it
/// is. Collective: one small gather a tensor. An undefined tensor is as in `gather`.
template <communicator Comm, class Value>
Value pad_across_processes(Comm const& ranks, Value value, int64_t dim = 0, double pad_index = 0, bool pad_first = false) {
    detail::for_each_sent(value, [&](at::Tensor& t) {
        if (!t.defined()) t = ranks.all_gather(t);  // is refused, on all ranks
        auto const d = dim < 0 ? dim + t.dim() : dim;
        auto const has = d >= 0 && d < t.dim();
        auto const longest = ranks.all_gather(at::full({1}, has ? t.size(d) : 0, at::kLong)).max().template item<int64_t>();
        if (!has || t.size(d) == longest) return;
        auto sizes = t.sizes().vec();
        sizes[static_cast<size_t>(d)] = longest;
        auto padded = at::full(sizes, pad_index, t.options().requires_grad(false));
        padded.narrow(d, pad_first ? longest - t.size(d) : 0, t.size(d)).copy_(t.detach());
        t = padded;
    });
    return value;
}

}  // namespace accelerate::comm
