#pragma once

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/state/codes.hpp>
#include <accelerate/state/load_report.hpp>
#include <accelerate/state/memory_span.hpp>
#include <accelerate/state/quote.hpp>
#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace accelerate::state {

/// Integers do not become floats, nor bools anything else, without being asked; widths may differ.
inline bool same_kind(at::ScalarType a, at::ScalarType b) {
    auto const kind = [](at::ScalarType t) { return t == at::kBool ? 0 : at::isComplexType(t) ? 1 : at::isFloatingType(t) ? 2 : 3; };
    return a == b || kind(a) == kind(b);
}

/// One tensor of the model and the key its values come from.
struct Assignment {
    std::string key;
    at::Tensor tensor;
};

/// Pairs the model's tensors with the source's. Nothing is written. Fills `report`.
template <class Source>
std::vector<Assignment> plan_load(TensorMap const& model, Source const& source, LoadReport& report) {
    std::vector<Assignment> plan;
    std::vector<MemorySpan> loaded;
    auto const assign = [&](std::string const& name, std::string const& key, at::Tensor const& t) {
        if (t.sizes() == source.shape(key) && same_kind(t.scalar_type(), source.type(key))) {
            plan.push_back({key, t});
            loaded.emplace_back(t);
        } else {
            report.mismatched.push_back(concat(quote(name), " (there ", source.type(key), " ", source.shape(key), ", in the model ", t.scalar_type(), " ", t.sizes(), ")"));
        }
    };
    for (auto const& item : model)
        if (source.contains(item.first)) assign(item.first, item.first, item.second);
    for (auto const& item : model) {
        if (source.contains(item.first)) continue;
        MemorySpan const span(item.second);
        bool const tied = span.empty() ? false : std::ranges::any_of(loaded, [&](MemorySpan const& l) { return l.covers(span); });
        if (tied) continue;
        if (auto const key = source.alias(item.first); !key.empty()) assign(item.first, key, item.second);
        else report.missing.push_back(quote(item.first));
    }
    source.each([&](std::string const& key) {
        if (!model.contains(key)) report.unexpected.push_back(quote(key));
    });
    return plan;
}

/// Names that are one tensor in the model must not have two values in the source: whichever came last would win unseen.
template <class Source>
void check_ties(TensorMap const& model, Source const& source, LoadReport& report) {
    std::vector<std::pair<MemorySpan, std::string const*>> spans;
    for (auto const& item : model)
        if (source.contains(item.first))
            if (MemorySpan const span(item.second); !span.empty()) spans.emplace_back(span, &item.first);
    std::ranges::sort(spans, {}, [](auto const& s) { return std::tuple(s.first.storage, s.first.begin, s.first.end, *s.second); });
    for (size_t i = 1; i < spans.size(); ++i) {
        auto const& a = *spans[i - 1].second;
        auto const& b = *spans[i].second;
        bool const one = spans[i - 1].first.covers(spans[i].first) && spans[i].first.covers(spans[i - 1].first);
        if (!one || source.shape(a) != source.shape(b) || source.type(a) != source.type(b)) continue;
        auto const left = source.read(a).contiguous().cpu(), right = source.read(b).contiguous().cpu();
        if (left.nbytes() > 0 && std::memcmp(left.const_data_ptr(), right.const_data_ptr(), static_cast<size_t>(left.nbytes())) != 0)
            report.mismatched.push_back(concat(quote(a), " and ", quote(b), " (tied in the model, but with different values there)"));
    }
}

/// Pairs the model's tensors with the source's, after everything has been compared. Nothing is written. Error E_CK_KEYS with all that differs:
/// shapes, kinds and ties always, names where `strict`.
template <class Source>
std::vector<Assignment> agreed_load(TensorMap const& model, Source const& source, bool strict, LoadReport& report) {
    auto plan = plan_load(model, source, report);
    check_ties(model, source, report);
    if (!report.mismatched.empty() || (strict && !report.complete()))
        throw Error(code::ck_keys, concat("load_model: ", source.name(), " does not fit the model; nothing was loaded.", report.describe(), report.mismatched.empty() ? "\n  (strict = false loads the rest)" : ""));
    return plan;
}

}  // namespace accelerate::state
