#pragma once

#include <ATen/core/Tensor.h>

#include <accelerate/core/tensor_map.hpp>
#include <accelerate/state/memory_span.hpp>
#include <accelerate/state/output_file.hpp>
#include <accelerate/state/safetensors_header.hpp>
#include <algorithm>
#include <c10/core/GradMode.h>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace accelerate {
namespace state {

/// A JSON string as the reference implementation writes it: everything but controls, quote and backslash stays as it is.
inline std::string json_string(std::string_view text) {
    constexpr char const* digits = "0123456789abcdef";
    std::string out = "\"";
    for (char const c : text) {
        switch (c) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if (static_cast<unsigned char>(c) >= 0x20) out += c;
                else out += {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15]};
        }
    }
    return out += '"';
}

/// One tensor to be written.
struct Outgoing {
    std::string const* name = nullptr;
    at::Tensor const* tensor = nullptr;
    int64_t dtype = 0;
    int64_t bytes = 0;
};

/// Place in `dtypes` of a tensor that a file can hold under this name; error E_ST_* of `where()` for others.
template <class Where>
int64_t dtype_to_save(std::string const& name, at::Tensor const& t, Where const& where) {
    auto const refuse = [&](Code const& code, auto const&... why) { throw Error(code, concat(where(), ": tensor ", quote(name), ": ", why...)); };
    if (name == safetensors_metadata_key) refuse(code::st_reserved_name, "this name is reserved for the file's metadata");
    if (utf8_end(name) != name.size()) refuse(code::st_not_utf8, "the name is not UTF-8");
    if (!valid_tensor_name(name)) refuse(code::st_bad_name, "a name has at most ", safetensors_name_limit, " bytes and no control characters");
    if (!t.defined()) refuse(code::st_bad_tensor, "it is undefined");
    if (t.layout() != at::kStrided || t.is_quantized()) refuse(code::st_bad_tensor, "it is ", t.is_quantized() ? "quantised" : "sparse", "; make it dense first");
    if (t.is_meta()) refuse(code::st_bad_tensor, "it is on the meta device and has no values");
    auto const dtype = find_dtype(t.scalar_type());
    if (dtype < 0) refuse(code::st_unsupported_dtype, "the format has no ", t.scalar_type());
    if (dtypes[static_cast<size_t>(dtype)].bits < 8 && t.dim() == 0) refuse(code::st_misaligned, "two packed elements need a dim");
    return dtype;
}

/// Checks what can be checked without writing, and puts the tensors in the order of the file: largest dtype first, then by name.
inline std::vector<Outgoing> outgoing_order(TensorMap const& tensors, std::filesystem::path const& path) {
    std::vector<Outgoing> order;
    order.reserve(tensors.size());
    for (auto const& item : tensors) {
        auto const dtype = dtype_to_save(item.first, item.second, [&] { return concat("save_file(", path, ")"); });
        order.push_back({&item.first, &item.second, dtype, item.second.numel() * static_cast<int64_t>(item.second.element_size())});
    }
    std::ranges::sort(order, [](Outgoing const& a, Outgoing const& b) { return a.dtype != b.dtype ? a.dtype > b.dtype : *a.name < *b.name; });
    return order;
}

/// Error E_ST_SHARED_MEMORY when two tensors overlap in memory: the file would hold their values twice, and loading would not
/// bring the tie back.
inline void refuse_shared_memory(std::vector<Outgoing> const& tensors, std::filesystem::path const& path) {
    std::vector<std::pair<MemorySpan, std::string const*>> spans;
    for (auto const& t : tensors)
        if (MemorySpan const span(*t.tensor); !span.empty()) spans.emplace_back(span, t.name);
    std::ranges::sort(spans, {}, [](auto const& s) { return std::tuple(s.first.storage, s.first.begin, s.first.end); });
    auto const pair = std::ranges::adjacent_find(spans, [](auto const& a, auto const& b) { return a.first.overlaps(b.first); });
    if (pair == spans.end()) return;
    throw Error(code::st_shared_memory, concat("save_file(", path, "): tensors ", quote(*pair->second), " and ", quote(*std::next(pair)->second),
                                               " share memory; drop one (acc::drop_aliases does it, acc::save_model for a whole model), or clone() it to have it twice"));
}

