#pragma once

#include <accelerate/comm/communicator.hpp>
#include <accelerate/core/for_each_tensor.hpp>
#include <accelerate/data/loops.hpp>
#include <accelerate/data/pack.hpp>

namespace accelerate::data {

/// Gathers what the ranks computed of a batch, without the samples that only filled it up: every sample of an epoch comes back once,
/// whatever the rule for its last round and also where this is called for some batches only. `loops` knows the batch at hand; outside a
/// loop everything is gathered. Collective.
///
///   tensor with one row a sample    rows of all ranks, rank by rank
///   other tensor                    gathered whole
///   vector with one element a sample (numbers, strings, tensors of different shapes)    the elements of all ranks
///   tuple, map, struct, optional, other vector    the same of their parts
///
/// Anything else stays this rank's own; an undefined tensor is absent where it is part of something, E_CONFIG on all ranks where it is all. Tensors must
/// agree in all dimensions but the first (`pad_across_processes` first where they do not).
template <comm::communicator Comm>
class GatherForMetrics {
public:
    GatherForMetrics(Comm const& ranks, Loops const& loops) : ranks_(ranks), length_(loops.active() ? loops.length() : -1), valid_(loops.valid()) {}

    template <class T>
    T operator()(T value) const {
        if constexpr (std::same_as<T, at::Tensor>)
            if (!value.defined()) return ranks_.all_gather(value);  // is refused, on all ranks
        gather(value);
        return value;
    }

private:
    bool row_a_sample(at::Tensor const& t) const { return t.defined() && t.dim() > 0 && t.size(0) == length_; }

    template <class T>
    void gather(T& value) const {
        if constexpr (std::same_as<T, at::Tensor>) {
            if (value.defined()) value = ranks_.all_gather((row_a_sample(value) ? value.narrow(0, 0, valid_) : value).detach());
        } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T> || std::convertible_to<T&, std::string_view>) {
        } else if constexpr (accelerate::detail::walk::is_optional<T>) {
            if (value) gather(*value);
        } else if constexpr (tuple_like<T>) each(value);
        else if constexpr (map_like<T>) {
            for (auto&& [key, mapped] : value) gather(mapped);
        } else if constexpr (growing_range<T>) gather_list(value);
        else if constexpr (decomposable<T>) {
            auto members = fields(value);
            each(members);
        }
    }
    template <class Tuple>
    void each(Tuple& parts) const {
        std::apply([&](auto&... part) { (gather(part), ...); }, parts);
    }

    template <class T>
    void gather_list(T& values) const {
        bool batches = false;  // a list of tensors that each have a row a sample, not a list of samples
        if constexpr (std::same_as<typename T::value_type, at::Tensor>)
            for (auto const& t : values) batches = batches || row_a_sample(t);
        if (batches || static_cast<int64_t>(values.size()) != length_) {
            if constexpr (!std::is_arithmetic_v<typename T::value_type>)
                for (auto& v : values) gather(v);
            return;
        }
        values.resize(static_cast<size_t>(valid_));
        Packer pack;
        pack(values);
        auto message = pack.packed.bytes;
        for (auto const& t : pack.packed.tensors)
            if (t.numel() > 0) message.append(static_cast<char const*>(t.const_data_ptr()), t.nbytes());
        T all;
        for (auto const& said : ranks_.all_gather_bytes(message)) {
            Unpacker unpack(said);
            auto theirs = unpack.template get<T>();
            auto from = said.size();
            for (auto const& t : unpack.tensors) from -= t.nbytes();
            for (auto const& t : unpack.tensors) {
                if (t.numel() > 0) std::memcpy(t.mutable_data_ptr(), said.data() + from, t.nbytes());
                from += t.nbytes();
            }
            all.insert(all.end(), std::move_iterator(theirs.begin()), std::move_iterator(theirs.end()));
        }
        values = std::move(all);
    }

    Comm const& ranks_;
    int64_t length_, valid_;
};

}  // namespace accelerate::data
