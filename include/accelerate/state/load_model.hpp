#pragma once

#include <accelerate/state/load_file.hpp>
#include <accelerate/state/memory_span.hpp>
#include <accelerate/state/model_tensors.hpp>
#include <algorithm>
#include <c10/core/GradMode.h>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

namespace accelerate {

/// What `load_model` found different.
struct LoadReport {
    std::vector<std::string> missing;     ///< in the model, not in the file (and not covered by a tie)
    std::vector<std::string> unexpected;  ///< in the file, not in the model
    std::vector<std::string> mismatched;  ///< in both, but not of one shape and kind; each with both

    bool complete() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }

    /// All of it in words, the first 20 names of each list.
    std::string describe() const {
        std::string text;
        auto const list = [&](char const* what, std::vector<std::string> const& names) {
            if (names.empty()) return;
            text += concat("\n  ", names.size(), " ", what, ": ");
            for (size_t i = 0; i < std::min<size_t>(names.size(), 20); ++i) text += concat(i == 0 ? "" : ", ", names[i]);
            if (names.size() > 20) text += ", ...";
        };
        list("missing", missing);
        list("unexpected", unexpected);
        list("mismatched", mismatched);
        return text;
    }
};

namespace state {

/// Where loaded values come from: a file read tensor by tensor, or tensors in memory.
class MapSource {
public:
    explicit MapSource(TensorMap const& map) : map_(map) {}
    std::string name() const { return "the given tensors"; }
    bool contains(std::string const& key) const { return map_.contains(key); }
    at::Tensor read(std::string const& key) const { return map_.at(key); }
    at::ScalarType type(std::string const& key) const { return map_.at(key).scalar_type(); }
    at::IntArrayRef shape(std::string const& key) const { return map_.at(key).sizes(); }
    std::string alias(std::string const&) const { return {}; }
    template <class F>
    void each(F f) const {
        for (auto const& item : map_) f(item.first);
    }

private:
    TensorMap const& map_;
};

class FileSource {
public:
    explicit FileSource(std::filesystem::path const& path) : reader_(path) {}
    std::string name() const { return quote(reader_.path().string()); }
    bool contains(std::string const& key) const { return reader_.find(key) != nullptr; }
    at::Tensor read(std::string const& key) const { return reader_.read(key); }
    at::ScalarType type(std::string const& key) const { return reader_.find(key)->type(); }
    at::IntArrayRef shape(std::string const& key) const { return reader_.find(key)->shape; }
    /// The name under which the file holds what had this name too when it was written.
    std::string alias(std::string const& key) const {
        auto const it = reader_.metadata().find(key);
        return it != reader_.metadata().end() && contains(it->second) ? it->second : std::string();
    }
    template <class F>
    void each(F f) const {
        for (auto const& info : reader_.tensors()) f(info.name);
    }

private:
    SafetensorsReader reader_;
};

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

template <class Source>
LoadReport load_model_from(TensorMap const& model, Source const& source, bool strict) {
    LoadReport report;
    for (auto const& item : model) {
        check(item.second.is_meta() || item.second.numel() == 0 || item.second.storage().nbytes() > 0, code::config, "load_model: ", quote(item.first),
              " is spread over the ranks; load before `prepare` into a model that is built by hand");
        check(!item.second.is_meta(), code::config, "load_model: ", quote(item.first), " is on the meta device and has no memory to load into; materialise the model first");
    }
    auto const plan = plan_load(model, source, report);
    check_ties(model, source, report);
    check(report.mismatched.empty() && (!strict || report.complete()), code::ck_keys, "load_model: ", source.name(), " does not fit the model; nothing was loaded.", report.describe(),
          strict && report.mismatched.empty() ? "\n  (strict = false loads the rest)" : "");
    c10::NoGradGuard no_grad;
    for (auto const& item : plan) item.tensor.copy_(source.read(item.key));
    return report;
}

}  // namespace state

/// Loads tensors into a model's own parameters and buffers (in place, so optimizers and ties stay as they are), converting
/// between widths of one kind of dtype. `strict`: missing and unexpected names are errors too. Either way all differences are
/// found before anything is written: error E_CK_KEYS lists them, and mismatching shapes are never loaded around.
template <class Model>
LoadReport load_into(Model const& model, TensorMap const& tensors, bool strict = true) {
    return state::load_model_from(model_tensors(model), state::MapSource(tensors), strict);
}

/// As `load_into`, from a safetensors file, or from the `model.safetensors` in a folder. Names that the file's metadata calls
/// aliases are restored from the tensor they stand for. Memory: one tensor at a time beside the model.
template <class Model>
LoadReport load_model(Model const& model, std::filesystem::path const& path, bool strict = true) {
    std::error_code ignored;
    auto const file = std::filesystem::is_directory(path, ignored) ? path / "model.safetensors" : path;
    return state::load_model_from(model_tensors(model), state::FileSource(file), strict);
}

}  // namespace accelerate