/// The bytes in front of the data: length, JSON, and spaces up to a multiple of eight.
inline std::string safetensors_head(std::vector<Outgoing> const& tensors, std::map<std::string, std::string> const& metadata) {
    std::string json = "{";
    auto const key = [&](std::string_view name) { json += json.size() == 1 ? "" : ",", json += json_string(name), json += ':'; };
    if (!metadata.empty()) {
        key(safetensors_metadata_key);
        char separator = '{';
        for (auto const& [name, value] : metadata) json += separator, json += json_string(name), json += ':', json += json_string(value), separator = ',';
        json += '}';
    }
    int64_t begin = 0;
    for (auto const& t : tensors) {
        auto const& dtype = dtypes[static_cast<size_t>(t.dtype)];
        key(*t.name);
        json += concat("{\"dtype\":\"", dtype.name, "\",\"shape\":[");
        for (int64_t d = 0; d < t.tensor->dim(); ++d) {
            bool const packed = dtype.bits == 4 && d == t.tensor->dim() - 1;  // LibTorch's element is two of the format's
            json += concat(d == 0 ? "" : ",", t.tensor->size(d) * (packed ? 2 : 1));
        }
        json += concat("],\"data_offsets\":[", begin, ",", begin + t.bytes, "]}");
        begin += t.bytes;
    }
    json += '}';
    json.append((8 - json.size() % 8) % 8, ' ');
    uint64_t const length = json.size();
    std::string head(8, '\0');
    std::memcpy(head.data(), &length, 8);
    return head + json;
}

/// A safetensors file to be written: checked, its space taken, not there under its name before `publish`. The tensors outlive it.
class SafetensorsWriter {
public:
    /// Of tensors in the order of the file. Errors of `save_file`.
    SafetensorsWriter(std::vector<Outgoing> order, std::filesystem::path const& path, std::map<std::string, std::string> const& metadata)
        : order_(std::move(order)), head_(head(path, metadata)), bytes_(static_cast<int64_t>(head_.size()) + data_bytes()), file_(path, bytes_) {
        file_.write(head_);
    }
    SafetensorsWriter(TensorMap const& tensors, std::filesystem::path const& path, std::map<std::string, std::string> const& metadata) : SafetensorsWriter(outgoing_order(tensors, path), path, metadata) {}

    int64_t bytes() const { return bytes_; }

    /// Writes all of it; durable when this returns. `seen(data, bytes)` is shown every piece in its order.
    template <class Seen>
    void write(Seen const& seen) {
        seen(head_.data(), static_cast<int64_t>(head_.size()));
        while (next_ < order_.size()) write_next(seen);
        finish();
    }
    void write() { write(unseen); }

    /// The same step by step: the next tensor of the order, whose values nobody looks at before; and, behind the last one, `finish`.
    void write_next() { write_next(unseen); }
    void finish() { file_.finish(); }
    void publish() { file_.publish(); }

private:
    static constexpr auto unseen = [](void const*, int64_t) {};

    template <class Seen>
    void write_next(Seen const& seen) {
        c10::NoGradGuard const no_grad;
        auto const& t = order_[next_++];
        auto const plain = t.tensor->cpu().resolve_conj().resolve_neg().contiguous();
        auto const* const data = static_cast<char const*>(plain.const_data_ptr());
        constexpr int64_t piece = 1 << 20;  // is in the cache when it is looked at again
        for (int64_t at = 0; at < t.bytes; at += piece) {
            auto const n = std::min(piece, t.bytes - at);
            file_.write(data + at, n);
            seen(data + at, n);
        }
    }

    std::string head(std::filesystem::path const& path, std::map<std::string, std::string> const& metadata) const {
        refuse_shared_memory(order_, path);
        for (auto const& item : metadata)
            check(utf8_end(item.first) == item.first.size() && utf8_end(item.second) == item.second.size(), code::st_not_utf8, "save_file(", path, "): metadata ", quote(item.first), ": key or value is not UTF-8");
        auto text = safetensors_head(order_, metadata);
        check(text.size() - 8 <= safetensors_header_limit, code::st_header_too_large, "save_file(", path, "): names and metadata need a header of ", text.size() - 8, " bytes; at most ", safetensors_header_limit,
              " can be read back");
        check(order_.size() <= static_cast<size_t>(safetensors_tensor_limit), code::st_too_many_tensors, "save_file(", path, "): ", order_.size(), " tensors");
        return text;
    }
    int64_t data_bytes() const {
        int64_t sum = 0;
        for (auto const& t : order_) sum += t.bytes;
        return sum;
    }

    std::vector<Outgoing> order_;
    std::string head_;
    int64_t bytes_;
    size_t next_ = 0;  ///< of the order
    OutputFile file_;
};

}  // namespace state

/// Writes a safetensors file, byte for byte what Python's `safetensors.torch.save_file` writes (metadata sorted by key): tensors
/// stand in the file by dtype (largest first), then name, and that is the order in which `load_file` gives them back. Tensors on
/// other devices or with strides are copied one at a time; others are written from where they are. The file appears whole or not
/// at all, and is durable when this returns (see `state::OutputFile`). Missing parent folders are made.
/// Errors: E_ST_* for what the format cannot hold, E_ST_SHARED_MEMORY for tensors that overlap, E_NO_SPACE, E_IO, E_NOT_REGULAR.
inline void save_file(TensorMap const& tensors, std::filesystem::path const& path, std::map<std::string, std::string> const& metadata = {}) {
    state::SafetensorsWriter file(tensors, path, metadata);
    file.write();
    file.publish();
}

}  // namespace accelerate
