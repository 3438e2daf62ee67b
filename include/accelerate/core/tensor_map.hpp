#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/error.hpp>
#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace accelerate {

/// Tensors by name, in the order in which they were put in: the content of a safetensors file, and half of a `StateDict`.
/// Reads like a `std::map` (`at`, `[]`, `find`, `contains`, structured bindings); look-up is O(1).
class TensorMap {
public:
    using key_type = std::string;
    using mapped_type = at::Tensor;
    using value_type = std::pair<std::string, at::Tensor>;
    using iterator = std::vector<value_type>::iterator;
    using const_iterator = std::vector<value_type>::const_iterator;

    TensorMap() = default;
    TensorMap(std::initializer_list<value_type> items) { for (auto const& item : items) insert(item.first, item.second); }

    /// From any range of pairs (`std::map<std::string, Tensor>`) or of LibTorch's items (`module->named_parameters()`).
    template <class Range>
        requires(!std::same_as<std::remove_cvref_t<Range>, TensorMap>) && requires(Range const& r) { r.begin(); r.end(); }
    TensorMap(Range const& range) {
        for (auto const& item : range) {
            if constexpr (requires { item.key(); item.value(); }) insert(item.key(), item.value());
            else insert(item.first, item.second);
        }
    }

    iterator begin() { return items_.begin(); }
    iterator end() { return items_.end(); }
    const_iterator begin() const { return items_.begin(); }
    const_iterator end() const { return items_.end(); }
    size_t size() const { return items_.size(); }
    bool empty() const { return items_.empty(); }

    bool contains(std::string const& name) const { return index_.contains(name); }
    size_t count(std::string const& name) const { return index_.count(name); }
    iterator find(std::string const& name) { return items_.begin() + position(name); }
    const_iterator find(std::string const& name) const { return items_.begin() + position(name); }

    /// Error E_DATA when there is no tensor of that name.
    at::Tensor const& at(std::string const& name) const {
        check(contains(name), code::data, "no tensor named \"", name, "\" among ", size());
        return items_[index_.at(name)].second;
    }
    at::Tensor& at(std::string const& name) { return const_cast<at::Tensor&>(std::as_const(*this).at(name)); }

    /// The tensor of that name; appends an undefined one when there is none.
    at::Tensor& operator[](std::string const& name) {
        if (!contains(name)) insert(name, at::Tensor());
        return items_[index_.at(name)].second;
    }

    /// Appends, or replaces in place what is there under that name.
    void insert(std::string name, at::Tensor tensor) {
        if (auto it = index_.find(name); it != index_.end()) {
            items_[it->second].second = std::move(tensor);
            return;
        }
        index_.emplace(name, items_.size());
        items_.emplace_back(std::move(name), std::move(tensor));
    }
    void insert(value_type item) { insert(std::move(item.first), std::move(item.second)); }

private:
    std::ptrdiff_t position(std::string const& name) const {
        auto it = index_.find(name);
        return static_cast<std::ptrdiff_t>(it == index_.end() ? items_.size() : it->second);
    }

    std::vector<value_type> items_;
    std::unordered_map<std::string, size_t> index_;
};

}  // namespace accelerate
