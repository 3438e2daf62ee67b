#pragma once

#include <ATen/ops/empty.h>

#include <accelerate/core/aggregate.hpp>
#include <accelerate/core/error.hpp>
#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/core/tensor_map.hpp>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

namespace accelerate::data {

/// A nested value as bytes and tensors, to be sent to another rank: `Packer` takes values apart, `Unpacker` puts them together. Knows
/// tensors, numbers, strings, optional, pair, tuple, array, vector, maps and plain structs of them.
struct Packed {
    std::string bytes;                ///< everything that is no tensor's content
    std::vector<at::Tensor> tensors;  ///< contiguous, in main memory

    int64_t size() const {
        auto sum = bytes.size();
        for (auto const& t : tensors) sum += t.nbytes();
        return static_cast<int64_t>(sum);
    }
};

template <class T>
concept map_like = requires { typename T::mapped_type; } || std::same_as<T, TensorMap>;
template <class T>
concept tuple_like = requires { std::tuple_size<T>::value; };
template <class T>
concept growing_range = requires(T& t) { t.resize(size_t{}); t.size(); t[0]; };

class Packer {
public:
    template <class T>
    Packer& operator()(T const& value) {
        if constexpr (std::same_as<T, at::Tensor>) tensor(value);
        else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) packed.bytes.append(reinterpret_cast<char const*>(&value), sizeof value);
        else if constexpr (accelerate::detail::walk::is_optional<T>) {
            (*this)(value.has_value());
            if (value) (*this)(*value);
        } else if constexpr (std::same_as<T, std::string>) {
            (*this)(value.size());
            packed.bytes += value;
        } else if constexpr (tuple_like<T>) std::apply([&](auto const&... part) { ((*this)(part), ...); }, value);
        else if constexpr (map_like<T>) {
            (*this)(value.size());
            for (auto const& [key, mapped] : value) (*this)(key)(mapped);
        } else if constexpr (growing_range<T>) {
            (*this)(value.size());
            for (size_t i = 0; i < value.size(); ++i) (*this)(static_cast<typename T::value_type>(value[i]));
        } else std::apply([&](auto const&... part) { ((*this)(part), ...); }, fields(value));
        return *this;
    }

    Packed packed;

private:
    void tensor(at::Tensor const& t) {
        (*this)(t.defined());
        if (!t.defined()) return;
        (*this)(t.scalar_type())(t.sizes().vec());
        packed.tensors.push_back(t.detach().to(at::kCPU).contiguous());
    }
};

/// Reads what a Packer wrote. A tensor comes out empty, of its dtype and shape, and is listed in `tensors`: its content is received there.
class Unpacker {
public:
    explicit Unpacker(std::string_view bytes) : size_(bytes.size()), left_(bytes) {}

    /// Bytes of the whole value as it was packed, with those of the tensors that have been unpacked.
    int64_t bytes() const {
        auto sum = size_;
        for (auto const& t : tensors) sum += t.nbytes();
        return static_cast<int64_t>(sum);
    }

    template <class T>
    Unpacker& operator()(T& value) {
        if constexpr (std::same_as<T, at::Tensor>) tensor(value);
        else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) std::memcpy(&value, take(sizeof value).data(), sizeof value);
        else if constexpr (accelerate::detail::walk::is_optional<T>) {
            if (get<bool>()) (*this)(value.emplace());
            else value.reset();
        } else if constexpr (std::same_as<T, std::string>) value = take(get<size_t>());
        else if constexpr (tuple_like<T>) std::apply([&](auto&... part) { ((*this)(part), ...); }, value);
        else if constexpr (map_like<T>) {
            for (auto n = get<size_t>(); n > 0; --n) {
                auto key = get<std::remove_cvref_t<decltype(value.begin()->first)>>();
                (*this)(value[key]);
            }
        } else if constexpr (growing_range<T>) {
            value.resize(get<size_t>());
            for (size_t i = 0; i < value.size(); ++i) value[i] = get<typename T::value_type>();
        } else std::apply([&](auto&... part) { ((*this)(part), ...); }, fields(value));
        return *this;
    }
    template <class T>
    T get() {
        T value{};
        (*this)(value);
        return value;
    }

    std::vector<at::Tensor> tensors;

private:
    std::string_view take(size_t n) {
        check(n <= left_.size(), code::internal, "data: a message of another rank is too short");
        auto const part = left_.substr(0, n);
        left_.remove_prefix(n);
        return part;
    }
    void tensor(at::Tensor& t) {
        t = at::Tensor();
        if (!get<bool>()) return;
        auto const dtype = get<at::ScalarType>();
        auto const sizes = get<std::vector<int64_t>>();
        t = at::empty(sizes, at::TensorOptions(dtype));
        tensors.push_back(t);
    }

    size_t size_;
    std::string_view left_;
};

}  // namespace accelerate::data
