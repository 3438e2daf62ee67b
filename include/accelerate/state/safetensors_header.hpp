#pragma once

#include <accelerate/state/dtype.hpp>
#include <accelerate/state/json_reader.hpp>
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace accelerate::state {

/// One tensor of a safetensors file: its bytes are [begin, end) of the data behind the header.
struct TensorInfo {
    std::string name;
    int64_t dtype = 0;           ///< place in `dtypes`
    std::vector<int64_t> shape;  ///< as LibTorch has it: for F4 the last dim is half of the file's
    int64_t begin = 0;
    int64_t end = 0;

    at::ScalarType type() const { return dtypes[static_cast<size_t>(dtype)].type; }
};

/// What the header of a safetensors file says.
struct SafetensorsHeader {
    std::vector<TensorInfo> tensors;              ///< in the order of their data
    std::map<std::string, std::string> metadata;
    bool leading_space = false;                   ///< white space before the first brace: read by all, but not in the format
};

inline constexpr uint64_t safetensors_header_limit = 100'000'000;  ///< bytes, as in the reference implementation
inline constexpr int64_t safetensors_tensor_limit = 1'000'000;
inline constexpr size_t safetensors_rank_limit = 64;
inline constexpr size_t safetensors_name_limit = 4096;             ///< bytes
inline constexpr std::string_view safetensors_metadata_key = "__metadata__";

/// Whether a tensor may be called so: not too long, no control characters.
inline bool valid_tensor_name(std::string_view name) {
    if (name.size() > safetensors_name_limit) return false;
    for (size_t i = 0; i < name.size(); ++i) {
        auto const c = static_cast<unsigned char>(name[i]);
        if (c < 0x20 || c == 0x7F || (c == 0xC2 && i + 1 < name.size() && static_cast<unsigned char>(name[i + 1]) < 0xA0)) return false;
    }
    return true;
}

/// Reads the JSON text of a header, trusting none of it: everything a reader will rely on (names, dtypes, shapes, and that the
/// tensors fill `data_size` bytes exactly, without hole or overlap) has been checked when `run` returns. Time and memory are
/// linear in the text (n log n in the number of tensors). No I/O, so that it can be fuzzed.
class HeaderParser : JsonReader {
public:
    HeaderParser(std::string_view text, int64_t data_size, std::string const& file)
        : JsonReader({text, "safetensors file " + quote_path(file), {code::st_not_utf8, code::st_bad_start, code::st_bad_json, code::st_too_deep}, 8}),
          data_size_(static_cast<uint64_t>(data_size)), needed_(data_size_) {}

    SafetensorsHeader run() {
        entries_ = scan();
        auto const first = next();
        if (first == Token::End) fail(code::st_bad_json, "the header is empty; expected a JSON object");
        if (first != Token::ObjectBegin) fail(code::st_not_object, "the header is not a JSON object");
        header_.leading_space = start() != 0;
        bool metadata = false;
        members("the header", [&](std::string const& key) {
            if (key != safetensors_metadata_key) return tensor(key);
            if (std::exchange(metadata, true)) fail(code::st_dup_key, "a second __metadata__");
            read_metadata();
        });
        end("the header");
        check(entries_ <= safetensors_tensor_limit, code::st_too_many_tensors, source().name, ": ", entries_, " tensors; at most ", safetensors_tensor_limit);
        check_duplicates();
        check_layout();
        return std::move(header_);
    }

private:
    /// Reads an array of numbers without sign, fraction or exponent. `bad` is the code for anything else that is JSON.
    void integers(Code const& bad, std::string_view what, size_t limit, Code const& too_many, std::vector<uint64_t>& out) {
        out.clear();
        if (value() != Token::ArrayBegin) fail(bad, where(), what, " is not an array");
        elements(what, [&](Token token) {
            if (token != Token::Unsigned) fail(bad, where(), what, " holds something other than integers from 0 to 2^64-1");
            if (out.size() == limit) fail(too_many, where(), what, " has more than ", limit, " numbers");
            out.push_back(unsigned_value());
        });
    }

    void read_metadata() {
        if (value() != Token::ObjectBegin) fail(code::st_bad_metadata, "__metadata__ is not an object");
        members("__metadata__", [&](std::string const& key) {
            if (value() != Token::String) fail(code::st_bad_metadata, "the value of ", quote(key), " in __metadata__ is not a string");
            if (!header_.metadata.emplace(key, string_value()).second) fail(code::st_dup_key, quote(key), " appears twice in __metadata__");
        });
    }

    std::string where() const { return concat("tensor ", quote(info_.name), ": "); }

    void tensor(std::string const& name) {
        info_ = {};
        info_.name = name;
        if (!valid_tensor_name(name)) fail(code::st_bad_name, where(), "a name has at most ", safetensors_name_limit, " bytes and no control characters");
        if (value() != Token::ObjectBegin) fail(code::st_not_object, where(), "the entry is not an object");
        bool dtype = false, shape = false, offsets = false;
        auto const once = [&](bool& seen, char const* field) {
            if (std::exchange(seen, true)) fail(code::st_dup_key, where(), "a second ", field);
        };
        members("a tensor's entry", [&](std::string const& key) {
            if (key == "dtype") once(dtype, "dtype"), read_dtype();
            else if (key == "shape") once(shape, "shape"), integers(code::st_bad_shape, "shape", safetensors_rank_limit, code::st_too_many_dims, shape_);
            else if (key == "data_offsets") once(offsets, "data_offsets"), integers(code::st_bad_offsets, "data_offsets", 2, code::st_bad_offsets, offsets_);
            else fail(code::st_unknown_field, where(), "unknown field ", quote(key));
        });
        if (!dtype || !shape || !offsets) fail(code::st_missing_field, where(), "no ", !dtype ? "dtype" : !shape ? "shape" : "data_offsets");
        place(size());
        if (entries_ <= safetensors_tensor_limit) header_.tensors.push_back(std::move(info_));
    }

    void read_dtype() {
        if (value() != Token::String) fail(code::st_bad_dtype, where(), "dtype is not a string");
        info_.dtype = find_dtype(std::string_view(string_value()));
        if (info_.dtype < 0) fail(code::st_bad_dtype, where(), "unknown dtype ", quote(string_value()));
    }

    /// Bytes that dtype and shape ask for; also moves the shape into the tensor. A zero dim must not hide an overflow beside it.
    uint64_t size() {
        constexpr auto most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
        auto const& dtype = dtypes[static_cast<size_t>(info_.dtype)];
        auto const bits = static_cast<uint64_t>(dtype.bits);
        uint64_t product = 1;
        bool empty = false;
        for (auto const dim : shape_) {
            empty = empty || dim == 0;
            if (dim > most || (dim != 0 && product > most / dim)) fail(code::st_overflow, where(), "the shape has more than 2^63-1 elements");
            if (dim != 0) product *= dim;
            info_.shape.push_back(static_cast<int64_t>(dim));
        }
        if (product > (bits < 8 ? most / bits : most / (bits / 8))) fail(code::st_overflow, where(), "the shape needs more than 2^63-1 bytes");
        auto const elements = empty ? 0 : product;
        if (bits < 8 && (elements % 2 != 0 || (!shape_.empty() && shape_.back() % 2 != 0)))
            fail(code::st_misaligned, where(), "an odd number of ", dtype.name, " elements, which are smaller than a byte");
        if (dtype.type == at::ScalarType::Undefined) fail(code::st_unsupported_dtype, where(), "LibTorch has no ", dtype.name);
        if (bits == 4) info_.shape.back() /= 2;
        return bits < 8 ? elements / 2 : elements * (bits / 8);
    }

    /// Checks the offsets of a tensor of `bytes` bytes as far as one tensor can be checked alone.
    void place(uint64_t bytes) {
        constexpr auto most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
        if (offsets_.size() != 2) fail(code::st_bad_offsets, where(), "data_offsets has ", offsets_.size(), " numbers instead of 2");
        auto const begin = offsets_[0], end = offsets_[1];
        if (end < begin) fail(code::st_bad_offsets, where(), "data_offsets end at ", end, ", before they begin at ", begin);
        if (end > most) fail(code::st_bad_offsets, where(), "data_offsets end at ", end, ", behind any file");
        if (end - begin != bytes) {
            if (end > data_size_) fail(code::st_bad_offsets, where(), "data_offsets end at ", end, ", but there are ", data_size_, " bytes of data");
            fail(code::st_size_mismatch, where(), "data_offsets hold ", end - begin, " bytes, but dtype and shape need ", bytes);
        }
        info_.begin = static_cast<int64_t>(begin);
        info_.end = static_cast<int64_t>(end);
        // Tensors that lie within `needed_` bytes and are together larger overlap: no need to read a million entries first.
        needed_ = std::max(needed_, end);
        total_ += bytes;
        if (total_ > needed_) {
            auto const name = info_.name;
            header_.tensors.push_back(std::move(info_));
            check_duplicates();
            fail(code::st_overlap, "tensor ", quote(name), ": the tensors up to here need ", total_, " bytes but lie within ", needed_);
        }
    }

    void check_duplicates() const {
        std::vector<TensorInfo const*> by_name;
        by_name.reserve(header_.tensors.size());
        for (auto const& t : header_.tensors) by_name.push_back(&t);
        std::ranges::sort(by_name, {}, [](TensorInfo const* t) -> std::string const& { return t->name; });
        auto const twin = std::ranges::adjacent_find(by_name, {}, [](TensorInfo const* t) -> std::string const& { return t->name; });
        check(twin == by_name.end(), code::st_dup_key, source().name, ": two tensors are named ", twin == by_name.end() ? "" : quote((*twin)->name));
    }

    void check_layout() {
        auto& tensors = header_.tensors;
        auto const range_of = [](TensorInfo const& t) { return std::pair(t.begin, t.end); };
        if (!std::ranges::is_sorted(tensors, {}, range_of)) std::ranges::stable_sort(tensors, {}, range_of);  // as writers leave them, they are
        auto const bad = [&](Code const& code, TensorInfo const& t, auto const&... parts) {
            throw Error(code, concat(source().name, ", tensor ", quote(t.name), " with data_offsets [", t.begin, ", ", t.end, "]: ", parts...));
        };
        auto const size = static_cast<int64_t>(data_size_);
        int64_t end = 0;
        TensorInfo const* gap = nullptr;
        for (auto const& t : tensors) {
            if (t.begin != end && gap == nullptr) gap = &t;
            if (gap != nullptr && t.end > size) bad(code::st_bad_offsets, t, "there are ", size, " bytes of data");
            if (gap == nullptr) end = t.end;
        }
        if (gap != nullptr && gap->begin < end) bad(code::st_overlap, *gap, "the tensor before it ends at ", end);
        if (gap != nullptr) bad(code::st_hole, *gap, "the tensor before it ends at ", end, ", so there is a hole");
        check(end <= size, code::st_truncated, source().name, ": the tensors need ", end, " bytes of data, but only ", size, " are there; was a copy interrupted?");
        check(end >= size, code::st_trailing, source().name, ": ", size - end, " bytes follow the last tensor");
    }

    uint64_t data_size_, needed_, total_ = 0;
    int64_t entries_ = 0;
    SafetensorsHeader header_;
    TensorInfo info_;
    std::vector<uint64_t> shape_, offsets_;
};

/// The checked header of a safetensors file that has `data_size` bytes behind its header. Errors: the E_ST_* codes, exit 65.
inline SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_size, std::string const& file) {
    return HeaderParser(text, data_size, file).run();
}

}  // namespace accelerate::state
