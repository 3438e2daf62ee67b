#pragma once

#include <c10/util/ArrayRef.h>

#include <accelerate/state/codes.hpp>
#include <accelerate/state/dtype.hpp>
#include <accelerate/state/file_hash.hpp>
#include <accelerate/state/json_reader.hpp>
#include <accelerate/state/json_values.hpp>
#include <algorithm>
#include <cctype>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

namespace accelerate::state {

/// A file of a checkpoint.
struct ManifestFile {
    std::string name;
    int64_t size = 0;
    std::string hash;
};

/// Elements [from, to) of a tensor, in memory order, as one file has them.
struct ManifestPart {
    int64_t file = 0, from = 0, to = 0;
};

/// A tensor of a checkpoint: whole in one file, or in parts that join without gaps.
struct ManifestTensor {
    at::ScalarType dtype = at::kFloat;
    std::vector<int64_t> shape, strides;  ///< strides: in which order elements of parts are counted
    bool whole = true;
    std::vector<ManifestPart> parts;

    int64_t numel() const {
        int64_t n = 1;
        for (auto d : shape) n *= d;
        return n;
    }
};

/// What a checkpoint consists of: its files with sizes and hashes, where each tensor lies, and everything that is no tensor.
struct Manifest {
    static constexpr int64_t version = 1;
    static constexpr char const* file_name = "manifest.json";
    static constexpr int64_t largest = int64_t{256} << 20;  ///< bytes of the file
    static constexpr int64_t most_ranks = 1 << 20;

    int64_t world = 1;
    std::vector<ManifestFile> files;  ///< one for each rank
    std::map<std::string, ManifestTensor> tensors;
    nlohmann::json values = nlohmann::json::object();   ///< of each component, as rank 0 has them
    nlohmann::json ranks = nlohmann::json::array();     ///< of each rank, what only it has
    nlohmann::json about = nlohmann::json::object();    ///< versions, policies, time: to be read by people

    std::string text() const {
        nlohmann::json j{{"format", "accelerate.hpp checkpoint"}, {"version", version}, {"world", world}, {"about", about}, {"values", values}, {"ranks", ranks}};
        j["files"] = nlohmann::json::array();
        for (auto const& f : files) j["files"].push_back({{"name", f.name}, {"size", f.size}, {"hash", f.hash}});
        j["tensors"] = nlohmann::json::object();
        for (auto const& [name, t] : tensors) {
            auto& entry = j["tensors"][name] = {{"dtype", dtypes[static_cast<size_t>(find_dtype(t.dtype))].name}, {"shape", t.shape}, {"whole", t.whole}, {"parts", nlohmann::json::array()}};
            if (!t.whole) entry["strides"] = t.strides;
            for (auto const& p : t.parts) entry["parts"].push_back({p.file, p.from, p.to});
        }
        return j.dump(1) + "\n";
    }

    /// Errors: E_CK_BAD_MANIFEST, E_CK_VERSION, E_CK_MESH, E_CK_SLICES, naming `where` and the entry.
    static Manifest parse(std::string const& text, std::string const& where);
};

namespace detail {

/// Looks at a manifest's text before anything is built from it: UTF-8, JSON, not nested deeply, no name twice in one object.
class ManifestText : JsonReader {
public:
    ManifestText(std::string_view text, std::string const& where) : JsonReader({text, where, {code::ck_bad_manifest, code::ck_bad_manifest, code::ck_bad_manifest, code::ck_bad_manifest}}) {}

    void check_strict() {
        scan();
        look(value());
        end("the manifest");
    }

private:
    void look(Token first) {
        if (first == Token::ArrayBegin) elements("a list", [&](Token token) { look(token); });
        if (first != Token::ObjectBegin) return;
        std::unordered_set<std::string> names;
        members("an object", [&](std::string const& name) {
            if (!names.insert(name).second) fail(code::ck_bad_manifest, quote(name), " appears twice in one object");
            look(value());
        });
    }
};

/// Reads entries of a JSON object; what is missing or of another type is E_CK_BAD_MANIFEST.
class Entries {
public:
    Entries(nlohmann::json const& object, std::string where) : object_(object), where_(std::move(where)) { require(object.is_object(), "is no object"); }

