#pragma once

#include <accelerate/state/folder.hpp>
#include <accelerate/state/json_reader.hpp>
#include <accelerate/state/safetensors_header.hpp>
#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace accelerate::state {

/// What `model.safetensors.index.json` says: in which file beside it each tensor lies.
struct SafetensorsIndex {
    std::vector<std::string> files;           ///< each once
    std::map<std::string, size_t> tensors;    ///< place in `files`
    std::optional<int64_t> total_size;        ///< bytes of all tensors
};

inline constexpr int64_t index_size_limit = 100'000'000;  ///< bytes
inline constexpr size_t index_file_limit = 10'000;
inline constexpr std::string_view index_suffix = ".safetensors.index.json";

/// What a file name is on systems that do not tell upper from lower case, or a letter with an accent from the two characters of which it can
/// be composed: letters with accents are left out.
inline std::string folded(std::string_view name) {
    std::string out;
    for (size_t i = 0; i < name.size();) {
        auto const length = std::max<size_t>(utf8_sequence(name.substr(i)), 1);
        auto const c = static_cast<unsigned char>(name[i]);
        bool const combining = length == 2 && (c == 0xCC || c == 0xCD);
        bool const accented = (length == 2 && c >= 0xC3 && c <= 0xC9) || (length == 3 && c == 0xE1 && static_cast<unsigned char>(name[i + 1]) >= 0xB8);
        if (combining && !out.empty() && out.back() >= 'a' && out.back() <= 'z') out.pop_back();
        if (length == 1) out += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
        else if (!accented && !combining) out += name.substr(i, length);
        i += length;
    }
    return out;
}

/// Whether a file of that name is one that could execute code when it is read.
inline bool named_as_pickle(std::string_view name) {
    for (std::string_view const suffix : {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
        if (name.ends_with(suffix)) return true;
    return false;
}

/// Reads the text of an index, trusting none of it. No I/O, so that it can be fuzzed.
class IndexParser : JsonReader {
public:
    IndexParser(std::string_view text, std::string const& file) : JsonReader({text, "index " + quote_path(file), {code::ix_bad_json, code::ix_bad_json, code::ix_bad_json, code::ix_bad_json}}) {}

    SafetensorsIndex run() {
        scan();
        auto const first = next();
        if (first == Token::End) fail(code::ix_bad_json, "it is empty; expected a JSON object");
        if (first != Token::ObjectBegin) fail(code::ix_schema, "it is not a JSON object");
        bool map = false, metadata = false;
        members("the index", [&](std::string const& key) {
            if (key == "weight_map") once(map, key), weight_map();
            else if (key == "metadata") once(metadata, key), read_metadata();
            else fail(code::ix_schema, "unknown field ", quote(key), "; expected weight_map and metadata");
        });
        end("the index");
        if (!map) fail(code::ix_schema, "no weight_map");
        check_twins();
        return std::move(index_);
    }

private:
    void once(bool& seen, std::string const& key) const {
        if (std::exchange(seen, true)) fail(code::ix_dup_key, "a second ", quote(key));
    }

    void read_metadata() {
        if (value() != Token::ObjectBegin) fail(code::ix_schema, "metadata is not an object");
        bool total = false;
        members("metadata", [&](std::string const& key) {
            auto const token = value();
            if (key != "total_size") return skip(token);
            once(total, key);
            if (token != Token::Unsigned || unsigned_value() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) fail(code::ix_total_size, "total_size is not a number of bytes");
            index_.total_size = static_cast<int64_t>(unsigned_value());
        });
    }

    void weight_map() {
        if (value() != Token::ObjectBegin) fail(code::ix_schema, "weight_map is not an object");
        members("weight_map", [&](std::string const& tensor) {
            if (!valid_tensor_name(tensor)) fail(code::st_bad_name, "tensor ", quote(tensor), ": a name has at most ", safetensors_name_limit, " bytes and no control characters");
            if (value() != Token::String) fail(code::ix_schema, "the file of tensor ", quote(tensor), " is not a string");
            if (index_.tensors.size() == static_cast<size_t>(safetensors_tensor_limit)) fail(code::ix_too_many, "more than ", safetensors_tensor_limit, " tensors");
            if (!index_.tensors.emplace(tensor, place_of(string_value())).second) fail(code::ix_dup_key, "tensor ", quote(tensor), " appears twice in weight_map");
        });
    }

    size_t place_of(std::string const& file) {
        auto const [known, fresh] = places_.try_emplace(file, index_.files.size());
        if (!fresh) return known->second;
        if (!plain_name(file)) fail(code::ix_path, "the file ", quote(file), " is not a plain name of a file beside the index");
        if (named_as_pickle(file)) fail(code::pickle_refused, "the file ", quote(file), " is a pickle by its name; those can execute code and are never read. Convert it with Python's safetensors.torch.save_file");
        if (index_.files.size() == index_file_limit) fail(code::ix_too_many, "more than ", index_file_limit, " files");
        index_.files.push_back(file);
        return known->second;
    }

    void check_twins() const {
        std::unordered_map<std::string, std::string const*> seen;
        for (auto const& file : index_.files) {
            auto const [twin, fresh] = seen.try_emplace(folded(file), &file);
            check(fresh, code::ix_conflict, source().name, ": the files ", quote(*twin->second), " and ", quote(file), " are one on some file systems");
        }
    }

    SafetensorsIndex index_;
    std::unordered_map<std::string, size_t> places_;
};

/// The checked content of an index. Errors: the E_IX_* codes, E_PICKLE_REFUSED, E_ST_BAD_NAME; exit 65.
inline SafetensorsIndex parse_safetensors_index(std::string_view text, std::string const& file) { return IndexParser(text, file).run(); }

}  // namespace accelerate::state