    nlohmann::json const& at(char const* key) const {
        auto const found = object_.find(key);
        if (found == object_.end()) fail(concat("has no \"", key, "\""));
        return *found;
    }
    std::string string(char const* key) const {
        require(at(key).is_string(), concat("\"", key, "\" is no string"));
        return at(key).get<std::string>();
    }
    /// A whole number from `least` to `most`.
    int64_t number(char const* key, int64_t least = 0, int64_t most = std::numeric_limits<int64_t>::max()) const { return number(at(key), key, least, most); }
    int64_t number(nlohmann::json const& j, char const* key, int64_t least = 0, int64_t most = std::numeric_limits<int64_t>::max()) const {
        require(j.is_number_integer() && !(j.is_number_unsigned() && j.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())), concat("\"", key, "\" is no whole number"));
        auto const n = j.get<int64_t>();
        require(n >= least && n <= most, concat("\"", key, "\" is ", n));
        return n;
    }
    std::vector<int64_t> numbers(char const* key) const {
        require(at(key).is_array() && at(key).size() <= 64, concat("\"", key, "\" is no short list"));
        std::vector<int64_t> all;
        for (auto const& j : at(key)) all.push_back(number(j, key));
        return all;
    }
    void require(bool condition, std::string const& what) const {
        if (!condition) fail(what);
    }
    [[noreturn]] void fail(std::string const& what) const { throw Error(code::ck_bad_manifest, concat(where_, " ", what)); }

private:
    nlohmann::json const& object_;
    std::string where_;
};

/// Whether a name can be one of a file in the checkpoint's own folder.
inline bool plain_file_name(std::string const& name) {
    return !name.empty() && name.size() <= 255 && name.front() != '.' && std::all_of(name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; });
}

/// Whether strides put the elements of a shape side by side, in whatever order of dimensions.
inline bool dense(std::vector<int64_t> const& shape, std::vector<int64_t> const& strides) {
    if (strides.size() != shape.size()) return false;
    if (std::ranges::find(shape, 0) != shape.end()) return true;
    std::vector<std::pair<int64_t, int64_t>> dims;
    for (size_t d = 0; d < shape.size(); ++d)
        if (shape[d] != 1) dims.emplace_back(strides[d], shape[d]);
    std::ranges::sort(dims);
    int64_t expected = 1;
    for (auto const& [stride, size] : dims) {
        if (stride != expected) return false;
        expected *= size;
    }
    return true;
}

inline ManifestTensor parse_tensor(nlohmann::json const& j, std::string const& where, int64_t files) {
    Entries const entries(j, where);
    ManifestTensor t;
    auto const dtype = find_dtype(entries.string("dtype"));
    entries.require(dtype >= 0 && dtypes[static_cast<size_t>(dtype)].type != at::ScalarType::Undefined, "has an unknown dtype");
    t.dtype = dtypes[static_cast<size_t>(dtype)].type;
    t.shape = entries.numbers("shape");
    int64_t numel = 1;
    for (auto d : t.shape) entries.require(!__builtin_mul_overflow(numel, d, &numel), "has more elements than can be");
    entries.require(entries.at("whole").is_boolean(), "\"whole\" is no boolean");
    t.whole = entries.at("whole").get<bool>();
    if (!t.whole) t.strides = entries.numbers("strides");
    check(t.whole || dense(t.shape, t.strides), code::ck_slices, where, ": strides ", c10::IntArrayRef(t.strides), " do not fit shape ", c10::IntArrayRef(t.shape));
    entries.require(entries.at("parts").is_array(), "\"parts\" is no list");
    for (auto const& p : entries.at("parts")) {
        entries.require(p.is_array() && p.size() == 3, "has a part that is no list of three");
        t.parts.push_back({entries.number(p[0], "file", 0, files - 1), entries.number(p[1], "from"), entries.number(p[2], "to")});
    }
    std::sort(t.parts.begin(), t.parts.end(), [](auto const& a, auto const& b) { return std::pair(a.from, a.to) < std::pair(b.from, b.to); });
    int64_t reached = 0;
    for (auto const& p : t.parts) {
        check(p.from == reached && p.to >= p.from && p.to <= numel, code::ck_slices, where, ": its parts ", p.from < reached ? "overlap" : "have a gap or lie outside", " at element ", reached, " of ", numel);
        reached = p.to;
    }
    check(reached == numel && !t.parts.empty() && (!t.whole || t.parts.size() == 1), code::ck_slices, where, ": its parts end at element ", reached, " of ", numel);
    return t;
}

}  // namespace detail

inline Manifest Manifest::parse(std::string const& text, std::string const& where) {
    detail::ManifestText(text, where).check_strict();
    auto const j = nlohmann::json::parse(text, nullptr, false);  // "discarded", which is no object, where it is no JSON
    detail::Entries const entries(j, where + ":");
    entries.require(entries.string("format") == "accelerate.hpp checkpoint", "is of another format");
    auto const found = entries.at("version");
    check(found.is_number_integer() && found.get<int64_t>() == version, code::ck_version, where, ": version ", found.dump(), "; this build reads ", version);
    Manifest m;
    auto const& world = entries.at("world");
    m.world = world.is_number_integer() ? world.get<int64_t>() : 0;
    check(m.world >= 1 && m.world <= most_ranks, code::ck_mesh, where, ": \"world\" is ", world.dump());
    m.values = entries.at("values"), m.ranks = entries.at("ranks"), m.about = entries.at("about");
    auto const require_objects = [&](nlohmann::json const& all) {
        for (auto const& [name, value] : all.items())
            if (!value.is_object()) entries.fail(concat("has values of ", quote(name), " that are no object"));
    };
    entries.require(m.values.is_object() && m.about.is_object(), "\"values\" or \"about\" is no object");
    require_objects(m.values);
    entries.require(entries.at("files").is_array(), "\"files\" is no list");
    std::unordered_set<std::string> names;
    for (auto const& f : entries.at("files")) {
        detail::Entries const file(f, where + ": a file");
        m.files.push_back({file.string("name"), file.number("size"), file.string("hash")});
        Hasher::kind_of(m.files.back().hash, where + ": a file");
        auto const& name = m.files.back().name;
        file.require(detail::plain_file_name(name), concat("is named ", quote(name)));
        file.require(names.insert(name).second, concat("is named ", quote(name), ", as another one"));
    }
    check(m.ranks.is_array() && static_cast<int64_t>(m.files.size()) == m.world && m.ranks.size() == m.files.size(), code::ck_mesh, where, ": ", m.files.size(), " files and ", m.ranks.size(),
          " ranks' values for ", m.world, " ranks");
    for (size_t r = 0; r < m.ranks.size(); ++r) {
        entries.require(m.ranks[r].is_object(), "a rank's values are no object");
        require_objects(m.ranks[r]);
        auto const progress = m.ranks[r].value("progress", nlohmann::json());
        check(same_text(progress, m.ranks[0].value("progress", nlohmann::json())) || progress.contains("independent"), code::ck_mixed, where, ": rank ", r, " was at another step than rank 0");
    }
    entries.require(entries.at("tensors").is_object(), "\"tensors\" is no object");
    for (auto const& [name, t] : entries.at("tensors").items()) m.tensors.emplace(name, detail::parse_tensor(t, concat(where, ": tensor ", quote(name)), m.world));
    return m;
}

}  // namespace accelerate::state
